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
import series
import small
import track
import tree
from common import LabError

SUBJECT = "KVM: Do it another way"


def other(number):
    """Returns the file that the first patch changes, with another line."""
    return small.MAIN.replace(f"line {number};", f"line {number} of upstream;")


class Track(small.Small):
    """A remote whose branch starts at the base, and goes on as each test says."""

    def setUp(self):
        super().setUp()
        self.remote = self.root / "re mote"
        self.git("clone", "--quiet", "--branch=base", self.tree, self.remote)
        self.git("checkout", "--quiet", "-b", "next", tree=self.remote)
        self.before = kgit.tip()

    def upstream(self, message, **files):
        """Adds a commit to the remote's branch; a file without content is removed."""
        for name, text in files.items():
            path = self.remote / {"main": "virt/kvm/kvm_main.c"}.get(name, name)
            path.unlink() if text is None else path.write_text(text)
        self.git("commit", "--quiet", "--all", f"--message={message}", tree=self.remote)

    def track(self, **options):
        """Tracks the remote and returns (exit code, exported, what was printed)."""
        out = io.StringIO()
        options = {"remote": str(self.remote), "branch": "next"} | options
        with contextlib.redirect_stdout(out):
            code, exported = track.track(**options)
        return code, exported, out.getvalue()

    def state(self):
        """Returns what must not change unless the series is exported."""
        heads = self.git("rev-parse", "base", kgit.BRANCH)
        return heads, patches.digest(), (self.patches / "base").read_text()

    def test_newer_base(self):
        """The series is exported on a base that it fits by a merge, and the old one is kept. A base
        that is the same is not exported again, and a dry run exports nothing."""
        before = self.state()
        self.assertIn("2 patches apply to 7.3, the base that patches/base names", self.track()[2])
        makefile = small.MAKEFILE.replace("SUBLEVEL = 0", "SUBLEVEL = 1")
        self.upstream("Linux 7.3.1", Makefile=makefile, main=other(13))
        code, exported, text = self.track(dry_run=True)
        self.assertEqual((code, exported, self.state()), (0, False, before))
        self.assertIn("2 patches can be exported on 7.3.1", text)
        code, exported, text = self.track()
        self.assertEqual((code, exported, text.count("\nok ")), (0, True, 2), text)
        self.assertIn("base 7.3 -> 7.3.1", text)
        self.assertRegex(text, r"\n1: .* ! 1: ")
        main = (self.tree / "virt/kvm/kvm_main.c").read_text()
        self.assertIn("line 13 of upstream;\nline 14;\nline 15, with userfault;", main)
        pin, head = base.pinned(), self.git("rev-parse", "next", tree=self.remote)
        self.assertEqual((pin["release"], pin["commit"]), ("7.3.1", head))
        # The path of a local repository is nobody else's business.
        self.assertNotIn("re mote", (self.patches / "base").read_text())
        self.assertEqual(export.check(), [])
        self.assertEqual(self.git("rev-parse", track.BEFORE), self.before)

    def test_conflicts(self):
        """Each conflict is named by patch and file, the patches after it are tried, and nothing
        changes."""
        self.write("arch/arm64/kvm/new.rs", "// Newer.\n")
        self.commit("KVM: Go on")
        export.write()
        before = self.state()
        self.upstream(SUBJECT, main=other(15), MAINTAINERS=None)
        code, exported, text = self.track()
        self.assertEqual((code, exported, self.state()), (1, False, before))
        for words in (
            "CONFLICT   1 KVM: Add a file\n             CONFLICT (content): Merge conflict in ",
            "CONFLICT   2 MAINTAINERS: Add an entry\n             CONFLICT (modify/delete): MAINT",
            "ok         3 KVM: Go on",
            f"rebase --onto {track.NEW} base {kgit.BRANCH}",
        ):
            self.assertIn(words, text)

    def test_variant(self):
        """Where a patch has a variant that fits, it is taken, and named by its folder."""
        self.add_variant()
        self.upstream(SUBJECT, main=small.MAIN.replace("line 15;", "line XV;"))
        self.assertEqual(self.track()[0], 1)
        self.upstream(SUBJECT, main=small.MAIN.replace("line 15;", "line fifteen;"))
        code, exported, text = self.track()
        self.assertIn("7.2        1 KVM: Add a file\nok         2 MAINTAINERS", text)
        self.assertEqual((code, exported), (0, True))
        self.assertIn("line 15, with userfault;", (self.tree / "virt/kvm/kvm_main.c").read_text())

    def test_rebased_by_hand(self):
        """After a rebase by hand the series is exported on the base it is on by then."""
        self.upstream(SUBJECT, main=other(15))
        self.track()
        self.assertFalse(track.on_another_base())
        with self.assertRaises(LabError):
            self.git("rebase", "--quiet", "--onto", track.NEW, "base", kgit.BRANCH)
        self.assertRaisesRegex(LabError, "uncommitted changes", self.track)
        resolved = small.MAIN.replace("line 15;", "line 15 of upstream, with userfault;")
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
        self.upstream(SUBJECT, main=other(13))
        for module, name in ((tree, "set_base"), (export, "write")):
            with mock.patch.object(module, name, side_effect=KeyboardInterrupt):
                self.assertRaises(KeyboardInterrupt, self.track)
            if name == "set_base":
                self.assertEqual(self.track()[:2], (0, True))
                self.upstream("KVM: More", main=small.MAIN)
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
        """A branch that is not there, and a tree of something else are errors."""
        with self.assertRaisesRegex(LabError, "the step 'fetching other of"):
            self.track(branch="other")
        self.upstream("Something else", main=None)
        self.assertRaisesRegex(LabError, "not a kernel source tree", self.track)

    def test_package(self):
        """A source package of Debian is a base like any other, and is pinned."""
        makefile = small.MAKEFILE.replace("SUBLEVEL = 0", "SUBLEVEL = 9")
        self.upstream("Linux 7.3.9", Makefile=makefile)
        commit = self.git("rev-parse", "next", tree=self.remote)
        self.git("fetch", "--quiet", self.remote, "next")
        (self.root / "linux-source_7.3.9-1.deb").write_text("a package")
        found = mock.Mock(return_value=("linux-source", "7.3.9-1", ("-oX=y",)))
        self.replace(base, SOURCES=self.root, download=mock.Mock(), find=found)
        self.replace(tree, commit_source=mock.Mock(return_value=commit))
        self.assertEqual(self.track(debian="7.3.9")[:2], (0, True))
        self.assertEqual(base.download.call_args.args[-1], "-oX=y")
        pin = base.pinned()
        self.assertEqual((pin["release"], pin["version"]), ("7.3.9", "7.3.9-1"))


class Tests(unittest.TestCase):
    """scripts/test runs when the series was exported, and only then."""

    def test_after_an_export(self):
        """The result is that of the tests, where there were any."""
        for result, words, expected in (
            ((0, True), [], (3, ["test.py"])),
            ((0, True), ["--no-test"], (0, [])),
            ((1, False), [], (1, [])),
        ):
            argv = mock.patch.object(sys, "argv", ["series", "track", *words])
            tracked = mock.patch.object(track, "track", return_value=result)
            done, alone = mock.Mock(returncode=3), mock.patch.object(tree, "alone")
            with argv, tracked, alone, mock.patch("subprocess.run", return_value=done) as run:
                code = series.program()
            names = [pathlib.Path(call.args[0][1]).name for call in run.mock_calls]
            self.assertEqual((code, names), expected)
