# SPDX-License-Identifier: GPL-2.0-only
"""The parts of the series, which can be sent and taken by themselves, in order.

patches/parts has a line for each: its name and the subject of its first patch.
patches/cover-NAME.txt is its cover letter.
"""

import dataclasses
import pathlib

from common import PATCHES, LabError, read_fields

FILE = "parts"


@dataclasses.dataclass(frozen=True)
class Part:
    """A part: the patches [first, last) of the series."""

    name: str
    first: int
    last: int

    def cover(self, folder=None):
        """Returns the file of its cover letter."""
        return (folder or PATCHES) / f"cover-{self.name}.txt"


def files(folder=None):
    """Returns what a folder of patches holds about parts: the list and the cover letters."""
    folder = pathlib.Path(folder or PATCHES)
    return [path for path in [folder / FILE, *sorted(folder.glob("cover-*.txt"))] if path.exists()]


def split(subjects, folder=None):
    """Returns the parts of the series whose patches have these subjects."""
    file = pathlib.Path(folder or PATCHES) / FILE
    if not file.exists():
        raise LabError(f"{file} is missing: it names the parts of the series")
    starts = read_fields(file)
    for name, subject in starts.items():
        if subjects.count(subject) != 1:
            raise LabError(
                f"{file}: part '{name}' begins with '{subject}', which is the subject of"
                f" {subjects.count(subject)} patches"
            )
    places = [subjects.index(subject) for subject in starts.values()]
    if places != sorted(places) or places[:1] != [0]:
        raise LabError(
            f"{file}: parts are not in the order of their patches, or the first does not begin"
            f" with the first patch, '{subjects[0]}'"
        )
    return [Part(*one) for one in zip(starts, places, [*places[1:], len(subjects)])]


def find(name, subjects, folder=None):
    """Returns the part of a name."""
    found = {part.name: part for part in split(subjects, folder)}
    if name not in found:
        raise LabError(f"there is no part '{name}'; the parts are {', '.join(found)}")
    return found[name]


def wrong(subjects, folder=None):
    """Returns what is wrong between parts, patches and cover letters, as sentences."""
    try:
        found = split(subjects, folder)
    except LabError as error:
        return [str(error)]
    covers = {part.cover(folder): part for part in found}
    missing = [f"{path.name} is missing: part '{part.name}' needs it"
               for path, part in covers.items() if not path.exists()]  # fmt: skip
    others = [f"{path.name} is the cover letter of no part"
              for path in files(folder)[1:] if path not in covers]  # fmt: skip
    return missing + others
