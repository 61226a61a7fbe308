# SPDX-License-Identifier: GPL-2.0-only
"""A run may die at any step, and the next one goes on: each step is made to fail once."""

import contextlib
import errno
import io
import os
import pathlib
import shutil
import subprocess
import unittest
from unittest import mock

import base
import common
import export
import kgit
import patches
import send
import sign
import small
import toolchain
import tree
from test_sign import PERSON, known_as

FULL = OSError(errno.ENOSPC, "No space left on device")


class Sturdy(unittest.TestCase):
    """Has what makes each step fail once."""

    def each_step(self, owner, name, error, operation, goes_on):
        """Fails at each call of a function, until the operation needs no more of them."""
        function = getattr(owner, name)
        for at in range(1, 100):
            calls = 0

            def dies(*words, **options):
                """Stands for the function."""
                nonlocal calls
                calls += 1
                if calls == at:
                    raise error
                return function(*words, **options)

            with mock.patch.object(owner, name, dies):
                with contextlib.suppress(OSError, KeyboardInterrupt):
                    operation()
            with self.subTest(at=at):
                goes_on()
            if calls < at:
                return at - 1
        self.fail("it has no end")


class Steps(Sturdy, small.Small):
    """What changes tree and repo, with a failure at each of its steps."""

    def test_apply(self):
        """Applying patches, killed before any git command, loses nothing and is completed."""
        path, both = self.patches / "0001-KVM-Add-a-file.patch", ["+// New.", "+// Newer."]

        def apply():
            """Applies other patches than before."""
            old, new = both if f"{both[0]}\n" in path.read_text() else reversed(both)
            path.write_text(path.read_text().replace(old, new))
            tree.apply()

        def goes_on():
            """The next run applies them."""
            tree.apply()
            text = (self.tree / "arch/arm64/kvm/new.rs").read_text()
            self.assertIn(f"+{text}", patches.patch_files()[0].read_text())
            self.assertEqual(tree.own_work(), "")

        self.assertGreater(self.each_step(kgit, "git", KeyboardInterrupt(), apply, goes_on), 2)

    def test_export(self):
        """An export that finds no room, at any file, is completed when there is some."""

        def export_other():
            """Exports other content than before."""
            self.git("commit", "--quiet", "--amend", "--allow-empty", "--no-edit", "--message=More")
            export.write()

        def goes_on():
            """The next run exports all."""
            parts = small.PARTS.replace("MAINTAINERS: Add an entry", "More")
            (self.patches / "parts").write_text(parts)
            export.write()
            self.assertEqual(export.check(), [])

        steps = self.each_step(pathlib.Path, "write_text", FULL, export_other, goes_on)
        self.assertGreater(steps, 3)

    def test_base(self):
        """A base whose commit was killed before any git command is made by the next run."""
        source, again = self.root / "source", {"dirs_exist_ok": True}
        self.git("checkout", "--quiet", "base")
        shutil.copytree(self.tree, source, ignore=shutil.ignore_patterns(".git"))
        package = mock.Mock(return_value=("linux.deb", "linux-source", "7.3-1"))
        self.replace(base, fetch=package, unpack=lambda _, to: shutil.copytree(source, to, **again))

        def make_base():
            """Makes the base of a tree that is not there."""
            shutil.rmtree(self.tree)
            tree.make_base()

        def goes_on():
            """The next run makes it, whatever the first has left."""
            tree.make_base()
            self.assertEqual(self.git("rev-parse", "base^{tree}"), base.pinned()["tree"])

        self.assertGreater(self.each_step(kgit, "git", KeyboardInterrupt(), make_base, goes_on), 5)

    def test_sign(self):
        """A signed copy is there as a whole or not at all, whatever is killed or finds no room."""

        def goes_on():
            """What is there is whole, and the next run makes one."""
            if folder := sign.latest():
                self.assertEqual(len(patches.patch_files(folder)), 2)
            self.assertEqual(sign.sign(), (PERSON, []))
            self.assertEqual(len(patches.patch_files(sign.latest())), 2)

        self.stack.enter_context(known_as(*PERSON))
        for owner, name in ((pathlib.Path, "rename"), (shutil, "copyfile"), (kgit, "git")):
            self.each_step(owner, name, FULL, sign.sign, goes_on)

    def test_send(self):
        """What a dry run has made by half when it was killed is made anew."""
        folder, step = self.root / "send", common.step
        self.replace(send, CLONE=folder / "linux", HOME=folder / "home", MAILS=folder / "mails")
        for word, half in (
            ("clone", lambda words: ["git", "init", "--quiet", words[-1]]),
            ("--new", lambda _: ["git", "-C", send.CLONE, "branch", send.Series.branch]),
            ("--output-dir", lambda _: ["touch", send.MAILS / "0009-half.eml"]),
        ):

            def dies(what, words, *more, **options):
                """Stands for a step."""
                if word in words:
                    common.output(half(words))
                    raise KeyboardInterrupt
                return step(what, words, *more, **options)

            with mock.patch.object(send, "step", dies), mock.patch.object(kgit, "step", dies):
                self.assertRaises(KeyboardInterrupt, send.dry_run)
        with contextlib.redirect_stdout(io.StringIO()):
            self.assertEqual((send.dry_run(), len(list(send.MAILS.iterdir()))), (0, 3))


