# SPDX-License-Identifier: GPL-2.0-only
"""The series on a kernel tree of the user's, which stays as it is."""

from unittest import mock

import common
import kgit
import small
import user_tree
from common import LabError

UNRELATED = small.MAIN.replace("line 2;", "line two;\nand more;")


class UserTree(small.Small):
    """A checkout with unrelated changes in the files that the series touches."""

    def setUp(self):
        super().setUp()
        self.user = self.root / "my kernel"
        self.git("clone", "--quiet", "--branch=base", self.tree, self.user)
        self.change(self.user, "virt/kvm/kvm_main.c", UNRELATED)
        self.change(self.user, "MAINTAINERS", f"A new line.\n{small.MAINTAINERS}")

    def change(self, tree, name, text):
        """Commits another content of a file."""
        (tree / name).write_text(text)
        self.git("commit", "--quiet", "--all", "--message=More", tree=tree)

    def check(self, user, main=UNRELATED):
        """Applies the series to a tree and looks at what came of it."""
        before = self.git("for-each-ref", tree=user), self.git("status", "--short", tree=user)
        clone = user_tree.user_tree(user)
        expected = main.replace("line 15;", "line 15, with userfault;")
        self.assertEqual((clone / "virt/kvm/kvm_main.c").read_text(), expected)
        self.assertEqual(self.git("rev-list", "--count", "HEAD~2..", tree=clone), "2")
        after = self.git("for-each-ref", tree=user), self.git("status", "--short", tree=user)
        self.assertEqual(after, before)

    def test_shallow_clone(self):
        """Unrelated changes are merged. A shallow clone is enough, even where it lacks what a
        three-way merge needs."""
        self.check(self.user)
        shallow = self.root / "shallow"
        self.git("clone", "--quiet", "--depth=1", f"file://{self.user}", shallow)
        self.check(shallow)
        near = UNRELATED.replace("line 13;", "line thirteen;")
        self.change(shallow, "virt/kvm/kvm_main.c", near)
        self.check(shallow, near)

    def test_killed(self):
        """What a run leaves that is killed while it clones, or applies patches, is in nobody's
        way."""

        def dies(_, words, *more, **options):
            """Stands for a step."""
            common.output(["git", "init", "--quiet", words[-1]])
            raise KeyboardInterrupt

        with mock.patch.object(kgit, "step", dies):
            self.assertRaises(KeyboardInterrupt, user_tree.user_tree, self.user)
        self.check(self.user)
        (clone,) = (self.root / "trees").iterdir()
        small.half_am(clone)
        self.change(self.user, "Makefile", f"{small.MAKEFILE}# more\n")
        self.check(self.user)

    def test_conflict(self):
        """A patch that does not fit is named, unless it has a variant that does."""
        text = UNRELATED.replace("line 15;", "line fifteen;")
        self.change(self.user, "virt/kvm/kvm_main.c", text)
        with self.assertRaisesRegex(LabError, "'KVM: Add a file' does not apply"):
            user_tree.user_tree(self.user)
        self.add_variant()
        self.check(self.user, UNRELATED)

    def test_refused(self):
        """A folder that is no kernel, one that is no git checkout, and one with uncommitted changes
        are refused, and stay."""
        (self.user / "Makefile").write_text("mine\n")
        for folder, words in (
            (self.user, "uncommitted changes: commit or stash them first"),
            (self.root, "not a kernel source tree"),
        ):
            self.assertRaisesRegex(LabError, words, user_tree.user_tree, folder)
        self.assertEqual((self.user / "Makefile").read_text(), "mine\n")
        (self.user / ".git").rename(self.root / "elsewhere")
        self.assertRaisesRegex(LabError, "not a git checkout", user_tree.user_tree, self.user)
