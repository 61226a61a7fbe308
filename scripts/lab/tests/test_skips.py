# SPDX-License-Identifier: GPL-2.0-only
"""What may be skipped where: anything else is a failure."""

import unittest

import ktap
import skips
from common import LabError

LIST = """\
# Comment
*       *-norust  userfault_blocks  *          needs: the helper
nvhe,x  *         suite             two        no * here
*       64k*      whole             *          needs *
"""
SUITE = ["# selftests: kvm: suite", "# ok 1 one", "# ok 2 two # SKIP no EL2 here",
         "ok 1 selftests: kvm: suite"]  # fmt: skip
WHOLE = ["# selftests: kvm: whole", "# 1..0 # SKIP needs NV", "ok 1 selftests: kvm: whole # SKIP"]


class Skips(unittest.TestCase):
    """Each skip is held against the list, with where it was and its reason."""

    def unexpected(self, machine, kernel, lines):
        """Returns what is not allowed."""
        return skips.unexpected(machine, kernel, ktap.parse(lines), skips.allowed(LIST))

    def test_allowed(self):
        """What the list names is no failure."""
        self.assertEqual(self.unexpected("nvhe", "4k", SUITE), [])
        self.assertEqual(self.unexpected("vhe", "64k-debug", WHOLE), [])

    def test_another_machine(self):
        """The same on another machine or kernel is one."""
        wrong = ["suite two was skipped, and may not be: no EL2 here"]
        self.assertEqual(self.unexpected("vhe", "4k", SUITE), wrong)
        wrong = ["whole was skipped, and may not be: needs NV"]
        self.assertEqual(self.unexpected("vhe", "4k", WHOLE), wrong)

    def test_another_reason(self):
        """So is the same case for another reason."""
        lines = [line.replace("no EL2 here", "an error") for line in SUITE]
        wrong = ["suite two was skipped, and may not be: an error"]
        self.assertEqual(self.unexpected("nvhe", "4k", lines), wrong)

    def test_list(self):
        """The list of the lab can be read, and a line of another form is named."""
        skips.allowed()
        self.assertRaisesRegex(LabError, "'vhe 4k' is not", skips.allowed, "vhe 4k\n")