class Source(Sturdy, small.Scratch):
    """The source package of the base, in the place of which is a small one."""

    def setUp(self):
        super().setUp()
        self.replace(base, SOURCES=self.folder / "sources")
        self.replace(common, CACHE=self.folder, LOGS=self.folder, say=mock.Mock())
        package, source = self.folder / "package", self.folder / "source/linux-source-7.3"
        self.deb, self.target = self.folder / "linux.deb", base.SOURCES / "linux_1.deb"
        for folder in (package / "DEBIAN", package / "usr/src", source):
            folder.mkdir(parents=True)
        control = "Package: linux\nVersion: 1\nArchitecture: all\nMaintainer: a\nDescription: a\n"
        (package / "DEBIAN/control").write_text(control)
        (source / "Makefile").write_text("all:\n" * 9999)
        (source / ".gitignore").write_text("*.o\n#\n# Debian packaging: ...\n*\n")
        archive = package / "usr/src/linux-source-7.3.tar.xz"
        common.output(["tar", "-C", source.parent, "-cJf", archive, source.name])
        common.output(["dpkg-deb", "--build", package, self.deb])

    def half_way(self):
        """Is where a download may fail."""

    def test_download(self):
        """A download that fails at any step, or half way, is made anew."""
        whole = self.deb.read_bytes()

        def apt(*_, cwd):
            """Stands for the step that downloads."""
            (cwd / "linux.deb").write_bytes(whole[:99])
            self.half_way()
            (cwd / "linux.deb").write_bytes(whole)

        def download():
            """Downloads what is not there."""
            self.target.unlink(missing_ok=True)
            base.download("linux", "1", self.target)

        def goes_on():
            """The next run has it."""
            base.download("linux", "1", self.target)
            self.assertEqual(self.target.read_bytes(), whole)

        self.replace(base, step=apt)
        for owner, name in ((self, "half_way"), (os, "replace"), (pathlib.Path, "mkdir")):
            self.assertGreater(self.each_step(owner, name, FULL, download, goes_on), 0)

    def test_unpack(self):
        """Half a package is an error and no tree; what a failure has left is not in the next."""
        half, tree_of = self.folder / "half.deb", self.folder / "linux"
        half.write_bytes(self.deb.read_bytes()[:-99])

        def unpack():
            """Fails at a half package, and unpacks a whole one."""
            with self.assertRaises(common.LabError), contextlib.redirect_stderr(io.StringIO()):
                base.unpack(half, tree_of)
            (tree_of / "left").touch()
            base.unpack(self.deb, tree_of)

        def goes_on():
            """The next run has all of it."""
            base.unpack(self.deb, tree_of)
            self.assertEqual({path.name for path in tree_of.iterdir()}, {"Makefile", ".gitignore"})
            self.assertEqual((tree_of / ".gitignore").read_text(), "*.o\n")

        self.assertGreater(self.each_step(base, "step", FULL, unpack, goes_on), 0)
        self.assertGreater(self.each_step(pathlib.Path, "write_text", FULL, unpack, goes_on), 0)


