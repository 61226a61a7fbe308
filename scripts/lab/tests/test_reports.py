# SPDX-License-Identifier: GPL-2.0-only
"""How reports of tests are read: a failure must not be missed."""

import unittest

import mutants
import run

REPORT = """\
    ok 1 userfault_slot_is_mapped_by_pages
    not ok 2 size_never_grows
TAP version 13
1..2
# selftests: kvm: userfault_test
# ok 1 interface_is_as_deployed
# not ok 2 marked_page_exits
not ok 1 selftests: kvm: userfault_test # exit=1
ok 2 selftests: kvm: userfault_restore # SKIP
""".splitlines()


class Reports(unittest.TestCase):
    """KUnit's and kselftest's reports, on one console."""

    def test_failures(self):
        """Failures of programs, of their cases and of KUnit's cases are seen."""
        self.assertEqual(len(run.failures(REPORT)), 3)

    def test_failed_cases(self):
        """The names of all that failed are known."""
        failed = ["size_never_grows", "marked_page_exits", "userfault_test"]
        self.assertEqual(mutants.failed_cases(REPORT), failed)

    def test_no_failure(self):
        """Lines that only look like failures are none."""
        self.assertEqual(run.failures(["ok 1 not ok 2", "# this is not ok", "ok 3"]), [])


if __name__ == "__main__":
    unittest.main()
