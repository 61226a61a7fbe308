# SPDX-License-Identifier: GPL-2.0-only
"""The series on a base that has moved on: what is exported, what is named, and what is kept."""

import contextlib
import io
import pathlib
import sys
import unittest
from unittest import mock

import base
import export
import kgit
import patches
import rebase
import series
import small
import track
import tree
from common import LabError

SUBJECT = "KVM: Do it another way"


class Track(small.Small):
    """A remote whose branch starts at the base, and goes on as each test says."""

    def setUp(self):
        super().setUp()
        self.replace(track, say=mock.Mock())
        self.remote = self.root / "re mote"
        self.git("clone", "--quiet", "--branch=base", self.tree, self.remote)
        self.git("checkout", "--quiet", "-b", "next", tree=self.remote)
        self.before = kgit.tip()

    def upstream(self, message, **files):
        """Adds a commit to the remote's branch; a file without content is removed."""
        for name, text in files.items():
            path = self.remote / {"main": "virt/kvm/kvm_main.c"}.get(name, name)
            if text is None:
                path.unlink()
            else:
                path.write_text(text)
        self.git("commit", "--quiet", "--all", f"--message={message}", tree=self.remote)

    def track(self, **options):
        """Tracks the remote and returns (exit code, exported, what was printed)."""
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            code, exported = track.track(remote=str(self.remote), branch="next", **options)
        return code, exported, out.getvalue()

    def state(self):
        """Returns what must not change unless the series is exported."""
        heads = self.git("rev-parse", "base", kgit.BRANCH)
        return heads, patches.digest(), (self.patches / "base").read_text()

    def test_same_base(self):
        """A base that is the same is not exported again."""
        before = self.state()
        code, exported, text = self.track()
        self.assertEqual((code, exported), (0, False))
        self.assertIn("2 patches apply to 7.3, the base that patches/base names", text)
        self.assertEqual(self.state(), before)

    def test_newer_base(self):
        """The series is exported on a base that it fits, and the old one is kept."""
        makefile = small.MAKEFILE.replace("SUBLEVEL = 0", "SUBLEVEL = 1")
        self.upstream("Linux 7.3.1", Makefile=makefile)
        code, exported, text = self.track()
        self.assertEqual((code, exported), (0, True), text)
        self.assertIn("base 7.3 -> 7.3.1", text)
        self.assertEqual(text.count("\nok "), 2)
        pin, head = base.pinned(), self.git("rev-parse", "next", tree=self.remote)
        self.assertEqual((pin["release"], pin["commit"]), ("7.3.1", head))
        # The path of a local repository is nobody else's business.
        self.assertNotIn("re mote", (self.patches / "base").read_text())
        self.assertEqual(export.check(), [])
        self.assertEqual(self.git("rev-parse", track.BEFORE), self.before)

    def test_dry_run(self):
        """A dry run says what can be exported, and exports nothing."""
        self.upstream(SUBJECT, main=small.MAIN.replace("line 1;", "line one;"))
        before = self.state()
        code, exported, text = self.track(dry_run=True)
        self.assertEqual((code, exported), (0, False))
        self.assertIn("2 patches can be exported on 7.3", text)
        self.assertEqual(self.state(), before)

    def test_three_way(self):
        """A patch whose context has changed needs a three-way merge, and gets one."""
        self.upstream(SUBJECT, main=small.MAIN.replace("line 13;", "line thirteen;"))
        _, exported, text = self.track()
        self.assertIn("3-way      1 KVM: Add a file\nok         2 MAINTAINERS", text)
        self.assertTrue(exported)
        main = (self.tree / "virt/kvm/kvm_main.c").read_text()
        self.assertIn("line thirteen;\nline 14;\nline 15, with userfault;", main)
        self.assertEqual(export.check(), [])

    def test_conflict(self):
        """A conflict names file, hunk, both changes and the commit, and changes nothing."""
        self.upstream("KVM: Not that one", main=small.MAIN.replace("line 1;", "line one;"))
        both = small.MAIN.replace("line 1;", "line one;").replace("line 15;", "line fifteen;")
        self.upstream(SUBJECT, main=both)
        self.upstream("KVM: Nor that", main=both.replace("line 30;", "line thirty;"))
        before = self.state()
        code, exported, text = self.track()
        self.assertEqual((code, exported), (1, False))
        head = self.git("log", "-1", "--format=%H", "next^", tree=self.remote)[:12]
        for line in (
            "CONFLICT   1 KVM: Add a file",
            "virt/kvm/kvm_main.c @@ -12,7 +12,7 @@ line 11;",
            "+line 15, with userfault;",
            "7.3, against 7.3:",
            "+line fifteen;",
            f"{head} {SUBJECT}",
            "the first conflict: patch 1, virt/kvm/kvm_main.c @@ -12,7 +12,7 @@",
        ):
            self.assertIn(line, text)
        self.assertNotIn("that one", text)
        self.assertNotIn("Nor that", text)
        # The patches after it are tried as well.
        self.assertIn("ok         2 MAINTAINERS", text)
        self.assertEqual(self.state(), before)

    def test_variant(self):
        """Where a patch has a variant that fits, it is taken, and named by its folder."""
        self.add_variant()
        self.upstream(SUBJECT, main=small.MAIN.replace("line 15;", "line fifteen;"))
        code, exported, text = self.track()
        self.assertIn("7.2        1 KVM: Add a file\nok         2 MAINTAINERS", text)
        self.assertEqual((code, exported), (0, True))
        self.assertIn("line 15, with userfault;", (self.tree / "virt/kvm/kvm_main.c").read_text())

    def test_variant_that_does_not_fit(self):
        """A variant for another base changes nothing about a conflict."""
        self.add_variant()
        self.upstream(SUBJECT, main=small.MAIN.replace("line 15;", "line XV;"))
        code, _, text = self.track()
        self.assertEqual(code, 1)
        self.assertIn("+line XV;", text)

    def test_source_without_history(self):
        """Where there is no history the lines that differ still say why."""
        main = small.MAIN.replace("line 15;", "line fifteen;")
        self.git("checkout", "--quiet", "--orphan", "other", tree=self.remote)
        self.git("branch", "--quiet", "--delete", "--force", "next", tree=self.remote)
        self.git("checkout", "--quiet", "-b", "next", tree=self.remote)
        self.upstream("A source package", main=main)
        _, _, text = self.track()
        self.assertIn("+line fifteen;", text)
        self.assertIn("not known, this source has no history", text)

    def test_file_that_is_gone(self):
        """A file that the new base does not have is named as a whole."""
        self.upstream("MAINTAINERS: No more", MAINTAINERS=None)
        _, _, text = self.track()
        self.assertIn("CONFLICT   2 MAINTAINERS: Add an entry", text)
        self.assertIn("MAINTAINERS\n               7.3 does not have this file", text)

    def test_later_patch_on_a_conflict(self):
        """A patch that builds on a hunk in conflict is not named for that."""
        text = (self.tree / "virt/kvm/kvm_main.c").read_text()
        self.write("virt/kvm/kvm_main.c", text.replace("with userfault;", "with userfault, too;"))
        self.commit("KVM: Build on it")
        export.write()
        self.upstream(SUBJECT, main=small.MAIN.replace("line 15;", "line fifteen;"))
        _, _, text = self.track()
        self.assertIn("hunks that need a hand on 7.3: 1\n", text)
        self.assertIn("ok         3 KVM: Build on it", text)

    def test_rebased_by_hand(self):
        """After a rebase by hand the series is exported on the base it is on by then."""
        self.upstream(SUBJECT, main=small.MAIN.replace("line 15;", "line fifteen;"))
        self.track()
        self.assertFalse(track.on_another_base())
        with self.assertRaises(LabError):
            self.git("rebase", "--quiet", "--onto", track.NEW, "base", kgit.BRANCH)
        with self.assertRaisesRegex(LabError, "uncommitted changes"):
            self.track()
        resolved = small.MAIN.replace("line 15;", "line fifteen, with userfault;")
        self.write("virt/kvm/kvm_main.c", resolved)
        self.git("add", "--all")
        self.git("-c", "core.editor=true", "rebase", "--continue")
        self.assertTrue(track.on_another_base())
        # What upstream has done since is for another time.
        self.upstream("KVM: Later", main=small.MAIN.replace("line 15;", "line xv;"))
        code, exported, _ = self.track()
        self.assertEqual((code, exported), (0, True))
        self.assertEqual((self.tree / "virt/kvm/kvm_main.c").read_text(), resolved)
        self.assertEqual(export.check(), [])
        self.assertEqual(self.git("rev-parse", track.BEFORE), self.before)

    def test_killed_while_exporting(self):
        """A run that is killed at any point of the move is completed by the next."""
        self.upstream(SUBJECT, main=small.MAIN.replace("line 13;", "line thirteen;"))
        for module, name in ((tree, "set_base"), (export, "write")):
            with mock.patch.object(module, name, side_effect=KeyboardInterrupt):
                self.assertRaises(KeyboardInterrupt, self.track)
            self.assertEqual(self.git("rev-parse", track.BEFORE), self.before)
            if name == "set_base":
                self.assertEqual(self.track()[:2], (0, True))
                self.assertEqual(export.check(), [])
                self.upstream("KVM: More", main=small.MAIN.replace("line 13;", "line xiii;"))
                self.before = kgit.tip()
        self.assertEqual(tree.own_work(), tree.UNEXPORTED)
        export.write()
        self.assertEqual(export.check(), [])

    def test_work_that_is_not_exported(self):
        """Work of the user's, in the tree or in the repo, is not moved along or lost."""
        self.write("arch/arm64/kvm/new.rs", "// Mine.\n")
        self.assertRaisesRegex(LabError, "uncommitted changes", self.track)
        self.commit("KVM: Mine")
        self.assertRaisesRegex(LabError, "not exported", self.track)
        export.write()
        (self.repo / "arch-arm64-kvm/new.rs").write_text("// Mine, in the repo.\n")
        self.assertRaisesRegex(LabError, "new.rs differs", self.track)

    def test_bad_remote(self):
        """No repository, a branch that it lacks, and a tree of something else are errors."""
        with self.assertRaisesRegex(LabError, "has no branch other"):
            track.track(remote=str(self.remote), branch="other")
        with self.assertRaisesRegex(LabError, "cannot read"):
            track.track(remote=str(self.root / "nothing"))
        self.upstream("Something else", main=None)
        self.assertRaisesRegex(LabError, "not a kernel source tree", self.track)

    def test_shallow_remote(self):
        """A shallow clone serves as a remote, and so does a history that starts at a tag."""
        self.upstream(SUBJECT, main=small.MAIN.replace("line 15;", "line fifteen;"))
        url, shallow = f"file://{self.remote}", self.root / "shallow"
        self.git("clone", "--quiet", "--depth=1", "--branch=next", url, shallow)
        full, self.remote = self.remote, shallow
        self.assertIn("has no history", self.track()[2])
        self.remote = full
        self.git("tag", "v7.3", "next^", tree=full)
        self.assertIn(SUBJECT, self.track()[2])

    def test_without_network(self):
        """Without network Debian is asked, whose newest source may be no newer."""
        out = io.StringIO()
        newest = mock.patch.object(base, "newest", return_value=("linux-source", "7.3~rc7-1", ()))
        with newest, contextlib.redirect_stdout(out):
            self.assertEqual(track.track(), (0, False))
        self.assertIn("Debian has no kernel source newer than 7.3", out.getvalue())

    def test_newer_package(self):
        """A newer source package of Debian is a base like any other, and is pinned."""
        makefile = small.MAKEFILE.replace("SUBLEVEL = 0", "SUBLEVEL = 9")
        self.upstream("Linux 7.3.9", Makefile=makefile)
        commit = self.git("rev-parse", "next", tree=self.remote)
        self.git("fetch", "--quiet", self.remote, "next")
        (self.root / "linux-source_7.3.9-1.deb").write_text("a package")
        self.replace(base, SOURCES=self.root, download=mock.Mock())
        self.replace(base, newest=mock.Mock(return_value=("linux-source", "7.3.9-1", ("-oX=y",))))
        self.replace(tree, commit_source=mock.Mock(return_value=commit))
        with contextlib.redirect_stdout(io.StringIO()):
            self.assertEqual(track.track(), (0, True))
        self.assertEqual(base.download.call_args.args[-1], "-oX=y")
        pin = base.pinned()
        self.assertEqual((pin["release"], pin["version"]), ("7.3.9", "7.3.9-1"))
        self.assertEqual(pin["sha256"], base.sha256(self.root / "linux-source_7.3.9-1.deb"))


