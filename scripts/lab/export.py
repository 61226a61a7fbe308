# SPDX-License-Identifier: GPL-2.0-only
"""Writes the series from the tree into the repo, and says whether the two agree."""

import pathlib
import re
import tempfile

import kgit
import patches
import tree
from common import CACHE, PATCHES, REPO, LabError, output

# Where the diff of a patch begins.
END = "\n---\n"
# Where the files that the series adds are shown in the repo, and what it adds to MAINTAINERS.
MIRRORS = {
    "arch/arm64/kvm/": "arch-arm64-kvm/",
    "tools/testing/selftests/": "tools-testing-selftests/",
    "Documentation/": "Documentation/",
}
SNIPPET = "MAINTAINERS.snippet"


def added_files(last="HEAD"):
    """Returns the files that the series adds."""
    words = ["diff", "--name-only", "--no-renames", "--diff-filter=A", "base", last]
    return kgit.git(*words).splitlines()


def expected_mirrors(last):
    """Returns what the repo must show of the series, as {path in the repo: text}."""
    diff = kgit.git("diff", "--unified=0", "base", last, "--", "MAINTAINERS")
    # A line that is added to another entry is not shown.
    entry = re.findall(r"^\+(?!\+\+ )(.*)", max(diff.split("\n@@ "), key=len), re.MULTILINE)
    expected = {SNIPPET: "".join(f"{line}\n" for line in entry)} if entry else {}
    for name in added_files(last):
        for prefix, folder in MIRRORS.items():
            if name.startswith(prefix):
                show = ["git", "-C", kgit.TREE, "show", f"{last}:{name}"]
                text = output(show, env=kgit.environment())
                expected[folder + name.removeprefix(prefix)] = text
    return expected


def actual_mirrors():
    """Returns what the repo shows of the series, but not its own pages in Documentation."""
    paths = [path for folder in MIRRORS.values() for path in (REPO / folder).rglob("*")]
    paths = [REPO / SNIPPET, *(path for path in paths if path.parent != REPO / "Documentation")]
    return {str(path.relative_to(REPO)): path.read_text() for path in paths if path.is_file()}


def replace(folder, old, new):
    """Makes files of a folder, which are old ones by their names, those of {name: text}."""
    for name in old:
        if name not in new:
            (folder / name).unlink()
    for name, text in new.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def name_variants():
    """Gives each variant the name, number and message of the patch that has its subject."""
    by_subject = dict(zip(patches.subjects(), patches.patch_files()))
    for path in patches.variants():
        patch = by_subject.get(kgit.subject(path.read_text()))
        if patch:
            diff = path.read_text().partition(END)[2]
            path = path.rename(path.with_name(patch.name))
            path.write_text(patches.message(patch) + END + diff)


def write():
    """Writes patches/ and the mirrored folders from the branch."""
    if kgit.git("status", "--porcelain"):
        raise LabError(f"{kgit.TREE} has uncommitted changes: commit them first")
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        patches.format_patches(scratch)
        new = {path.name: path.read_text() for path in pathlib.Path(scratch).iterdir()}
    replace(PATCHES, [path.name for path in patches.patch_files()], new)
    name_variants()
    expected = expected_mirrors(kgit.BRANCH)
    replace(REPO, actual_mirrors(), expected)
    kgit.note("applied").write_text(f"{patches.digest()} {kgit.tip()}\n")
    return len(new) - 1, len(expected)


def check():
    """Returns what is wrong with patches, mirrored folders and tree, as a list of sentences."""
    tree.make_base()
    try:
        made = kgit.apply(patches.patch_files(), "base")
    except LabError as error:
        return [str(error)]
    expected, actual = expected_mirrors(made), actual_mirrors()
    wrong = []
    for name in sorted(expected.keys() | actual.keys()):
        if name not in actual:
            wrong.append(f"{name} is missing: the patches add it")
        elif name not in expected:
            wrong.append(f"{name} is not in the patches")
        elif actual[name] != expected[name]:
            wrong.append(f"{name} differs from what the patches produce")
    for path in patches.variants():
        original = PATCHES / path.name
        if not original.exists() or patches.message(original) != patches.message(path):
            name = path.relative_to(REPO)
            wrong.append(f"{name} is not a patch of the series with the same message")
    wrong += patches.wrong_parts()
    work = tree.own_work()
    return wrong + ([f"{kgit.TREE} holds {work}"] if work else [])
