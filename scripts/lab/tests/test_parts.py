# SPDX-License-Identifier: GPL-2.0-only
"""Parts and patches: every disagreement between them is noticed."""


import export
import parts
import small
from common import LabError

SUBJECTS = ["KVM: Add a file", "MAINTAINERS: Add an entry"]


class Parts(small.Small):
    """A series of two parts."""

    def setUp(self):
        super().setUp()
        self.list = self.patches / "parts"

    def wrong(self, text):
        """Returns what is wrong when the list of parts is a text."""
        self.list.write_text(text)
        return "\n".join(export.check())

    def test_split(self):
        """Each part begins with its first patch and ends before that of the next."""
        found = parts.split(["KVM: Add a file", "Another", "MAINTAINERS: Add an entry"])
        self.assertEqual(found, [parts.Part("core", 0, 2), parts.Part("entry", 2, 3)])
        self.assertEqual(parts.find("entry", SUBJECTS), parts.Part("entry", 1, 2))

    def test_list(self):
        """A list that names no patch or several, has another order, or is not there, is named."""
        first, second = small.PARTS.splitlines(keepends=True)
        for text, words in (
            (small.PARTS.replace("an entry", "a line"), "begins with 'MAINTAINERS: Add a line'"),
            (second + first, "not in the order"),
            (second, "does not begin with the first patch"),
        ):
            self.assertIn(words, self.wrong(text))
        with self.assertRaisesRegex(LabError, "subject of 2 patches"):
            parts.split([*SUBJECTS, SUBJECTS[1]])
        self.list.unlink()
        self.assertIn("it names the parts of the series", "\n".join(export.check()))

    def test_covers(self):
        """Each part has a cover letter, and each cover letter a part."""
        (self.patches / "cover-core.txt").rename(self.patches / "cover-old.txt")
        self.assertEqual(
            export.check(),
            [
                "cover-core.txt is missing: part 'core' needs it",
                "cover-old.txt is the cover letter of no part",
            ],
        )
