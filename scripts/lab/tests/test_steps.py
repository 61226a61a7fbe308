# SPDX-License-Identifier: GPL-2.0-only
"""What the check of each patch makes of what the compiler and other tools say."""

import contextlib
import pathlib
import tempfile
import unittest
from unittest import mock

import steps
from common import LabError

BASE = "a.c:7: warning: as ever\n"


class StandIn(steps.Build):
    """A build whose make has answers, where one that is an error is raised."""

    def __init__(self, answers):
        self.path, self.old, self.configure = None, set(), mock.Mock()
        self.make = mock.Mock(side_effect=answers)


class FirstBuild(unittest.TestCase):
    """The build that most is looked at in, of two patches, with stand-ins for the tools."""

    def results(self, logs, rust=(), checker="sparse"):
        """Returns {(number, column): remarks}, where a log that is an error is raised."""
        replaced = {
            "overlays": mock.Mock(return_value=contextlib.nullcontext()),
            "commits": mock.Mock(return_value=[("one", "One"), ("two", "Two")]),
            "files": mock.Mock(return_value=["arch/arm64/kvm/userfault.rs"]),
            "nvhe_symbols": mock.Mock(return_value={"symbol"}),
            "rust_remarks": mock.Mock(side_effect=[*rust, [], []]),
            "Build": mock.Mock(return_value=StandIn([BASE, *logs])),
            "say": mock.Mock(),
            "sparse": mock.Mock(find=mock.Mock(return_value=checker)),
        }
        with contextlib.ExitStack() as stack:
            for name, stand_in in replaced.items():
                stack.enter_context(mock.patch.object(steps, name, stand_in))
            stack.enter_context(mock.patch.object(steps.kgit, "git"))
            stack.enter_context(mock.patch.object(steps.patches, "touched_files", return_value=[]))
            stack.enter_context(mock.patch.object(steps.patches, "patch_files", return_value="12"))
            stack.enter_context(mock.patch("checkpatch.patch_remarks", return_value=[]))
            found = steps.first_build({0, 1}, None)
            return {(number, column): wrong for number, column, wrong in found}

    def test_nothing_new(self):
        """What the base has to say for itself is not held against a patch, wherever it moved."""
        found = self.results([BASE, "a.c:9: warning: as ever\n"])
        self.assertEqual(set(map(tuple, found.values())), {()})
        self.assertIn((1, "sparse"), found)

    def test_warning(self):
        """A new warning fails its patch, and what is left of it is not looked at."""
        found = self.results(["a.c:3: warning: new\n", BASE])
        self.assertEqual(found[0, "4k"], ["a.c: warning: new"])
        self.assertNotIn((0, "nVHE"), found)
        self.assertEqual(found[1, "4k"], [])

    def test_without_sparse(self):
        """Without sparse its column is empty, and warnings of the compiler count all the same."""
        found = self.results(["a.c:3: warning: new\n", BASE], checker=None)
        self.assertTrue(found[0, "4k"])
        self.assertFalse([column for _, column in found if column == "sparse"])

    def test_failure(self):
        """A patch that does not build, or a tool that fails, does not end the run."""
        found = self.results([LabError("no"), BASE], rust=[LabError("style")])
        self.assertEqual((found[0, "4k"], found[1, "Rust"]), (["no"], ["style"]))


class Remembered(unittest.TestCase):
    """What has passed is not looked at again until what it depends on changes."""

    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.patch = pathlib.Path(scratch.name, "0001-One.patch")
        self.patch.write_text("a patch\n")
        self.source = "one"
        for name, stand_in in {
            "steps.CACHE": pathlib.Path(scratch.name),
            "steps.commits": lambda: [("one", "One")],
            "steps.columns": lambda commit: ["checkpatch", "4k", "16k"],
            "steps.content": lambda commit, without: self.source if commit == "one" else commit,
            "steps.patches.patch_files": lambda: [self.patch],
        }.items():
            patcher = mock.patch(name, stand_in)
            patcher.start()
            self.addCleanup(patcher.stop)

    def looked_at(self, *failing):
        """Checks the patch and returns the columns that it was looked at in."""
        looked = []

        def build(columns, numbers):
            """Stands for a build that looks at some columns."""
            for number in numbers:
                for column in columns:
                    looked.append(column)
                    yield number, column, ["no"] if column in failing else []

        def first(numbers, _):
            """Stands for the first build."""
            return build(["checkpatch", "4k"], numbers)

        def other(variant, numbers, _):
            """Stands for another build."""
            return build([variant], numbers)

        with mock.patch("steps.first_build", first), mock.patch("steps.other_build", other):
            results = list(steps.check_each())
        self.assertEqual({column for _, column, _ in results}, {"checkpatch", "4k", "16k"})
        self.assertEqual([column for _, column, wrong in results if wrong], list(failing))
        return looked

    def test_nothing_twice(self):
        """A second run looks at nothing, a run after a failure at that."""
        self.assertEqual(self.looked_at("16k"), ["checkpatch", "4k", "16k"])
        self.assertEqual(self.looked_at(), ["16k"])
        self.assertEqual(self.looked_at(), [])

    def test_message(self):
        """Another message is for checkpatch; what is built from the patch stays known."""
        self.looked_at()
        self.patch.write_text("the same patch with another message\n")
        self.assertIn("checkpatch", self.looked_at())
        self.assertNotIn("16k", self.looked_at())

    def test_source(self):
        """Another source is built anew."""
        self.looked_at()
        self.source = "changed"
        self.assertEqual(self.looked_at(), ["checkpatch", "4k", "16k"])


class Table(unittest.TestCase):
    """What is shown at the end."""

    def test_table(self):
        """The table has a row for each patch, and a dash where there was nothing to check."""
        with mock.patch.object(steps, "commits", return_value=[("one", "One"), ("two", "Two")]):
            lines = steps.table({(0, "4k"): [], (1, "4k"): ["no"]})
        self.assertEqual([line.split()[:4] for line in lines[1:]],
                         [["1", "One", "ok", "-"], ["2", "Two", "FAIL", "-"]])  # fmt: skip


if __name__ == "__main__":
    unittest.main()
