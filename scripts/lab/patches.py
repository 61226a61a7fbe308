# SPDX-License-Identifier: GPL-2.0-only
"""The patches of the series as files, and their cover letters."""

import hashlib
import pathlib
import re

import kgit
from common import PATCHES, LabError

FORMAT = [
    "--no-signature",
    "--zero-commit",
    "--abbrev=12",
    "--diff-algorithm=histogram",
    "--no-renames",
    "--rfc",
    "--cover-letter",
    "--cover-from-description=subject",
    "--quiet",
]


def patch_files(folder=None):
    """Returns the patches of a folder in order."""
    return sorted((folder or PATCHES).glob("[0-9][0-9][0-9][0-9]-*.patch"))


def variants():
    """Returns patches in another form, which the base that their folder is named after needs."""
    return sorted(PATCHES.glob("*/[0-9][0-9][0-9][0-9]-*.patch"))


def series_for(folder):
    """Returns the patches, those of which a folder has a variant in that form."""
    names = {path.name: path for path in variants() if path.parent == folder}
    return [names.get(path.name, path) for path in patch_files()]


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


def digest():
    """Returns a checksum of the patches and of the base they name."""
    state = hashlib.sha256()
    for path in [PATCHES / "base", *patch_files(), *variants()]:
        state.update(path.read_bytes())
    return state.hexdigest()


def message(patch):
    """Returns a patch without its diff."""
    return patch.read_text().partition("\n---\n")[0]


def touched_files():
    """Returns the files that the patches touch."""
    names = set()
    for path in patch_files():
        names.update(re.findall(r"^diff --git a/(\S+) b/", path.read_text(), re.MULTILINE))
    return sorted(names)


def format_patches(directory, tree=None, identity=kgit.ROLE):
    """Writes the branch of a tree as patches into a directory."""
    date = kgit.git("log", "-1", "--format=%aI", kgit.BRANCH, tree=tree)
    kgit.git("config", f"branch.{kgit.BRANCH}.description", cover_text(cover_file()), tree=tree)
    words = [*FORMAT, "--output-directory", directory, f"base..{kgit.BRANCH}"]
    kgit.git("format-patch", *words, tree=tree, date=date, identity=identity)
    cover = pathlib.Path(directory) / "0000-cover-letter.patch"
    cover.rename(cover.with_name(cover_file().name))
