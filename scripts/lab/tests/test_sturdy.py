# SPDX-License-Identifier: GPL-2.0-only
"""A run may die at any step, and the next one goes on: each step is made to fail once."""

import contextlib
import errno
import pathlib
from unittest import mock

import export
import kgit
import patches
import small
import toolchain
import tree

FULL = OSError(errno.ENOSPC, "No space left on device")


class Steps(small.Small):
    """What changes tree and repo, with a failure at each of its steps."""

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
