# SPDX-License-Identifier: GPL-2.0-only
"""Patches, mirrored folders and tree: every difference between them is noticed.

Works on a small tree and a small repo of its own.
"""

import contextlib
import pathlib
import tempfile
import unittest
from unittest import mock

import tree
from common import LabError

COVER = """\
From 0000000000000000000000000000000000000000 Mon Sep 17 00:00:00 2001
From: KVM userfault series <series@kvm-userfault.invalid>
Date: Thu, 1 Jan 2026 00:00:00 +0000
Subject: [RFC PATCH 0/1] A cover letter whose subject is so long that it has to
 be continued

Its text.
"""


class Series(unittest.TestCase):
    """A series of one patch that adds a file and changes another."""

    def setUp(self):
        stack = contextlib.ExitStack()
        self.addCleanup(stack.close)
        root = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        self.repo, self.tree = root / "repo", root / "linux"
        self.patches = self.repo / "patches"
        for name, value in {
            "CACHE": root,
            "LOGS": root / "log",
            "REPO": self.repo,
            "PATCHES": self.patches,
            "TREE": self.tree,
        }.items():
            stack.enter_context(mock.patch.object(tree, name, value))
        stack.enter_context(mock.patch.object(tree, "say"))
        self.git = lambda *words: tree.git(*words, date=tree.BASE_DATE)

        self.patches.mkdir(parents=True)
        (self.patches / "0000-cover-letter.txt").write_text(COVER)
        self.write("MAINTAINERS", "old\n")
        self.git("init", "--quiet", "--initial-branch=base")
        self.commit("base")
        self.git("checkout", "--quiet", "-b", tree.BRANCH)
        self.write("arch/arm64/kvm/new.rs", "// New.\n")
        self.write("MAINTAINERS", "new\n")
        self.commit("Add a file")
        tree.export()

    def write(self, name, text):
        """Writes a file of the tree."""
        path = self.tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def commit(self, message):
        """Commits all that is in the tree."""
        self.git("add", "--all")
        self.git("commit", "--quiet", f"--message={message}")

    def test_export_and_check_agree(self):
        """What was exported has nothing wrong."""
        self.assertEqual(tree.check(), [])
        self.assertTrue((self.patches / "0001-Add-a-file.patch").exists())
        self.assertEqual((self.repo / "arch-arm64-kvm/new.rs").read_text(), "// New.\n")

    def test_cover_letter_is_kept(self):
        """The cover letter keeps subject and text, and is the same when exported again."""
        first = tree.cover_file().read_text()
        self.assertIn("so long that it has\n to be continued\n", first)
        self.assertIn("\nIts text.\n", first)
        self.assertIn("2 files changed", first)
        tree.export()
        self.assertEqual(tree.cover_file().read_text(), first)

    def test_mirror_changed(self):
        """A mirrored file that was edited, removed or added by hand is named."""
        (self.repo / "arch-arm64-kvm/new.rs").write_text("// Edited.\n")
        (self.repo / "arch-arm64-kvm/other.rs").write_text("")
        self.assertEqual(
            tree.check(),
            [
                "arch-arm64-kvm/new.rs differs from what the patches produce",
                "arch-arm64-kvm/other.rs is not in the patches",
            ],
        )
        (self.repo / "arch-arm64-kvm/other.rs").unlink()
        (self.repo / "arch-arm64-kvm/new.rs").unlink()
        self.assertEqual(tree.check(), ["arch-arm64-kvm/new.rs is missing: the patches add it"])

    def test_work_that_is_not_exported(self):
        """Uncommitted changes and unexported commits are named, and apply refuses to lose them."""
        self.write("MAINTAINERS", "newer\n")
        self.assertEqual(tree.own_work(), "uncommitted changes")
        self.commit("More")
        self.assertEqual(tree.own_work(), "commits that are not exported")
        with self.assertRaisesRegex(LabError, "commits that are not exported"):
            tree.apply()
        tree.apply(force=True)
        self.assertEqual((self.tree / "MAINTAINERS").read_text(), "new\n")
        self.assertEqual(tree.own_work(), "")

    def test_patch_that_does_not_apply(self):
        """A patch against other content is named, and the tree stays as it was."""
        path = self.patches / "0001-Add-a-file.patch"
        path.write_text(path.read_text().replace("-old", "-other"))
        (wrong,) = tree.check()
        self.assertIn("'Add a file' does not apply", wrong)
        before = tree.tip()
        with self.assertRaisesRegex(LabError, "'Add a file' does not apply"):
            tree.apply()
        self.assertEqual(tree.tip(), before)
        self.assertEqual(tree.own_work(), "")


    def test_killed_while_applying(self):
        """What a run leaves that is killed in the middle of 'git am' is no work of the user's."""
        tree.applying_file().touch()
        self.git("checkout", "--quiet", "--detach", "base")
        (self.tree / ".git/rebase-apply").mkdir()
        (self.tree / ".git/rebase-apply/applying").touch()
        (self.tree / ".git/rebase-apply/abort-safety").write_text("")
        self.write("MAINTAINERS", "half\n")
        with mock.patch.object(tree, "git", wraps=tree.git) as git:
            self.assertEqual(tree.own_work(), "")
        self.assertIn(mock.call("am", "--abort"), git.mock_calls)
        self.assertEqual((self.tree / "MAINTAINERS").read_text(), "new\n")


if __name__ == "__main__":
    unittest.main()
