# SPDX-License-Identifier: GPL-2.0-only
"""Which checks scripts/test runs, and that whatever one of them ends by, the others run."""

import contextlib
import io
import subprocess
import sys
import unittest
from unittest import mock

import checkpatch
import ends
import small
import test
import tree
from common import LabError


class Checks(unittest.TestCase):
    """The checks, none of which is run here but stand-ins."""

    def run_only(self, *words):
        """Runs the checks that have a word; returns the exit code, their names, what was said."""
        argv = mock.patch.object(sys, "argv", ["test", *words])
        passes, said = mock.Mock(return_value=True), io.StringIO()
        told = contextlib.redirect_stdout(said), contextlib.redirect_stderr(said)
        with argv, mock.patch.object(test, "passes", passes), told[0], told[1]:
            with mock.patch.object(tree, "ready", side_effect=LabError("the tree is not needed")):
                try:
                    code = test.program()
                except SystemExit as stop:
                    code = stop.code
        return code, [call.args[0] for call in passes.mock_calls], said.getvalue()

    def test_words(self):
        """Checks are found by their names alone; a word that none has is an error."""
        some = ["shell scripts pass shellcheck", "each part stands alone"]
        found = self.run_only("shellcheck", "stands alone")
        self.assertEqual(found, (0, some, "2 passed, 0 failed\n"))
        code, names, text = self.run_only("shellcheck", "typo")
        self.assertEqual((code, names), (2, []))
        self.assertIn(f"no check has 'typo' in its name; these are there:\n{some[0]}\n", text)

    def test_shell(self):
        """Scripts and what they are made of are looked at, and each is on a screen."""
        with mock.patch.object(test, "output") as output:
            test.shell_scripts()
        paths = output.call_args.args[0][1:]
        names = {"run", "follow", "failures", "failures-host.sh", "lib.sh"}
        self.assertLessEqual(names, {path.name for path in paths})
        self.assertEqual([path for path in paths if path.read_text().count("\n") > 60], [])

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

    def test_parts(self):
        """Each part's end is looked at, and what is wrong is said with its name."""
        looks = [[], LabError("it does not boot"), ["a test failed"]]
        looks = [("core", str(n), mock.Mock(side_effect=[look])) for n, look in enumerate(looks)]
        wrong = ["part core, 1 kernel: it does not boot", "part core, 2 kernel: a test failed"]
        with mock.patch.object(ends, "check_each", return_value=looks):
            self.assertEqual(test.parts_alone(None, []), wrong)

    def test_variants(self):
        """A part's end runs without RUST until there is a helper, and both ways on the whole."""
        for listing, whole, expected in (
            ("", False, ["4k-norust"]),
            ("100644 blob 0\tmarks.rs", False, ["4k"]),
            ("", True, ["4k-norust", "4k"]),
        ):
            with mock.patch.object(ends.kgit, "git", return_value=listing):
                self.assertEqual(ends.variants("commit", whole), expected)


class Once(small.Small):
    """What is not looked at again."""

    def made(self, works):
        """Makes a check, which ends as it is told to if it is made; says whether it was."""
        function = mock.Mock(side_effect=[works])
        with contextlib.redirect_stdout(io.StringIO()):
            self.assertEqual(test.passes(*test.once("a check", function)), not works)
        return function.called

    def test_once(self):
        """A check is made until it passes, and again where repo or tree differ."""
        self.assertEqual([self.made(words) for words in ("no", "", "")], [True, True, False])
        self.write("new.c", "new\n")
        self.assertTrue(self.made(""))
        (self.tree / "new.c").unlink()
        self.assertFalse(self.made(""))
        for name in ("patches/0003-new.patch", "README.md"):
            (self.repo / name).write_text("new\n")
            self.assertEqual([self.made(""), self.made("")], [True, False])

    def test_change_meanwhile(self):
        """What is changed while a check is made has not passed it."""
        page = self.repo / "README.md"
        check = test.once("a check", lambda: page.write_text("new\n") and "")
        page.write_text("old\n")
        with contextlib.redirect_stdout(io.StringIO()):
            self.assertTrue(test.passes(*check))
        self.assertTrue(self.made(""))
        page.write_text("old\n")
        self.assertTrue(self.made(""))

    def test_killed_checkpatch(self):
        """A checkpatch that is killed has not passed anything."""
        self.write("scripts/checkpatch.pl", "#!/bin/sh\nkill -9 $$\n")
        for _ in range(2):
            with self.assertRaisesRegex(LabError, "checkpatch ended with -9"):
                checkpatch.remarks(self.tree, sorted(self.patches.glob("0001*.patch")))

    def test_checkpatch(self):
        """A patch that has passed is looked at again when it or checkpatch changes."""
        files = sorted(self.patches.glob("0*.patch"))
        self.assertEqual(self.looked_at(files, ["a remark"], []), files)
        self.assertEqual(self.looked_at(files, []), files[:1])
        self.assertEqual(self.looked_at(files), [])
        files[1].write_text("changed\n")
        self.assertEqual(self.looked_at(files, []), files[1:])
        self.write("scripts/checkpatch.pl", "changed\n")
        self.assertEqual(self.looked_at(files, [], []), files)

    def looked_at(self, files, *remarks):
        """Returns the patches that checkpatch looks at, where it has remarks to make."""
        with mock.patch.object(checkpatch, "patch_remarks", side_effect=remarks) as look:
            found = checkpatch.remarks(self.tree, files)
        self.assertEqual(found, [line for lines in remarks for line in lines])
        return [call.args[2] for call in look.call_args_list]
