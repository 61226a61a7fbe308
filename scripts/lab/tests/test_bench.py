# SPDX-License-Identifier: GPL-2.0-only
"""How the benchmark's output is read, compared and drawn."""

import unittest
import xml.etree.ElementTree

import bench
import plot
import report

OUTPUT = """\
TAP version 13
# bench: name=fault  vcpus=1 slot_pages=16384 marked=0   value=4800.5  unit=ns/page
ok 1 fault
# bench: name=enable vcpus=1 slot_pages=16384 marked=50  value=8400000.0 unit=ns
# bench: name=enable vcpus=1 slot_pages=16384 marked=50 event=mmu-lock value=1.0 unit=events
""".splitlines()


class Output(unittest.TestCase):
    """What the program prints."""

    def test_figures(self):
        """Each figure is read with all that it is about."""
        fault, enable, lock = bench.parse(OUTPUT)
        self.assertEqual(fault, bench.Figure("fault", 1, 16384, 0, "", 4800.5, "ns/page"))
        self.assertEqual((enable.marked, enable.value), (50, 8400000))
        self.assertEqual((lock.event, lock.value), ("mmu-lock", 1))

    def test_sum_and_ratio(self):
        """A row adds figures, and divides them by another."""
        figures = [
            bench.Figure(name, 1, 16384, 0, "", value, "ns")
            for name, value in (("enable", 30), ("touch", 10), ("mmio-exit", 50))
        ]
        self.assertEqual(report.Row("", ("enable", "touch"), marked=0).value(figures), 40)
        self.assertEqual(report.Row("", ("enable", "touch"), "mmio-exit").value(figures), 0.8)
        self.assertIsNone(report.Row("", ("enable", "disable")).value(figures))


class Report(unittest.TestCase):
    """What is written."""

    def test_numbers(self):
        """Numbers are short, and exact where that matters."""
        numbers = {4818.23: "4818.2", 10784: "10 784", 8427120: "8.43 M", 0.9512: "0.951", 0: "0"}
        for value, text in numbers.items():
            self.assertEqual(report.number(value), text)

    def test_picture(self):
        """The picture is XML, and has a title and a legend a chart."""
        lines = plot.Panel("Enable <all>", "x", "y", {"a": [(1, 10), (4, 1000)]}, logarithmic=True)
        bars = plot.Panel("Exits", "x", "y", {"a": [1.5, None]}, ["one", "two"], mark=1)
        root = xml.etree.ElementTree.fromstring(plot.svg([lines, bars], 2))
        words = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
        for word in ("Enable <all>", "Exits", "a", "one", "1.500", "1 k"):
            self.assertIn(word, words)


if __name__ == "__main__":
    unittest.main()
