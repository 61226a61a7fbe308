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


def recorded(pages, name):
    """Returns a console that a machine printed."""
    return (CONSOLES / f"{pages}-{name}.log").read_text().splitlines()


def result(pages, name, lines):
    """Returns a run with a console."""
    return matrix.Run(name, pages, ktap.parse(lines), run.problems(0, lines), 61.7)


def suite(*cases):
    """Returns a console of a suite with cases; 'one # SKIP why' is one that was skipped."""
    lines = ["    # Subtest: suite", f"    1..{len(cases)}"]
    return lines + [f"    ok {number} {case}" for number, case in enumerate(cases)] + ["ok 1 suite"]


def skipping(why):
    """Returns a console of a suite that was skipped as a whole."""
    return ["    # Subtest: suite", f"    1..0 # SKIP {why}", "ok 1 suite # SKIP"]


class Table(unittest.TestCase):
    """Consoles that were recorded."""

    def setUp(self):
        self.runs = [
            result("4k", "vhe", recorded("4k", "vhe")),
            result("4k", "protected", recorded("4k", "protected")),
            result("64k", "vhe", recorded("64k", "vhe")),
            matrix.Run("protected", "64k", [], ["it did not boot"], 600),
        ]
        self.lines, self.good = matrix.report(self.runs, whole=False)

    def test_rows(self):
        """Each program has a row for each page size; a machine that did not boot has failed."""
        rows = [line for line in self.lines if line.startswith("|")]
        self.assertEqual(len({len(row) for row in rows}), 1)
        self.assertEqual(len(rows), 2 + 2 * (10 + 1))
        for row in (
            "| 4k    | userfault_dirty_log   | 7         | 6, 1 skip   |",
            "| 4k    | userfault_nested      | skip      | skip        |",
            "| 4k    | the whole run         | ok, 62 s  | ok, 62 s    |",
            "| 64k   | userfault_mappings    | 3, 3 skip | FAIL        |",
            "| 64k   | the whole run         | ok, 62 s  | FAIL, 600 s |",
        ):
            self.assertIn(row, rows)

    def test_lists(self):
        """What failed or was skipped is listed with its reason and where that was."""
        text = "\n".join(self.lines)
        self.assertIn("Failed:\n\n- it did not boot; on protected (64k)\n", text)
        self.assertIn(
            "\n- guests have no EL2 here (KVM_CAP_ARM_EL2); on vhe (4k 64k), protected (4k):\n"
            "  - userfault_nested\n"
            "- no eager splitting: Invalid argument (os error 22); on protected (4k):\n"
            "  - userfault_dirty_log log_that_splits_blocks_in_advance\n"
            "- nothing shows stage 2 (CONFIG_PTDUMP_STAGE2_DEBUGFS); on protected (4k):\n"
            "  - userfault_mappings faults_after_a_disable_map_blocks\n"
            "  - userfault_mappings recreated_slot_has_blocks\n",
            text,
        )
        self.assertIn(
            "\n4 runs, 3 without a failure; 147 tests passed, 12 skipped, 0 failed", text
        )

    def test_width(self):
        """All fits on a terminal, with every machine as well."""
        failing = [line.replace("# ok", "# not ok") for line in recorded("4k", "vhe")]
        runs = [result("4k", name, recorded("4k", "protected")) for name in machine.MACHINES]
        runs += [result("64k", name, failing) for name in machine.MACHINES]
        for runs in (self.runs, runs):
            lines, _ = matrix.report(runs, whole=True)
            self.assertLessEqual(max(map(len, lines)), matrix.WIDTH)


