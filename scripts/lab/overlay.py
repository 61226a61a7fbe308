# SPDX-License-Identifier: GPL-2.0-only
"""Covers directories, so that what is built there for a moment leaves no trace."""

import contextlib
import pathlib
import shutil
import tempfile

from common import CACHE, output


@contextlib.contextmanager
def overlays(*directories):
    """Covers directories so that all changes go elsewhere and are gone afterwards."""
    scratch = pathlib.Path(tempfile.mkdtemp(dir=CACHE, prefix="mutant-"))
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
