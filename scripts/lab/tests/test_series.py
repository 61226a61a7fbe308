# SPDX-License-Identifier: GPL-2.0-only
"""Patches, mirrored folders and tree: every difference between them is noticed."""

import shutil
from unittest import mock

import base
import export
import kgit
import patches
import small
import tree
from common import LabError


class Series(small.Small):
    """The series as it was exported, and what may become of it."""

    def test_export_and_check_agree(self):
        """What was exported has nothing wrong. The cover letter keeps subject and text, and is the
        same when exported again."""
        self.assertEqual(export.check(), [])
        self.assertEqual((self.repo / "arch-arm64-kvm/new.rs").read_text(), "// New.\n")
        first = patches.cover_file().read_text()
        self.assertIn("so long that it has\n to be continued\n", first)
        self.assertIn("\nIts text.\n", first)
        self.assertIn("3 files changed", first)
        export.write()
        self.assertEqual(patches.cover_file().read_text(), first)

    def test_mirror_changed(self):
        """A mirrored file that was edited, removed or added by hand is named."""
        new, other = (self.repo / "arch-arm64-kvm" / name for name in ("new.rs", "other.rs"))
        new.write_text("// Edited.\n")
        other.write_text("")
        (self.repo / "MAINTAINERS.snippet").unlink()
        differs = "differs from what the patches produce"
        missing = "MAINTAINERS.snippet is missing: the patches add it"
        added = "arch-arm64-kvm/other.rs is not in the patches"
        self.assertEqual(export.check(), [missing, f"arch-arm64-kvm/new.rs {differs}", added])
        export.write()
        self.assertEqual((export.check(), other.exists()), ([], False))

    def test_work_that_is_not_exported(self):
        """Uncommitted changes and unexported commits are named, and apply refuses to lose them."""
        self.write("virt/kvm/kvm_main.c", "newer\n")
        self.assertEqual(tree.own_work(), "uncommitted changes")
        self.commit("More")
        self.assertEqual(tree.own_work(), "commits that are not exported")
        with self.assertRaisesRegex(LabError, "commits that are not exported"):
            tree.apply()
        tree.apply(force=True)
        self.assertIn("with userfault", (self.tree / "virt/kvm/kvm_main.c").read_text())
        self.assertEqual(tree.own_work(), "")

    def test_patch_that_does_not_apply(self):
        """A patch against other content is named, and the tree stays as it was."""
        path = self.patches / "0001-KVM-Add-a-file.patch"
        path.write_text(path.read_text().replace("-line 15", "-other"))
        (wrong,) = export.check()
        self.assertIn("'KVM: Add a file' does not apply", wrong)
        before = kgit.tip()
        with self.assertRaisesRegex(LabError, "'KVM: Add a file' does not apply"):
            tree.apply()
        self.assertEqual(kgit.tip(), before)
        self.assertEqual(tree.own_work(), "")

    def test_variant(self):
        """A variant has the name and the message of its patch, or is named."""
        variant = self.add_variant()
        self.assertEqual(export.check(), [])
        name = "patches/7.2/0001-KVM-Add-a-file.patch"
        wrong = f"{name} is not a patch of the series with the same message"
        variant.write_text(variant.read_text().replace("Assisted-by", "Signed-off-by"))
        self.assertEqual(export.check(), [wrong])
        variant.rename(variant.with_name("0003-Another.patch"))
        self.assertEqual(export.check(), [wrong.replace("0001-KVM-Add-a-file", "0003-Another")])

    def test_variant_is_numbered(self):
        """A variant follows its patch to another place in the series, and keeps its diff."""
        self.add_variant()
        self.git("checkout", "--quiet", "--detach", "base")
        self.write("virt/kvm/first.c", "first\n")
        self.commit("KVM: Come first")
        self.git("rebase", "--quiet", "--onto", "HEAD", "base", kgit.BRANCH)
        parts = "core: KVM: Come first\nentry: MAINTAINERS: Add an entry\n"
        (self.patches / "parts").write_text(parts)
        export.write()
        (variant,) = patches.variants()
        self.assertEqual(variant.name, "0002-KVM-Add-a-file.patch")
        text = variant.read_text()
        self.assertIn("\nSubject: [RFC PATCH 2/3] KVM: Add a file\n", text)
        self.assertIn("\n-line fifteen;\n", text)
        self.assertEqual(export.check(), [])

    def test_another_base(self):
        """The tree takes the base that patches/base names, and keeps work that is not exported."""
        self.git("checkout", "--quiet", "-b", "newer", "base")
        self.write("Makefile", small.MAKEFILE.replace("SUBLEVEL = 0", "SUBLEVEL = 1"))
        self.commit("Linux 7.3.1")
        newer = self.git("rev-parse", "newer")
        self.git("checkout", "--quiet", kgit.BRANCH)
        self.pin(newer, release="7.3.1", commit=newer)
        self.write("Makefile", "mine\n")
        with self.assertRaisesRegex(LabError, "uncommitted changes"):
            tree.apply()
        self.assertNotEqual(kgit.tip("base"), newer)
        self.git("checkout", "--quiet", "Makefile")
        tree.apply()
        self.assertEqual(kgit.tip("base"), newer)
        self.assertTrue(kgit.is_ancestor("base", kgit.BRANCH))
        self.assertEqual(export.check(), [])

    def test_base_of_a_package(self):
        """A tree that is not there is made from the source package."""
        source = self.root / "source"
        self.tree.rename(source)
        self.git("checkout", "--quiet", "base", tree=source)
        (source / "scripts/checkpatch.pl").unlink()

        def unpack(_, folder):
            """Unpacks what stands for the package."""
            shutil.copytree(source, folder, ignore=shutil.ignore_patterns(".git"))

        package = mock.Mock(return_value=("linux.deb", "linux-source", "7.3-1"))
        self.replace(base, fetch=package, unpack=unpack)
        tree.apply()
        self.assertEqual(self.git("log", "-1", "--format=%s", "base"), "linux-source 7.3-1")
        self.assertEqual(self.git("rev-list", "--count", f"base..{kgit.BRANCH}"), "2")
        tree.apply()
        # It is not quite what patches/base names, but what there is: not to be made each time.
        package.assert_called_once()

    def test_killed_while_applying(self):
        """What a run leaves that is killed in the middle of 'git am' is no work of the user's."""
        tree.applying_file().touch()
        self.git("checkout", "--quiet", "--detach", "base")
        (self.tree / ".git/rebase-apply").mkdir()
        (self.tree / ".git/rebase-apply/applying").touch()
        (self.tree / ".git/rebase-apply/abort-safety").write_text("")
        self.write("virt/kvm/kvm_main.c", "half\n")
        with mock.patch.object(kgit, "git", wraps=kgit.git) as git:
            self.assertEqual(tree.own_work(), "")
        self.assertIn(mock.call("am", "--abort", tree=self.tree), git.mock_calls)
        self.assertIn("with userfault", (self.tree / "virt/kvm/kvm_main.c").read_text())