class Toolchain(small.Scratch):
    """The toolchain is there as a whole or not at all."""

    def test_killed(self):
        """One whose making was killed is made anew, by the next run."""

        def mmdebstrap(target):
            """Stands for what makes the root file system."""
            (target / "etc").mkdir(parents=True)

        root = self.folder / "toolchain"
        self.replace(toolchain, CACHE=self.folder, ROOT=root, IS_ROOT=True, GIGABYTES=0)
        self.replace(toolchain, namespace=lambda *words: words, mmdebstrap=mmdebstrap)
        self.replace(toolchain, say=mock.Mock(), need=mock.Mock())
        with mock.patch.object(pathlib.Path, "rename", side_effect=KeyboardInterrupt):
            self.assertRaises(KeyboardInterrupt, toolchain.make)
        self.assertFalse(toolchain.is_up_to_date())
        toolchain.make()
        self.assertTrue(toolchain.is_up_to_date())
        # One that is there works until another is whole.
        with mock.patch.object(toolchain, "mmdebstrap", side_effect=KeyboardInterrupt):
            self.assertRaises(KeyboardInterrupt, toolchain.make)
        self.assertTrue(toolchain.is_up_to_date())


@unittest.skipUnless(os.environ.get("KVM_USERFAULT_INSIDE"), "this is not the toolchain")
class Entered(small.Scratch):
    """Runs that are in the toolchain at the same time. This one's stands for it."""

    def setUp(self):
        super().setUp()
        self.cache, self.program = self.folder / "cache", self.folder / "program.py"
        self.cache.mkdir()
        (self.cache / "toolchain").symlink_to("/")
        self.program.write_text("for line in __import__('sys').stdin: exec(line)")

    def start(self, *words):
        """Starts a run that does what it is told."""
        env = os.environ | {"KVM_USERFAULT_CACHE": str(self.cache)}
        env.pop("KVM_USERFAULT_INSIDE")
        pipes = {name: subprocess.PIPE for name in ("stdin", "stdout", "stderr")}
        words = [common.LAB / "enter", self.program, *words]
        return subprocess.Popen(words, cwd=self.folder, env=env, text=True, **pipes)

    def test_file(self):
        """A file that is named by an argument is the user's, wherever it is."""
        with small.scratch() as elsewhere:
            path = pathlib.Path(elsewhere, "file")
            self.start("--pack", str(path)).communicate(f"open({str(path)!r}, 'w').write('packed')")
            self.assertEqual(path.read_text(), "packed")

    def test_two(self):
        """What one changes of the toolchain or deletes in /tmp is there for the other; the cache is
        not deleted as long as one uses it."""
        look = "print([path.exists() for path in own], flush=True)"
        begin = "from pathlib import Path; own = [Path('/tmp/of-a-run'), Path('/etc/of-a-run')]"
        runs, said = [self.start(), self.start()], []
        for run in runs:
            print(f"{begin}; {look}; [path.touch() for path in own]", file=run.stdin, flush=True)
            said.append(run.stdout.readline())
        refused = self.start("--delete-cache").communicate()[1]
        for run, words in zip(runs, ("[path.unlink() for path in own]", look)):
            said.append(run.communicate(words))
        if "no overlay here" in said[-1][1]:
            self.skipTest("no overlay on top of this one")
        self.assertEqual(said, ["[False, False]\n"] * 2 + [("", ""), ("[True, True]\n", "")])
        self.assertFalse(pathlib.Path("/etc/of-a-run").exists())
        self.assertIn(f"another run uses {self.cache}; nothing deleted.\n", refused)
        deleted = self.start("--delete-cache").communicate()[1]
        self.assertEqual((deleted, self.cache.exists()), (f"==> deleting {self.cache}\n", False))
