# SPDX-License-Identifier: GPL-2.0-only
"""How mutants are tried one after the other, and what counts as noticed."""

import unittest
from unittest import mock

import machine
import mutants
import mutate

CASE, UNIT = "t userfault_exits marked_page_exits", "k kvm_arm64_userfault_size"
KNOWN = {"marked_page_exits": [CASE], "size_fits": [UNIT]}


def mutant(number, cases="marked_page_exits"):
    """Returns a mutant that changes nothing."""
    return mutate.Mutant(number, f"m{number}", {"caught-by": cases}, [])


def part(number, *lines, end=True):
    """Returns what a machine prints of a mutant."""
    return [f"mutant: begins {number}", *lines, *([f"mutant: ended {number}"] if end else [])]


def program(ok, *lines):
    """Returns what the program prints, that ends well or not."""
    head = ["# selftests: kvm: userfault_exits", *lines]
    return [*head, f"{'' if ok else 'not '}ok 1 selftests: kvm: userfault_exits"]


PASSES = program(True, "# ok 1 marked_page_exits")
FAILS = program(False, "# not ok 1 marked_page_exits")


class Hunt(unittest.TestCase):
    """Machines that print what they are told."""

    def hunt(self, chosen, *consoles, none=tuple(PASSES)):
        """Tries mutants on machines that print this, after a kernel where none acts has passed, and
        returns {name: what noticed it}."""
        consoles = [[*part(0, *none), *consoles[0]], *consoles[1:]]
        answers = [
            (0, lines) if lines[-1].startswith("mutant: ended") else machine.Unfinished("", lines)
            for lines in consoles
        ]
        place = mutants.Place("nofwb", mock.Mock(), "initrd", KNOWN)
        place.build.name = "4k"
        with mock.patch.object(machine, "boot", side_effect=answers) as boot:
            found = {trial.mutant.name: trial.by for trial in place.hunt(chosen)}
        self.scripts = [call.args[3] for call in boot.mock_calls]
        return found

    def test_cases(self):
        """A named case that fails notices a mutant, another does not."""
        other = program(False, "# not ok 1 store_exits", "# ok 2 marked_page_exits")
        rest = [*part(2, *PASSES), *part(3, *other)]
        chosen = [mutant(1), mutant(2), mutant(3)]
        found = self.hunt(chosen, [*part(1, *FAILS), *rest], rest, rest)
        self.assertEqual(found, {"m1": "marked_page_exits", "m2": "", "m3": ""})

    def test_program_that_dies(self):
        """So does its program, if that dies and no case of it has failed."""
        dies = [line + " # exit=139" * line.startswith("not") for line in program(False)]
        self.assertEqual(self.hunt([mutant(1)], part(1, *dies)), {"m1": "userfault_exits"})

    def test_luck(self):
        """A mutant that survives is tried again, and has survived only at the last."""
        found = self.hunt([mutant(1)], part(1, *PASSES), part(1, *FAILS))
        self.assertEqual(found, {"m1": "marked_page_exits"})

    def test_hang_oops_and_splat(self):
        """So do a kernel that dies or complains, after which others get a machine of their own."""
        found = self.hunt(
            [mutant(number) for number in range(1, 5)],
            part(1, "# selftests: kvm: userfault_exits", end=False),
            part(2, "Internal error: Oops: 1 [#1]", "Kernel panic", end=False),
            [*part(3, "WARNING: mm/gup.c", *PASSES), *part(4, *PASSES)],
            part(4, *FAILS),
        )
        self.assertEqual(found["m1"], "a hang")
        self.assertIn("a splat (Internal error: Oops", found["m2"])
        self.assertIn("a splat (WARNING: mm/gup.c", found["m3"])
        self.assertEqual(found["m4"], "marked_page_exits")
        self.assertNotIn("\nm 1 ", self.scripts[1])
        self.assertIn("\nm 2 ", self.scripts[1])

    def test_skip(self):
        """A named case that skips where it may not has noticed something."""
        skips = program(True, "# ok 1 marked_page_exits # SKIP no capability")
        self.assertEqual(self.hunt([mutant(1)], part(1, *skips)), {"m1": "marked_page_exits"})

    def test_script(self):
        """Cases of programs and of KUnit are run, each once, with the mutant's number set."""
        self.hunt([mutant(7, "marked_page_exits, size_fits")], part(7, *FAILS))
        both = f"'{CASE}' '{UNIT}'"
        self.assertTrue(self.scripts[0].endswith(f"\nm 0 {both}\nm 7 {both}"))

    def test_machine_that_is_dead(self):
        """A machine that does not even begin is an error, and no endless loop."""
        with self.assertRaisesRegex(mutants.LabError, "did not get to its first mutant"):
            self.hunt([mutant(1)], ["nothing"], ["nothing"])

    def test_tests_that_fail_anyway(self):
        """Cases that fail where no mutant acts are an error."""
        with self.assertRaisesRegex(mutants.LabError, "no mutant acts.*: marked_page_exits"):
            self.hunt([mutant(1)], part(1, *FAILS), none=FAILS)
