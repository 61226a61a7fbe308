# SPDX-License-Identifier: GPL-2.0-only
"""The patches of the series as files, their cover letters, and the parts that they are in.

patches/parts has a line for each part, which can be sent and taken by itself, in order: its name
and the subject of its first patch. patches/cover-NAME.txt is its cover letter.
"""

import dataclasses
import hashlib
import pathlib
import re

import kgit
from common import PATCHES, LabError, read_fields

FORMAT = (
    "--no-signature --zero-commit --abbrev=12 --diff-algorithm=histogram --no-renames --rfc"
    " --cover-letter --cover-from-description=subject --quiet"
)


def patch_files(folder=None):
    """Returns the patches of a folder in order."""
    return sorted((folder or PATCHES).glob("[0-9][0-9][0-9][0-9]-*.patch"))


def variants():
    """Returns patches in another form, which the base that their folder is named after needs."""
    return sorted(PATCHES.glob("*/[0-9][0-9][0-9][0-9]-*.patch"))


def cover_file(folder=None):
    """Returns the cover letter; by its name 'git am patches/*.patch' leaves it out."""
    return (folder or PATCHES) / "0000-cover-letter.txt"


def cover_text(path):
    """Returns a cover letter's subject and text, without what format-patch adds."""
    text = path.read_text()
    title = kgit.subject(text)
    if not title:
        raise LabError(f"{path} has no Subject")
    # What format-patch adds begins with the authors and their patches.
    body = text.partition("\n\n")[2]
    body = re.split(r"^\S.* \(\d+\):\n(?=  )", body, maxsplit=1, flags=re.MULTILINE)[0]
    return f"{title}\n\n{body.rstrip()}\n"


def subjects(folder=None):
    """Returns the subjects of the patches of a folder in order."""
    return [kgit.subject(path.read_text()) for path in patch_files(folder)]


def digest(*more):
    """Returns a checksum of the patches, of the base they name, and of files that patterns name."""
    files = [PATCHES / "base", *patch_files(), *variants()]
    files += sorted(path for pattern in more for path in PATCHES.glob(pattern))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def message(patch):
    """Returns a patch without its diff."""
    return patch.read_text().partition("\n---\n")[0]


def touched_files():
    """Returns the files that the patches touch."""
    text = "".join(path.read_text() for path in patch_files())
    return sorted(set(re.findall(r"^diff --git a/(\S+) b/", text, re.MULTILINE)))


def format_patches(directory):
    """Writes the branch as patches into a directory."""
    date = kgit.git("log", "-1", "--format=%aI", kgit.BRANCH)
    kgit.git("config", f"branch.{kgit.BRANCH}.description", cover_text(cover_file()))
    words = [*FORMAT.split(), "--output-directory", directory, f"base..{kgit.BRANCH}"]
    kgit.git("format-patch", *words, date=date)
    cover = pathlib.Path(directory) / "0000-cover-letter.patch"
    cover.rename(cover.with_name(cover_file().name))


@dataclasses.dataclass(frozen=True)
class Part:
    """A part: the patches [first, last) of the series."""

    name: str
    first: int
    last: int

    def cover(self, folder=None):
        """Returns the file of its cover letter."""
        return (folder or PATCHES) / f"cover-{self.name}.txt"


def parts(found, folder=None):
    """Returns the parts of the series whose patches have these subjects."""
    file = (folder or PATCHES) / "parts"
    starts = read_fields(file)
    for name, subject in starts.items():
        if found.count(subject) != 1:
            raise LabError(
                f"{file}: part '{name}' begins with '{subject}', which is the subject of"
                f" {found.count(subject)} patches"
            )
    places = [found.index(subject) for subject in starts.values()]
    if places != sorted(places) or places[:1] != [0]:
        raise LabError(
            f"{file}: parts are not in the order of their patches, or the first does not begin"
            f" with the first patch, '{found[0]}'"
        )
    return [Part(*one) for one in zip(starts, places, [*places[1:], len(found)])]


def wrong_parts():
    """Returns what is wrong between parts, patches and cover letters, as sentences."""
    try:
        needed = {part.cover() for part in parts(subjects())}
    except LabError as error:
        return [str(error)]
    have = set(PATCHES.glob("cover-*.txt"))
    wrong = [f"{path.name} is missing: a part needs it" for path in sorted(needed - have)]
    return wrong + [f"{path.name} is the cover letter of no part" for path in sorted(have - needed)]