class Tests(small.Small):
    """scripts/test runs when the series was exported, and only then."""

    def program(self, result, *words):
        """Runs scripts/series track with a result of track(), and returns what else was run."""
        argv = mock.patch.object(sys, "argv", ["series", "track", *words])
        tracked = mock.patch.object(track, "track", return_value=result)
        done = mock.Mock(returncode=3)
        with argv, tracked, mock.patch("subprocess.run", return_value=done) as run:
            return series.program(), [pathlib.Path(call.args[0][1]).name for call in run.mock_calls]

    def test_after_an_export(self):
        """The result is that of the tests."""
        self.assertEqual(self.program((0, True)), (3, ["test.py"]))
        self.assertEqual(self.program((0, True), "--no-test"), (0, []))

    def test_without_an_export(self):
        """What did not change is not tested again."""
        self.assertEqual(self.program((0, False)), (0, []))
        self.assertEqual(self.program((1, False)), (1, []))


class Collisions(small.Small):
    """Which changes of two sides collide: git itself is the oracle."""

    def test_agrees_with_git(self):
        """Git finds a conflict exactly where a hunk is named."""
        commit = self.git("rev-parse", f"{kgit.BRANCH}^")
        self.git("checkout", "--quiet", "--detach", "base")
        for number in range(12, 19):
            for new in ("", f"line {number};\nmore;\n", f"more;\nline {number};\n", "other;\n"):
                main = small.MAIN.replace(f"line {number};\n", new)
                self.write("virt/kvm/kvm_main.c", main)
                self.commit("KVM: Something")
                with self.subTest(number=number, new=new):
                    _, files = rebase.merge(commit, "HEAD")
                    bases = rebase.Bases("base", "HEAD", "new")
                    found = rebase.collisions(commit, "HEAD", "virt/kvm/kvm_main.c", bases)
                    hunks = [collision for collision in found if collision.hunk]
                    self.assertEqual(len(hunks), len(files))
                self.git("checkout", "--quiet", "--force", "--detach", "base")


if __name__ == "__main__":
    unittest.main()
