# SPDX-License-Identifier: GPL-2.0-only
"""Tests of what is made of the example VMM's trials."""

import re
import unittest

import vmm


class Table(unittest.TestCase):
    def test_rows_become_a_table(self):
        lines = ["ok restore", "row way=vcpu exits=3 bytes=4096", "row way=mapping exits=2"]
        self.assertEqual(
            vmm.table(lines),
            [
                "| way | exits | bytes copied |",
                "| --- | --- | --- |",
                "| vcpu | 3 | 4096 |",
                "| mapping | 2 | - |",
            ],
        )

    def test_no_rows_no_table(self):
        self.assertEqual(vmm.table(["ok something"]), [])


class Failures(unittest.TestCase):
    """The trial that is in several files."""

    def test_all_kinds_are_tried(self):
        text = (vmm.SOURCE / "try/failures").read_text()
        kinds = re.search(r"^for kind in (.*); do$", text, re.MULTILINE)[1].split()
        files = [path.stem for path in (vmm.SOURCE / "try").glob("failures-*.sh")]
        self.assertEqual(sorted(files), sorted(f"failures-{kind}" for kind in kinds))


class Problems(unittest.TestCase):
    def test_what_failed_is_named(self):
        self.assertEqual(vmm.problems(1, ["ok a", "FAIL b"]), ["FAIL b"])

    def test_a_trial_that_says_nothing_failed(self):
        self.assertTrue(vmm.problems(0, []))

    def test_a_code_without_a_reason_is_a_problem(self):
        self.assertTrue(vmm.problems(2, ["ok a"]))

    def test_a_kernel_that_complains_is_a_problem(self):
        splat = "[   12.3] BUG: KASAN: slab-use-after-free in kvm_vcpu_ioctl"
        self.assertEqual(vmm.problems(0, ["ok a", splat]), [splat])

    def test_a_trial_that_passed(self):
        self.assertEqual(vmm.problems(0, ["ok a"]), [])


class Documentation(unittest.TestCase):
    """The page for VMM authors shows code as it is."""

    def test_excerpts_are_in_the_source(self):
        text = (vmm.REPO / "Documentation/vmm.md").read_text()
        excerpts = re.findall(r"<!-- code: (\S+), fn (\w+) -->\n\n((?:    .*\n|\n)+)", text)
        self.assertGreaterEqual(len(excerpts), 5)
        for file, function, excerpt in excerpts:
            source = (vmm.SOURCE / "src" / file).read_text()
            body = source[source.index(f"fn {function}") :]
            for line in filter(None, map(str.strip, excerpt.splitlines())):
                self.assertIn(line, body, f"{file}, {function}()")