class Verdict(unittest.TestCase):
    """When all is well, and when it is not."""

    def report(self, *consoles, whole=True):
        """Returns the report about machines with these consoles, of which none has a problem."""
        runs = [
            matrix.Run(f"machine{number}", "4k", ktap.parse(lines), [], 1)
            for number, lines in enumerate(consoles)
        ]
        lines, good = matrix.report(runs, whole)
        return "\n".join(lines), good

    def test_skip_by_some(self):
        """What one machine skips and another runs is fine, but shown."""
        text, good = self.report(suite("one", "two # SKIP why"), suite("one", "two"))
        self.assertTrue(good)
        self.assertIn("- why; on machine0 (4k):\n  - suite two\n", text)
        self.assertNotIn("Skipped by every", text)

    def test_skip_by_all(self):
        """What every machine skips, for whatever reason, is an error of the whole matrix."""
        consoles = suite("one", "two # SKIP why"), suite("one", "two # SKIP other"), skipping("no")
        text, good = self.report(*consoles)
        self.assertFalse(good)
        self.assertIn("Skipped by every machine, which is an error:\n\n- suite two\n", text)
        text, good = self.report(*consoles, whole=False)
        self.assertTrue(good)
        self.assertIn("Skipped by every machine that was asked:\n\n- suite two\n", text)

    def test_program_skipped_by_all(self):
        """So is a program that every machine skips; its cases are not even known."""
        text, good = self.report(skipping("no"), skipping("not here"))
        self.assertFalse(good)
        self.assertIn("error:\n\n- suite\n", text)
        self.assertIn("- no; on machine0 (4k):\n  - suite\n- not here; on machine1", text)

    def test_failure(self):
        """One problem of one machine is enough."""
        good = matrix.Run("vhe", "4k", ktap.parse(suite("one")), [], 1)
        bad = matrix.Run("nvhe", "4k", ktap.parse(suite("one")), ["BUG: bad page"], 1)
        self.assertTrue(matrix.report([good], whole=True)[1])
        self.assertFalse(matrix.report([good, bad], whole=True)[1])


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
            mock.patch.object(skips, "allowed", return_value=[skips.Allowed(*"*****")]),
            contextlib.redirect_stdout(io.StringIO()) as out,
        ):
            return run.run_matrix(args, "source"), out.getvalue()

    def test_all(self):
        """All machines run with all page sizes."""
        boot = mock.Mock(return_value=(0, recorded("4k", "vhe")))
        code, text = self.run_matrix(boot)
        self.assertEqual(boot.call_count, len(machine.MACHINES) * len(machine.PAGES))
        self.assertEqual(code, 1)
        self.assertIn("which is an error:\n\n- userfault_interface protected_vm_is_refused\n", text)

    def test_some(self):
        """A part of the machines is run if that is wanted."""
        boot = mock.Mock(return_value=(0, recorded("4k", "vhe")))
        code, _ = self.run_matrix(boot, machine="nvhe")
        self.assertEqual([call.args[0] for call in boot.mock_calls], ["nvhe"] * 3)
        self.assertEqual(code, 0)
        boot.reset_mock()
        self.run_matrix(boot, pages="16k")
        self.assertEqual([call.args[0] for call in boot.mock_calls], list(machine.MACHINES))

    def test_machine_that_hangs(self):
        """The cases that it had run are shown, the rest has failed, and the others go on."""
        whole = recorded("4k", "vhe")
        part = whole[: whole.index("# ok 4 walk_of_stage_1_exits") + 1]
        hang = machine.Unfinished("the machine did not finish in 600 seconds", part)
        boot = mock.Mock(side_effect=[(0, whole), hang, (0, whole), (0, whole), (0, whole)])
        code, text = self.run_matrix(boot, pages="4k")
        self.assertEqual(code, 1)
        self.assertIn("| userfault_dirty_log   | 7         | 7         | 7 ", text)
        self.assertIn("| userfault_exits       | 9         | 4, 1 FAIL | 9 ", text)
        self.assertIn("| userfault_memory      | 7         | FAIL      | 7 ", text)
        self.assertIn("- the machine did not finish in 600 seconds; on nofwb (4k)\n", text)
        self.assertIn("- userfault_exits: did not end; on nofwb (4k)\n", text)

    def test_build_that_fails(self):
        """A page size that cannot be built has failed on all machines, and the others run."""
        boot = mock.Mock(return_value=(0, recorded("4k", "vhe")))
        built = (self.build, "initrd")
        variant = mock.Mock(side_effect=[LabError("the step failed"), built, built])
        code, text = self.run_matrix(boot, variant, machine="vhe")
        self.assertEqual((code, boot.call_count), (1, 2))
        self.assertIn("- the step failed; on vhe (4k)\n", text)


if __name__ == "__main__":
    unittest.main()
