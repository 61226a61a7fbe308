# SPDX-License-Identifier: GPL-2.0-only
"""Builds the series patch by patch: none may need a later one."""

import kernel
import tree
from common import LabError, step
from overlay import overlays

# Files of these make no difference to a kernel.
NOT_KERNEL = ("Documentation/", "MAINTAINERS", "tools/")


def commits(branch=tree.BRANCH):
    """Returns the commits of the series in order, as (id, subject)."""
    lines = tree.git("log", "--reverse", "--format=%H %s", f"base..{branch}").splitlines()
    return [tuple(line.split(" ", 1)) for line in lines]


def concerns_kernel(commit):
    """Says whether a commit changes anything that a kernel is built from."""
    names = tree.git("diff-tree", "--no-commit-id", "--name-only", "-r", commit).splitlines()
    return any(not name.startswith(NOT_KERNEL) for name in names)


def build_each(variant, jobs=None):
    """Builds and links every patch, compiles it with W=1, and yields (subject, what is wrong)."""
    build = kernel.kernel(tree.TREE, variant, jobs)
    with overlays(tree.TREE, build):
        for commit, subject in commits():
            if not concerns_kernel(commit):
                continue
            tree.git("checkout", "--quiet", "--force", "--detach", commit)
            yield subject, build_one(subject, build, variant, jobs)


def build_one(subject, build, variant, jobs):
    """Builds what is checked out and returns what is wrong."""
    try:
        # Anew each time: a patch may bring a symbol of the configuration.
        kernel.write_config(tree.TREE, build, variant)
        log = f"step-{variant}"
        image = kernel.make(tree.TREE, build, "-s", "Image", jobs=jobs)
        step(f"building '{subject}' ({variant})", image, log)
        objects = kernel.make(tree.TREE, build, "-s", "W=1", "arch/arm64/kvm/", jobs=jobs)
        log = step(f"compiling it with warnings ({variant})", objects, log)
    except LabError as error:
        return str(error)
    warnings = [line for line in log.read_text(errors="replace").splitlines() if "warning" in line]
    return "\n".join(warnings)
