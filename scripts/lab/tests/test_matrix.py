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


def result(pages, name, lines):
    """Returns a run with a console."""
    return matrix.Run(name, pages, ktap.parse(lines), run.problems(0, lines), 61.7)


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
            result("4k", "vhe", VHE),
            result("4k", "protected", PROTECTED),
            result("64k", "vhe", VHE_64K),
            matrix.Run("protected", "64k", [], ["it did not boot"], 600),
        ]
        lines, _ = matrix.report(runs, whole=False)
        rows = [line for line in lines if line.startswith("|")]
        self.assertEqual(len({len(row) for row in rows}), 1)
        self.assertEqual(len(rows), 2 + 2 * (10 + 1))
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
        bad = matrix.Run("nvhe", "4k", ktap.parse(both), ["BUG: bad page"], 1)
        self.assertFalse(matrix.report([runs[0], bad], whole=False)[1])


class Loop(unittest.TestCase):
    """The machines are run one after the other, whatever happens to one."""

    def setUp(self):
        scratch = small.scratch()
        self.addCleanup(scratch.cleanup)
        self.build = pathlib.Path(scratch.name)
        (self.build / ".config").write_text(f"CONFIG_{run.KUNIT_OPTION}=y\n")

    def run_matrix(self, boot, variant=None, **wanted):
        """Runs machines that are not there, and returns (exit code, what was printed)."""
        args = argparse.Namespace(machine=None, pages=None, timeout=600, without=None)
        vars(args).update(wanted)
        variant = variant or mock.Mock(return_value=(self.build, "initrd"))
        with (
            mock.patch.object(machine, "boot", boot),
            mock.patch.object(run, "build_variant", variant),
            mock.patch.object(run, "say"),
            mock.patch.object(skips, "allowed", return_value=[["*"] * 5]),
            contextlib.redirect_stdout(io.StringIO()) as out,
        ):
            return run.run_matrix(args, "source"), out.getvalue()

    def test_which(self):
        """All machines run with all page sizes, or those that are wanted."""
        boot = mock.Mock(return_value=(0, VHE))
        code, text = self.run_matrix(boot)
        self.assertEqual(boot.call_count, len(machine.MACHINES) * len(machine.PAGES))
        self.assertEqual(code, 1)
        self.assertIn("which is an error:\n\n- userfault_interface protected_vm_is_refused\n", text)
        boot.reset_mock()
        self.assertEqual(self.run_matrix(boot, machine="nvhe")[0], 0)
        self.assertEqual([call.args[0] for call in boot.mock_calls], ["nvhe"] * 3)

    def test_machine_that_hangs(self):
        """The cases that it had run are shown, the rest has failed, and the others go on."""
        part = VHE[: VHE.index("# ok 4 walk_of_stage_1_exits") + 1]
        hang = machine.Unfinished("the machine did not finish in 600 seconds", part)
        boot = mock.Mock(side_effect=[(0, VHE), hang, (0, VHE), (0, VHE), (0, VHE)])
        code, text = self.run_matrix(boot, pages="4k")
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
        boot, built = mock.Mock(return_value=(0, VHE)), (self.build, "initrd")
        variant = mock.Mock(side_effect=[LabError("the step failed"), built, built])
        code, text = self.run_matrix(boot, variant, machine="vhe")
        self.assertEqual((code, boot.call_count), (1, 2))
        self.assertIn("- the step failed; on vhe 4k\n", text)
