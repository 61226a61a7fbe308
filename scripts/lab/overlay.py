# SPDX-License-Identifier: GPL-2.0-only
"""Covers directories, so that what is built there for a moment leaves no trace."""

import contextlib
import fcntl
import os
import pathlib
import shutil
import tempfile

from common import CACHE, lock, output


def hold(folder):
    """Returns what marks a folder as in use for as long as this run lives, or nothing where another
    run uses it."""
    file = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return file
    except BlockingIOError:
        os.close(file)
        return None


def new_folder():
    """Returns a folder and the mark that it is in use; deletes what a killed run has left."""
    with lock("overlays"):
        for old in CACHE.glob("overlay-*"):
            if found := hold(old):
                shutil.rmtree(old, ignore_errors=True)
                os.close(found)
        scratch = pathlib.Path(tempfile.mkdtemp(dir=CACHE, prefix="overlay-"))
        return scratch, hold(scratch)


@contextlib.contextmanager
def overlays(*directories):
    """Covers directories so that all changes go elsewhere and are gone afterwards."""
    scratch, in_use = new_folder()
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, in_use)
        stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        for number, lower in enumerate(directories):
            upper, work = scratch / f"upper{number}", scratch / f"work{number}"
            upper.mkdir()
            work.mkdir()
            options = f"lowerdir={lower},upperdir={upper},workdir={work}"
            output(["mount", "-t", "overlay", "overlay", "-o", options, lower])
            stack.callback(output, ["umount", "--lazy", lower])
        yield
