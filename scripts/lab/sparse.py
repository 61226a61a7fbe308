# SPDX-License-Identifier: GPL-2.0-only
"""Finds a sparse that a kernel tree accepts, which that of a Debian release may be too old for."""

import os
import shutil

import base
from common import CACHE, LabError, output, say

# Where the sparse of Debian's development archive is kept.
FOLDER = CACHE / "sparse"


def accepted(source, program):
    """Says whether the tree's Makefile would run a sparse."""
    if not program or not os.access(program, os.X_OK):
        return False
    return output(["sh", "-eu", source / "scripts/checker-valid.sh", program]).strip() == "1"


def fetch():
    """Unpacks the newest sparse of Debian, which needs nothing but the C library to run."""
    options = base.development_archive()
    base.apt_update(*options)
    versions = base.versions("sparse", *options)
    if not versions:
        raise LabError("the archive has no package sparse")
    package = base.SOURCES / f"sparse_{versions[0]}.deb"
    base.download("sparse", versions[0], package, *options)
    output(["dpkg", "-x", package, FOLDER])


def find(source):
    """Returns a sparse that the tree accepts, or nothing where there is none."""
    fetched = FOLDER / "usr/bin/sparse"
    for program in (shutil.which("sparse"), fetched):
        if accepted(source, program):
            return program
    try:
        fetch()
    except LabError as error:
        say(f"no newer sparse: {error}")
    return fetched if accepted(source, fetched) else None
