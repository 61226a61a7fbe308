# SPDX-License-Identifier: GPL-2.0-only
"""The table of all machines: nothing that failed or did not run may be missing from it."""

import argparse
import contextlib
import io
import pathlib
import unittest
from unittest import mock

import ktap
import machine
import matrix
import run
import skips
import small
from common import LabError

CONSOLES = pathlib.Path(__file__).parent / "consoles"
NAMES = ("4k-vhe", "4k-protected", "64k-vhe")
VHE, PROTECTED, VHE_64K = ((CONSOLES / f"{one}.log").read_text().splitlines() for one in NAMES)


def suite(*cases):
    """Returns a console of a suite with cases; 'one # SKIP why' is one that was skipped."""
    lines = ["    # Subtest: suite", f"    1..{len(cases)}"]
    return lines + [f"    ok {number} {case}" for number, case in enumerate(cases)] + ["ok 1 suite"]


WHOLE_SKIPPED = ["    # Subtest: suite", "    1..0 # SKIP no", "ok 1 suite # SKIP"]


class Report(unittest.TestCase):
    """What is shown."""

    def test_recorded(self):
        """Consoles that were recorded have a row for each program and page size; a machine that did
        not boot has failed; what failed or was skipped is listed with its reason and place."""
        runs = [
            matrix.Run(name, pages, ktap.parse(lines), run.problems(0, lines), 61.7)
            for pages, name, lines in (
                ("4k", "vhe", VHE),
                ("4k", "protected", PROTECTED),
                ("64k", "vhe", VHE_64K),
            )
        ]
        runs.append(matrix.Run("protected", "64k", [], ["it did not boot"], 600))
        lines, _ = matrix.report(runs, whole=False)
        rows = [line for line in lines if line.startswith("|")]
        self.assertEqual((len({len(row) for row in rows}), len(rows)), (1, 2 + 2 * (10 + 1)))
        for line in (
            "| 4k    | userfault_dirty_log   | 7         | 6, 1 skip   |",
            "| 4k    | userfault_nested      | skip      | skip        |",
            "| 4k    | the whole run         | ok, 62 s  | ok, 62 s    |",
            "| 64k   | userfault_mappings    | 3, 3 skip | FAIL        |",
            "| 64k   | the whole run         | ok, 62 s  | FAIL, 600 s |",
            "- it did not boot; on protected 64k",
            "- userfault_nested: guests have no EL2 here (KVM_CAP_ARM_EL2);"
            " on vhe 4k, protected 4k, vhe 64k",
            "4 runs, 3 without a failure; 147 tests passed, 12 skipped, 0 failed",
        ):
            self.assertIn(line, lines)

    def test_verdict(self):
        """What all skip is an error of the whole matrix, and so is one problem of one machine."""
        one, both, none = suite("one", "two # SKIP why"), suite("one", "two"), WHOLE_SKIPPED
        for consoles, whole, good, words in (
            ([one, both], True, True, "- suite two: why; on machine0 4k"),
            ([one, one, none], True, False, "every machine, which is an error:\n\n- suite two"),
            ([one, one, none], False, True, "every machine that was asked:\n\n- suite two"),
            ([none, none], True, False, "error:\n\n- suite\n"),
        ):
            runs = [
                matrix.Run(f"machine{number}", "4k", ktap.parse(lines), [], 1)
                for number, lines in enumerate(consoles)
            ]
            lines, found = matrix.report(runs, whole)
            self.assertEqual(found, good)
            self.assertIn(words, "\n".join(lines))
        runs[0].wrong = ["BUG: bad page"]
        self.assertFalse(matrix.report(runs, whole=False)[1])


class Loop(small.Scratch):
    """The machines are run one after the other, whatever happens to one."""

    def run_matrix(self, boots, built=None, **wanted):
        """Runs machines that are not there, and returns (exit code, what was printed)."""
        (self.folder / ".config").write_text(f"CONFIG_{run.KUNIT_OPTION}=y\n")
        args = argparse.Namespace(machine=None, pages=None, timeout=600, without=None)
        vars(args).update(wanted)
        self.boot = mock.Mock(side_effect=boots)
        good = self.folder, "initrd"
        variants = mock.Mock(side_effect=[built or good, good, good])
        with (
            mock.patch.object(machine, "boot", self.boot),
            mock.patch.object(run, "build_variant", variants),
            mock.patch.object(run, "say"),
            mock.patch.object(skips, "allowed", return_value=[["*"] * 5]),
            contextlib.redirect_stdout(io.StringIO()) as out,
        ):
            return run.run_matrix(args, "source"), out.getvalue()

    def test_which(self):
        """All machines run with all page sizes, or those that are wanted."""
        count = len(machine.MACHINES) * len(machine.PAGES)
        code, text = self.run_matrix([(0, VHE)] * count)
        self.assertEqual((code, self.boot.call_count), (1, count))
        self.assertIn("which is an error:\n\n- userfault_interface protected_vm_is_refused\n", text)
        self.assertEqual(self.run_matrix([(0, VHE)] * 3, machine="nvhe")[0], 0)
        self.assertEqual([call.args[0] for call in self.boot.mock_calls], ["nvhe"] * 3)

    def test_machine_that_hangs(self):
        """The cases that it had run are shown, the rest has failed, and the others go on."""
        part = VHE[: VHE.index("# ok 4 walk_of_stage_1_exits") + 1]
        hang = machine.Unfinished("the machine did not finish in 600 seconds", part)
        code, text = self.run_matrix([(0, VHE), hang, *[(0, VHE)] * 3], pages="4k")
        self.assertEqual(code, 1)
        for words in (
            "| userfault_dirty_log   | 7         | 7         | 7 ",
            "| userfault_exits       | 9         | 4, 1 FAIL | 9 ",
            "| userfault_memory      | 7         | FAIL      | 7 ",
            "- the machine did not finish in 600 seconds; on nofwb 4k\n",
            "- userfault_exits: did not end; on nofwb 4k\n",
        ):
            self.assertIn(words, text)

    def test_build_that_fails(self):
        """A page size that cannot be built has failed on all machines, and the others run."""
        failed = LabError("the step failed")
        code, text = self.run_matrix([(0, VHE)] * 2, failed, machine="vhe")
        self.assertEqual((code, self.boot.call_count), (1, 2))
        self.assertIn("- the step failed; on vhe 4k\n", text)
