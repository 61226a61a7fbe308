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
SUITE = """\
# selftests: kvm: suite
# ok 1 one
# ok 2 two # SKIP no EL2 here
ok 1 selftests: kvm: suite
"""
WHOLE = """\
# selftests: kvm: whole
# 1..0 # SKIP needs NV
ok 1 selftests: kvm: whole # SKIP
"""
MAY_NOT = " was skipped, and may not be: "


class Skips(unittest.TestCase):
    """Each skip is held against the list, with where it was and its reason."""

    def test_unexpected(self):
        """What the list names is no failure; the same elsewhere, or for another reason, is one."""
        for machine, kernel, text, wrong in (
            ("nvhe", "4k", SUITE, []),
            ("vhe", "64k-debug", WHOLE, []),
            ("vhe", "4k", SUITE, [f"suite two{MAY_NOT}no EL2 here"]),
            ("vhe", "4k", WHOLE, [f"whole{MAY_NOT}needs NV"]),
            ("nvhe", "4k", SUITE.replace("no EL2 here", "error"), [f"suite two{MAY_NOT}error"]),
        ):
            programs = ktap.parse(text.splitlines())
            found = skips.unexpected(machine, kernel, programs, skips.allowed(LIST))
            self.assertEqual(found, wrong)

    def test_list(self):
        """The list of the lab can be read, and a line of another form is named."""
        skips.allowed()
        self.assertRaisesRegex(LabError, "'vhe 4k' is not", skips.allowed, "vhe 4k\n")
