# SPDX-License-Identifier: GPL-2.0-only
"""The series on a kernel tree of the user's own."""

import hashlib
import pathlib

import kgit
import patches
import tree
from common import CACHE, PATCHES, LabError, lock, say


def am_near(clone):
    """Applies the patches to a tree that is near to their base or to that of a variant."""
    errors = []
    for folder in [PATCHES, *sorted({path.parent for path in patches.variants()})]:
        names = [folder / path.name for path in patches.patch_files()]
        try:
            files = [path if path.exists() else PATCHES / path.name for path in names]
            return kgit.am(clone, files, "--3way")
        except LabError as error:
            errors.append(error)
    raise errors[0]


def user_tree(path):
    """Returns a clone of the user's own kernel tree, with the series on a branch of its own."""
    source = pathlib.Path(path).resolve()
    if not (source / "virt/kvm/kvm_main.c").exists():
        raise LabError(f"{source} is not a kernel source tree")
    if not (source / ".git").exists():
        raise LabError(f"{source} is not a git checkout: run 'git init' and commit it first")
    if kgit.git("status", "--porcelain", "--untracked-files=no", tree=source):
        raise LabError(f"{source} has uncommitted changes: commit or stash them first")
    head = kgit.git("rev-parse", "HEAD", tree=source)
    name = hashlib.sha256(str(source).encode()).hexdigest()[:8]
    clone = CACHE / "trees" / name
    state, wanted = clone / ".git" / "kvm-userfault-applied", f"{patches.digest()} {head}\n"
    with lock(f"tree-{name}"):
        if state.exists() and state.read_text() == wanted:
            return clone
        if not clone.exists():
            kgit.clone(f"cloning {source} (its own branches are not touched)", source, clone)
        kgit.abort_am(clone)
        kgit.git("fetch", "--quiet", "origin", "HEAD", tree=clone)
        state.unlink(missing_ok=True)
        say(f"applying {len(patches.patch_files())} patches to {head[:12]}")
        kgit.git("checkout", "--quiet", "--force", "-B", "kvm-userfault", head, tree=clone)
        try:
            am_near(clone)
        except LabError as error:
            if "sha1 information is lacking" not in str(error):
                raise
            # A shallow clone may not have what the patches were made on, but the lab does.
            if not tree.have_base():
                with tree.alone():
                    tree.make_base()
            kgit.borrow_objects(clone)
            am_near(clone)
        state.write_text(wanted)
    return clone
