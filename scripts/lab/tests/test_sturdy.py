# SPDX-License-Identifier: GPL-2.0-only
"""A run may die at any step, and the next one goes on: each step is made to fail once."""

import errno
import pathlib
import unittest
from unittest import mock

import export
import kgit
import patches
import small
import toolchain
import tree

FULL = OSError(errno.ENOSPC, "No space left on device")


class Dies:
    """Stands for a function, and fails at one of its calls, before or in the middle of it."""

    def __init__(self, function, at, error):
        self.function, self.at, self.error, self.calls = function, at, error, 0

    def __call__(self, *words, **options):
        self.calls += 1
        if self.calls == self.at:
            raise self.error
        return self.function(*words, **options)


class Steps(small.Small):
    """What changes tree and repo, with a failure at each of its steps."""

    def each_step(self, owner, name, error, operation, goes_on):
        """Fails at each call of a function, until the operation needs no more of them."""
        for at in range(1, 100):
            dies = Dies(getattr(owner, name), at, error)
            with mock.patch.object(owner, name, lambda *a, _d=dies, **k: _d(*a, **k)):
                try:
                    operation()
                except (OSError, KeyboardInterrupt):
                    pass
            goes_on(at)
            if dies.calls < at:
                return at - 1
        self.fail("it has no end")

    def change(self):
        """Makes the patches newer than the tree."""
        path = self.patches / "0001-KVM-Add-a-file.patch"
        text = path.read_text()
        path.write_text(text.replace("+// New.", "+// Newer." if "+// New." in text else "+// New."))

    def test_apply(self):
        """Applying patches, killed before any git command, loses nothing and is completed."""

        def apply():
            """Applies other patches than before."""
            self.change()
            tree.apply()

        def goes_on(at):
            """The next run applies them."""
            with self.subTest(at=at):
                tree.apply()
                want = "Newer" if "+// Newer." in patches.patch_files()[0].read_text() else "New"
                text = (self.tree / "arch/arm64/kvm/new.rs").read_text()
                self.assertEqual((text, tree.own_work()), (f"// {want}.\n", ""))

        self.assertGreater(self.each_step(kgit, "git", KeyboardInterrupt(), apply, goes_on), 2)

    def test_export(self):
        """An export that finds no room, at any file, is completed when there is some."""

        def export_other():
            """Exports other content than before."""
            self.git("commit", "--quiet", "--amend", "--allow-empty", "--no-edit", "--message=More")
            export.write()

        def goes_on(at):
            """The next run exports all."""
            with self.subTest(at=at):
                parts = small.PARTS.replace("MAINTAINERS: Add an entry", "More")
                (self.patches / "parts").write_text(parts)
                export.write()
                self.assertEqual(export.check(), [])

        steps = self.each_step(pathlib.Path, "write_text", FULL, export_other, goes_on)
        self.assertGreater(steps, 3)


class Toolchain(unittest.TestCase):
    """The toolchain is there as a whole or not at all."""

    def test_killed(self):
        """One whose making was killed is made anew, by the next run."""
        with small.scratch() as name:
            cache = pathlib.Path(name)

            def mmdebstrap(target):
                """Stands for what makes the root file system."""
                (target / "etc").mkdir(parents=True)

            values = {"CACHE": cache, "ROOT": cache / "toolchain", "IS_ROOT": True, "GIGABYTES": 0}
            values |= {"namespace": lambda *words: list(words), "mmdebstrap": mmdebstrap}
            values |= {"say": mock.Mock(), "need": mock.Mock()}
            patcher = mock.patch.multiple(toolchain, **values)
            patcher.start()
            self.addCleanup(patcher.stop)
            with mock.patch.object(pathlib.Path, "rename", side_effect=KeyboardInterrupt):
                self.assertRaises(KeyboardInterrupt, toolchain.make)
            self.assertFalse(toolchain.is_up_to_date())
            toolchain.make()
            self.assertTrue(toolchain.is_up_to_date())
