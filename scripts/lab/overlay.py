# SPDX-License-Identifier: GPL-2.0-only
"""Covers directories, so that what is built there for a moment leaves no trace."""

import contextlib
import fcntl
import pathlib
import shutil
import tempfile

from common import CACHE, lock, output

PREFIX = "overlay-"


def mark(scratch):
    """Returns a file by which a folder is in use for as long as this run lives, or nothing where
    another run uses it."""
    file = open(scratch / "lock", "w", encoding="ascii")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def new_folder():
    """Returns a folder and the mark that it is in use; deletes what a killed run has left."""
    with lock("overlays"):
        for old in CACHE.glob(f"{PREFIX}*"):
            if found := mark(old):
                shutil.rmtree(old, ignore_errors=True)
                found.close()
        scratch = pathlib.Path(tempfile.mkdtemp(dir=CACHE, prefix=PREFIX))
        return scratch, mark(scratch)


@contextlib.contextmanager
def overlays(*directories):
    """Covers directories so that all changes go elsewhere and are gone afterwards."""
    scratch, in_use = new_folder()
    mounted = []
    try:
        for number, lower in enumerate(directories):
            upper, work = scratch / f"upper{number}", scratch / f"work{number}"
            upper.mkdir()
            work.mkdir()
            options = f"lowerdir={lower},upperdir={upper},workdir={work}"
            output(["mount", "-t", "overlay", "overlay", "-o", options, lower])
            mounted.append(lower)
        yield
    finally:
        for lower in reversed(mounted):
            output(["umount", "--lazy", lower])
        shutil.rmtree(scratch, ignore_errors=True)
        in_use.close()
