# SPDX-License-Identifier: GPL-2.0-only
"""What the check of each patch makes of what the compiler and other tools say."""

import contextlib
import pathlib
from unittest import mock

import passed
import small
import steps
from common import LabError


class Steps(small.Scratch):
    """Two patches, and stand-ins for what builds them."""

    def setUp(self):
        super().setUp()
        self.source = {"one": "1", "two": "2", "base": "0"}
        self.replace(passed, CACHE=self.folder)
        self.replace(
            steps,
            CACHE=self.folder,
            config=mock.Mock(text=lambda variant: ""),
            BUILDS={"4k": ["Image"], "16k": ["Image"]},
            commits=lambda: [("one", "One"), ("two", "Two")],
            content_of=lambda commit, without: self.source[commit],
            files=lambda commit: [],
            sparse_words=list,
            overlays=mock.Mock(return_value=contextlib.nullcontext()),
            kernel=mock.Mock(
                kernel=lambda tree, variant, *_: pathlib.Path(variant),
                directory=lambda tree, name: self.folder / name,
                selftests=lambda *_: None,
            ),
            kgit=mock.MagicMock(),
            patches=mock.Mock(**{"touched_files.return_value": []}),
        )

    def results(self, *looks):
        """Returns what is said of the patches, where a look that is an error is raised."""
        with mock.patch.object(steps, "look", side_effect=looks) as look:
            found = {(variant, subject): wrong for variant, subject, wrong in steps.check_each()}
            self.assertEqual(look.call_count, len(looks))
        self.selftests = {key: found.pop(key) for key in list(found) if key[0] == "selftests"}
        return found

    def test_remarks(self):
        """What the base has to say for itself is not held against a patch, wherever it moved; a
        patch that does not build does not end the run; what has passed is not looked at again."""
        lines = ["a.c:7: warning: as ever", "a.c:9: warning: as ever", "a.c:3: warning: new"]
        base, moved, new = (steps.remarks(line) for line in lines)
        found = self.results(base, moved, moved + new, base, LabError("no"), base)
        wrong = {("4k", "Two"): ["a.c: warning: new"], ("16k", "One"): ["no"]}
        self.assertEqual(found, {("4k", "One"): [], ("16k", "Two"): []} | wrong)
        self.assertEqual(list(self.results(base, base)), list(wrong))
        self.assertEqual(self.results(), {})
        self.source["two"] = "changed"
        again = list(self.results([], base))
        self.assertEqual(again, [("4k", "Two"), ("16k", "Two")])
        self.source.update(one="alike", two="alike")
        self.assertEqual(list(self.results([], [])), [("4k", "One"), ("16k", "One")])

    def test_selftests(self):
        """Selftests are built at each patch, until they are: one that cannot be is told."""
        builds = mock.Mock(side_effect=[None, LabError("no"), None])
        with mock.patch.object(steps.kernel, "selftests", builds):
            self.results(*[[]] * 6)
            self.assertEqual(
                self.selftests, {("selftests", "One"): [], ("selftests", "Two"): ["no"]}
            )
            self.results()
            self.assertEqual(self.selftests, {("selftests", "Two"): []})
            self.results()
            self.assertEqual(self.selftests, {})
