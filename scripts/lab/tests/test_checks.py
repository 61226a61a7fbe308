# SPDX-License-Identifier: GPL-2.0-only
"""Whatever one of scripts/test's checks ends by, the others run."""

import contextlib
import io
import subprocess
import unittest
from unittest import mock

import test
from common import LabError


class Checks(unittest.TestCase):
    """Stand-ins for checks."""

    def test_errors(self):
        """A check that ends by an error of any kind has failed, and says why."""
        for error, words in (
            (LabError("this is wrong"), "this is wrong"),
            (FileNotFoundError(2, "No such file", "/a/file"), "/a/file: No such file"),
            (subprocess.CalledProcessError(2, ["tar"]), "Command '['tar']' returned non-zero"),
        ):
            with contextlib.redirect_stdout(io.StringIO()) as out:
                self.assertFalse(test.passes("a check", mock.Mock(side_effect=error)))
            self.assertRegex(out.getvalue(), r"^FAIL  a check \(\d+ s\)\n")
            self.assertIn(words, out.getvalue())
