# SPDX-License-Identifier: GPL-2.0-only
"""Writes the series from the tree into the repo, and says whether the two agree."""

import pathlib
import tempfile

import kgit
import mirrors
import parts
import patches
import tree
from common import CACHE, PATCHES, REPO, LabError, output

# Where the diff of a patch begins.
END = b"\n---\n"


def name_variants():
    """Gives each variant the name, number and message of the patch that has its subject."""
    by_subject = {kgit.subject(path.read_text()): path for path in patches.patch_files()}
    for path in patches.variants():
        patch = by_subject.get(kgit.subject(path.read_text()))
        if patch:
            message, diff = patch.read_bytes().partition(END)[0], path.read_bytes().partition(END)[2]
            path.with_name(patch.name).write_bytes(message + END + diff)
            if path.name != patch.name:
                path.unlink()


def write():
    """Writes patches/ and the mirrored folders from the branch."""
    if not kgit.tip():
        raise LabError("there is no tree yet: run 'scripts/series apply' first")
    if kgit.git("status", "--porcelain"):
        raise LabError(f"{kgit.TREE} has uncommitted changes: commit them first")
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        patches.format_patches(scratch)
        new = {path.name: path.read_bytes() for path in pathlib.Path(scratch).iterdir()}
    for path in PATCHES.glob("*.patch"):
        if path.name not in new:
            path.unlink()
    for name, content in new.items():
        (PATCHES / name).write_bytes(content)
    name_variants()
    expected = mirrors.expected_mirrors(kgit.TREE, "base", kgit.BRANCH)
    for name in mirrors.actual_mirrors():
        if name not in expected:
            (REPO / name).unlink()
    for name, content in expected.items():
        path = REPO / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    tree.applied_file().write_text(f"{patches.digest()} {kgit.tip()}\n")
    return len(new) - 1, len(expected)


def copy_base(scratch):
    """Makes a tree of just the base's files that the patches touch."""
    kgit.git("init", "--quiet", "--initial-branch=base", tree=scratch)
    kgit.borrow_objects(pathlib.Path(scratch))
    files = kgit.git("ls-tree", "-r", "base", "--", *patches.touched_files())
    index = ["git", "-C", scratch, "update-index", "--index-info"]
    output(index, input=files + "\n", env=kgit.environment())
    kgit.git("checkout-index", "--all", tree=scratch)
    kgit.git("commit", "--quiet", "--message=base", tree=scratch, date=kgit.BASE_DATE)
    kgit.git("checkout", "--quiet", "-b", kgit.BRANCH, tree=scratch)


def check():
    """Returns what is wrong with patches, mirrored folders and tree, as a list of sentences."""
    tree.make_base()
    wrong = []
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        try:
            copy_base(scratch)
            kgit.am(scratch, patches.patch_files())
        except LabError as error:
            return [str(error).replace(f" to {scratch}", " to the base")]
        expected, actual = mirrors.expected_mirrors(scratch), mirrors.actual_mirrors()
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
    wrong += parts.wrong(patches.subjects())
    work = tree.own_work()
    if work:
        wrong.append(f"{kgit.TREE} holds {work}")
    return wrong
