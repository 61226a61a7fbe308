# SPDX-License-Identifier: GPL-2.0-only
"""How a console's KTAP is read: neither a failure nor a skip may be missed."""

import pathlib
import unittest

import ktap
import mutants
import run

CONSOLES = pathlib.Path(__file__).parent / "consoles"

REPORT = """\
KTAP version 1
1..1
    KTAP version 1
    # Subtest: kvm_arm64_userfault
    1..2
    ok 1 userfault_slot_is_mapped_by_pages
    not ok 2 size_never_grows
# kvm_arm64_userfault: pass:1 fail:1 skip:0 total:2
not ok 1 kvm_arm64_userfault
TAP version 13
1..3
# selftests: kvm: userfault_exits
# TAP version 13
# 1..2
# ok 1 store_exits # SKIP no stores: here
# # not ok 3 said the test itself
# not ok 2 marked_page_exits
not ok 1 selftests: kvm: userfault_exits # exit=1
# selftests: kvm: userfault_nested
# 1..0 # SKIP guests have no EL2 here
ok 2 selftests: kvm: userfault_nested # SKIP
# selftests: kvm: userfault_rearm
# 1..2
# ok 1 marked_and_dropped_page_exits
not ok 3 selftests: kvm: userfault_rearm # TIMEOUT 120 seconds
# Totals: pass:0 fail:2 xfail:0 xpass:0 skip:1 error:0
""".splitlines()


class Report(unittest.TestCase):
    """KUnit's and kselftest's reports, on one console."""

    def test_programs(self):
        """Each program has its verdict, its reason from wherever it was given, and its own cases;
        what a test quotes is none."""
        programs = ktap.parse(REPORT)
        self.assertEqual(
            [(one.name, one.verdict, one.reason) for one in [*programs, *programs[1].cases]],
            [
                ("kvm_arm64_userfault", ktap.FAIL, ""),
                ("userfault_exits", ktap.FAIL, "exit=1"),
                ("userfault_nested", ktap.SKIP, "guests have no EL2 here"),
                ("userfault_rearm", ktap.FAIL, "TIMEOUT 120 seconds"),
                ("store_exits", ktap.SKIP, "no stores: here"),
                ("marked_page_exits", ktap.FAIL, ""),
            ],
        )

    def test_failures(self):
        """What failed is named once: by its cases, or by how its program ended. What the kernel
        finds wrong with itself is a failure; what only looks like one is not."""
        wrong = ["kvm_arm64_userfault size_never_grows", "userfault_exits marked_page_exits"]
        wrong.append("userfault_rearm: TIMEOUT 120 seconds")
        splat = "WARNING: arch/arm64/kvm/mmu.c:1 at kvm_handle_guest_abort"
        lines = [splat, "ok 1 not ok 2", "# this is not ok", "ok 3 done"]
        self.assertEqual(run.failures(REPORT + lines), [*wrong, splat])
        # What skips and may not counts as failed to those who hunt mutants.
        failed = ["size_never_grows", "marked_page_exits", "userfault_rearm", "store_exits"]
        self.assertEqual(mutants.failed_cases(REPORT, "vhe", "4k"), failed)


class Console(unittest.TestCase):
    """A console that a machine printed, whole and damaged."""

    def setUp(self):
        self.lines = (CONSOLES / "4k-vhe.log").read_text().splitlines()

    def test_complete(self):
        """All that is there is read, among the kernel's own messages."""
        programs = ktap.parse(self.lines)
        self.assertEqual((len(programs), sum(len(one.cases) for one in programs)), (10, 52))
        self.assertEqual(run.problems(0, self.lines), [])

    def test_cut(self):
        """Wherever the console ends too early, that is seen."""
        for last in range(self.lines.index("ok 9 selftests: kvm: userfault_restore")):
            with self.subTest(last=self.lines[last]):
                self.assertTrue(run.problems(0, self.lines[:last]))
        died = self.lines[: self.lines.index("# ok 4 walk_of_stage_1_exits") + 1]
        self.assertEqual(run.failures(died), ["userfault_exits: did not end"])

    def test_lost(self):
        """A case that is announced and not reported is no success; neither KUnit nor the selftests
        may be missing; a runner that fails for no reason on the console has failed."""
        first = self.lines.index("TAP version 13")
        short = [line for line in self.lines if line != "# ok 4 walk_of_stage_1_exits"]
        for code, lines, wrong in (
            (0, short, "userfault_exits: 8 of 9 cases on the console"),
            (0, self.lines[first:], "KUnit has no results of kvm_arm64_userfault"),
            (0, self.lines[:first], "no selftest ran"),
            (2, self.lines, "the suite ended with code 2"),
        ):
            self.assertEqual(run.problems(code, lines), [wrong])
