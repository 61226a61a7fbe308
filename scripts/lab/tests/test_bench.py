# SPDX-License-Identifier: GPL-2.0-only
"""How the benchmark's output is read, compared and drawn."""

import pathlib
import tempfile
import unittest
import xml.etree.ElementTree

import bench
import report

OUTPUT = """\
TAP version 13
# bench: hypercall is not counted: no such file
# bench: name=fault  vcpus=1 slots=1 slot_pages=16384 marked=0   value=4800.5  unit=ns/page
ok 1 fault
# bench: name=enable vcpus=1 slots=1 slot_pages=16384 marked=50  value=8400000.0 unit=ns
# bench: name=enable vcpus=1 slots=1 slot_pages=16384 marked=50 event=mmu-lock value=1.0 unit=events
""".splitlines()
ABOUT = {
    "command": "scripts/bench",
    "emulator": "QEMU",
    "kernels": {"base": "Linux", "core": "one", "helper": "two"},
}


def figure(name, value, event="", **fields):
    """Returns a figure with what it is usually of."""
    known = {"vcpus": 1, "slots": 1, "slot_pages": 16384, "marked": 0, "unit": "ns"} | fields
    return bench.Figure(name=name, value=value, event=event, **known)


def results():
    """Returns results that have something in each table."""
    figures = [figure("enable", 30 + share, marked=share) for share in report.SHARES]
    figures += [figure("touch", 10, marked=share) for share in report.SHARES]
    names = "flush flush-touch fault userfault-exit mmio-exit userfault-page unmarked-block"
    figures += [figure(name, 20) for name in names.split()]
    figures += [figure(name, 100, vcpus=n) for name in report.DEMAND.values() for n in (1, 2, 4, 8)]
    events = [figure("enable", 3, event="tlb-range", marked=share) for share in (0, 1)]
    times = [
        figure(name, 2e6, event=event, slots=1, vcpus=0)
        for name in ("toggle-set", "toggle-set-ioeventfd")
        for event in ("p50", "p99")
    ]
    return {
        "n1": {
            "instructions": {"core": figures, "helper": figures},
            "events": {"core": events, "helper": events},
        },
        "toggles": {"toggles-250": {"helper": times}},
    }


class Output(unittest.TestCase):
    """What the program prints."""

    def test_figures(self):
        """Each figure is read with all that it is about."""
        fault, enable, lock = bench.parse(OUTPUT)
        self.assertEqual(fault, bench.Figure("fault", 1, 1, 16384, 0, "", 4800.5, "ns/page"))
        self.assertEqual((enable.marked, enable.value), (50, 8400000))
        self.assertEqual((lock.event, lock.value), ("mmu-lock", 1))

    def test_every_case_is_there(self):
        """What is to be run is what the program has."""
        text = (bench.PROGRAMS / "userfault_bench.rs").read_text()
        cases = text.partition("cases: [")[2].partition("]")[0].replace(",", "").split()
        asked = {case for kinds in bench.MACHINES.values() for kind in kinds.values()
                 for case in kind.cases.split()}  # fmt: skip
        self.assertEqual(asked, set(cases))


class Report(unittest.TestCase):
    """What is written."""

    def test_sum_and_ratio(self):
        """Figures are added, divided, and told apart by what they are of."""
        helper = [figure("enable", 30), figure("touch", 10), figure("flush", 50)]
        helper += [figure("flush", number, f"tlb-{number}") for number in (2, 3)]
        figures = {"core": [figure("enable", 40, marked=1)], "helper": helper}
        wanted = {
            "enable + touch": 40,
            "enable + touch / flush": 0.8,
            "enable / 4 / touch": 0.75,
            "flush event=tlb-*": 5,
            "enable kernel=core marked=1": 40,
            "enable marked=1": None,
        }
        for text, value in wanted.items():
            self.assertEqual(report.amount(figures, text), value, text)

    def test_events_of_each(self):
        """Events are those of one page or run, but for the longest of something."""
        figures = [figure("fault", 16384, "unmap"), figure("fault", 7.5, "hold-us")]
        figures += [figure("mmio-exit", 3000, "unmap"), figure("flush", 2, "unmap")]
        self.assertEqual([report.each(one) for one in figures], [1, 7.5, 3, 2])

    def test_numbers(self):
        """Numbers are short, and exact where that matters."""
        numbers = {4818.23: "4818.2", 10784: "10 784", 8427120: "8.43 M", 0.9512: "0.951", 0: "0"}
        for value, text in numbers.items():
            self.assertEqual(report.number(value), text)

    def test_kernels_side_by_side(self):
        """A cell has one number where kernels agree."""
        same, other = [figure("flush", 1)], [figure("flush", 65)]
        self.assertEqual(report.compare({"core": same, "helper": same}, "flush"), "1")
        kernels = {"base": [], "core": same, "helper": other}
        self.assertEqual(report.compare(kernels, "flush"), "– · 1 · 65")

    def test_page(self):
        """The page says first what the figures mean, and has all tables."""
        text = report.page(results(), ABOUT, True)
        counted, toggled = "| enable, 1 % marked | 3 |", "| set, slots: 1 | 2.00 / 2.00 |  |  |"
        meaning = ("**An enable** of 64 MiB", "**A toggle waits**", "HZ=250", "bench.svg")
        for words in (*meaning, counted, toggled):
            self.assertIn(words, text)
        self.assertLess(text.index("Paging by UFFDIO_COPY"), text.index("Made by"))

    def test_little_to_say(self):
        """Where figures are missing there are fewer sentences and tables, and no picture."""
        little = {"max": {"instructions": {"helper": [figure("fault", 5)]}}}
        self.assertNotIn("**", report.page(little, ABOUT, False))
        self.assertEqual(report.picture(little), "")

    def test_files(self):
        """The picture is XML with a title a chart; the other files are there."""
        with tempfile.TemporaryDirectory() as scratch:
            written = report.write(pathlib.Path(scratch, "new"), results(), ABOUT)
            names = [path.name for path in written]
            self.assertEqual(names, ["bench.md", "bench.json", "bench.svg"])
            root = xml.etree.ElementTree.parse(written[-1]).getroot()
            text = " ".join(root.itertext())
        for words in ("paging on demand", "with the helper", "userfaultfd MISSING"):
            self.assertIn(words, text)
