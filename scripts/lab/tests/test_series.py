# SPDX-License-Identifier: GPL-2.0-only
"""Patches, parts, mirrored folders and tree: every difference between them is noticed."""

import os
import shutil
import threading
from unittest import mock

import base
import export
import kgit
import patches
import series
import small
import tree
from common import LabError

FIRST, SECOND = SUBJECTS = ["KVM: Add a file", "MAINTAINERS: Add an entry"]


class Series(small.Small):
    """The series as it was exported, and what may become of it."""

    def test_export_and_check_agree(self):
        """What was exported has nothing wrong. The cover letter keeps subject and text, and is the
        same when exported again."""
        self.assertEqual(export.check(), [])
        self.assertEqual((self.repo / "arch-arm64-kvm/new.rs").read_text(), "// New.\n")
        first = patches.cover_file().read_text()
        for words in ("it has\n to be continued\n", "\nIts text.\n", "3 files changed"):
            self.assertIn(words, first)
        export.write()
        self.assertEqual(patches.cover_file().read_text(), first)

    def test_nothing_to_export(self):
        """A tree that has no series yet is told so."""
        self.git("checkout", "--quiet", "--detach", "base")
        self.git("branch", "--quiet", "--delete", "--force", kgit.BRANCH)
        with self.assertRaisesRegex(LabError, "has no series"):
            series.export_patches(None)

    def test_mirror_changed(self):
        """A mirrored file that was edited, removed or added by hand is named."""
        new, other = (self.repo / "arch-arm64-kvm" / name for name in ("new.rs", "other.rs"))
        new.write_text("// Edited.\n")
        other.write_text("")
        (self.repo / "MAINTAINERS.snippet").unlink()
        differs = "arch-arm64-kvm/new.rs differs from what the patches produce"
        missing = "MAINTAINERS.snippet is missing: the patches add it"
        added = "arch-arm64-kvm/other.rs is not in the patches"
        self.assertEqual(export.check(), [missing, differs, added])
        export.write()
        self.assertEqual((export.check(), other.exists()), ([], False))

    def test_work_that_is_not_exported(self):
        """Uncommitted changes and unexported commits are named, and apply refuses to lose them."""
        self.write("virt/kvm/kvm_main.c", "newer\n")
        self.assertEqual(tree.own_work(), tree.UNCOMMITTED)
        self.commit("More")
        with self.assertRaisesRegex(LabError, tree.UNEXPORTED):
            tree.apply()
        tree.apply(force=True)
        self.assertIn("with userfault", (self.tree / "virt/kvm/kvm_main.c").read_text())
        self.assertEqual(tree.own_work(), "")

    def test_force_with_a_patch_that_does_not_apply(self):
        """What was to be thrown away for patches stays where these do not apply."""
        path = self.patches / "0001-KVM-Add-a-file.patch"
        path.write_text(path.read_text().replace("-line 15", "-other"))
        self.write("notes", "mine\n")
        self.write("virt/kvm/kvm_main.c", "mine\n")
        with self.assertRaisesRegex(LabError, "does not apply"):
            tree.apply(force=True)
        texts = [(self.tree / name).read_text() for name in ("notes", "virt/kvm/kvm_main.c")]
        self.assertEqual(texts, ["mine\n", "mine\n"])

    def test_tree_in_use(self):
        """A run that builds from the tree keeps others from changing it until it has ended."""

        def another_run():
            """Forgets what this process has of the tree."""
            tree.ready.cache_clear()
            tree.users.cache_clear()

        another_run()
        self.addCleanup(tree.ready.cache_clear)
        new = tree.ready() / "arch/arm64/kvm/new.rs"
        used, waits = tree.users(), threading.Event()
        another_run()
        self.replace(tree.time, sleep=lambda _: waits.set())
        path = self.patches / "0001-KVM-Add-a-file.patch"
        path.write_text(path.read_text().replace("+// New.", "+// Newer."))
        other = threading.Thread(target=tree.ready)
        other.start()
        self.assertTrue(waits.wait(60))
        self.assertEqual((other.is_alive(), new.read_text()), (True, "// New.\n"))
        used.close()
        other.join()
        self.assertEqual(new.read_text(), "// Newer.\n")

    def test_patch_that_does_not_apply(self):
        """A patch against other content is named, and the tree stays as it was."""
        path = self.patches / "0001-KVM-Add-a-file.patch"
        path.write_text(path.read_text().replace("-line 15", "-other"))
        self.assertRegex(export.check()[0], f"(?s){path.name}.*does not apply")
        before = kgit.tip()
        with self.assertRaisesRegex(LabError, "'KVM: Add a file' does not apply"):
            tree.apply()
        self.assertEqual((kgit.tip(), tree.own_work()), (before, ""))

    def test_variant(self):
        """A variant has the name and the message of its patch, or is named; it follows its patch to
        another place in the series, and keeps its diff."""
        variant = self.add_variant()
        self.assertEqual(export.check(), [])
        text = variant.read_text()
        variant.write_text(text.replace("Assisted-by", "Signed-off-by"))
        wrong = "patches/7.2/{} is not a patch of the series with the same message"
        self.assertEqual(export.check(), [wrong.format(variant.name)])
        other = variant.rename(variant.with_name("0003-Another.patch"))
        self.assertEqual(export.check(), [wrong.format(other.name)])
        self.git("checkout", "--quiet", "--detach", "base")
        self.write("virt/kvm/first.c", "first\n")
        self.commit("KVM: Come first")
        self.git("rebase", "--quiet", "--onto", "HEAD", "base", kgit.BRANCH)
        (self.patches / "parts").write_text(f"core: KVM: Come first\nentry: {SECOND}\n")
        export.write()
        (variant,) = patches.variants()
        self.assertEqual(variant.name, "0002-KVM-Add-a-file.patch")
        for words in ("\nSubject: [RFC PATCH 2/3] KVM: Add a file\n", "\n-line fifteen;\n"):
            self.assertIn(words, variant.read_text())
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
        with self.assertRaisesRegex(LabError, tree.UNCOMMITTED):
            tree.apply()
        self.assertNotEqual(kgit.tip("base"), newer)
        self.git("checkout", "--quiet", "Makefile")
        tree.apply()
        self.assertEqual((kgit.tip("base"), export.check()), (newer, []))
        self.assertTrue(kgit.is_ancestor("base", kgit.BRANCH))

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
        """What a run leaves that is killed while it changes files is no work of the user's."""
        commit = kgit.tip()
        kgit.note("applying").write_text(f"{patches.digest()} {commit} {commit}\n")
        (self.tree / ".git/index.lock").touch()
        self.write("virt/kvm/kvm_main.c", "half\n")
        self.assertEqual(tree.own_work(), "")
        self.assertIn("with userfault", (self.tree / "virt/kvm/kvm_main.c").read_text())

    def test_work_after_a_failure(self):
        """What was committed since applying failed stays, and is named."""
        old = self.git("rev-parse", f"{kgit.BRANCH}~")
        for note in (f"checksum {old} {kgit.tip()}\n", ""):
            kgit.note("applying").write_text(note)
            self.git("commit", "--quiet", "--allow-empty", "--message=More")
            commit = kgit.tip()
            self.assertEqual((tree.own_work(), kgit.tip()), (tree.UNEXPORTED, commit))
            self.assertFalse(kgit.note("applying").exists())

    def test_work_while_applying(self):
        """What somebody writes while patches are applied aside stays, and is named."""
        path = self.patches / "0001-KVM-Add-a-file.patch"
        path.write_text(path.read_text().replace("+// New.", "+// Newer."))
        am = kgit.am

        def am_slowly(*words):
            """Somebody writes meanwhile."""
            am(*words)
            self.write("virt/kvm/kvm_main.c", "mine\n")

        self.replace(kgit, am=am_slowly)
        with self.assertRaisesRegex(LabError, tree.UNCOMMITTED):
            tree.apply()
        self.assertEqual((self.tree / "virt/kvm/kvm_main.c").read_text(), "mine\n")

    def test_killed_while_adding_a_work_tree(self):
        """What such a run leaves is locked, and no other work tree goes."""
        mine = self.root / "mine"
        self.git("worktree", "add", "--quiet", "--detach", mine, "base")
        mine.rename(self.root / "elsewhere")
        aside = self.root / "linux.am"
        self.git("worktree", "add", "--quiet", "--lock", "--detach", aside, "base")
        shutil.rmtree(aside)
        path = self.patches / "0001-KVM-Add-a-file.patch"
        path.write_text(path.read_text().replace("+// New.", "+// Newer."))
        tree.apply()
        (self.root / "elsewhere").rename(mine)
        self.assertEqual(self.git("rev-parse", "HEAD", tree=mine), kgit.tip("base"))

    def test_times(self):
        """Other patches change only files that differ: make builds again what uses a changed one.
        """
        names = ["virt/kvm/kvm_main.c", "arch/arm64/kvm/new.rs"]
        for name in names:
            os.utime(self.tree / name, (1, 1))
        path = self.patches / "0001-KVM-Add-a-file.patch"
        path.write_text(path.read_text().replace("+// New.", "+// Newer."))
        tree.apply()
        changed = [name for name in names if (self.tree / name).stat().st_mtime != 1]
        self.assertEqual(changed, ["arch/arm64/kvm/new.rs"])

    def test_parts(self):
        """Each part begins with its first patch and ends before that of the next; a list that names
        no patch or several, has another order, or is not there, is named, and so are covers."""
        found = patches.parts([FIRST, "Another", SECOND])
        self.assertEqual(found, [patches.Part("core", 0, 2), patches.Part("entry", 2, 3)])
        first, second = small.PARTS.splitlines(keepends=True)
        for text, subjects, words in (
            (small.PARTS, [FIRST], f"'{SECOND}', which is the subject of 0 patches"),
            (small.PARTS, [*SUBJECTS, SECOND], "subject of 2 patches"),
            (second + first, SUBJECTS, "not in the order"),
            (second, SUBJECTS, "does not begin with the first patch"),
        ):
            (self.patches / "parts").write_text(text)
            self.assertRaisesRegex(LabError, words, patches.parts, subjects)
        self.assertIn("does not begin", "\n".join(export.check()))
        (self.patches / "parts").write_text(small.PARTS)
        (self.patches / "cover-core.txt").rename(self.patches / "cover-old.txt")
        missing = "cover-core.txt is missing: a part needs it"
        self.assertEqual(export.check(), [missing, "cover-old.txt is the cover letter of no part"])
