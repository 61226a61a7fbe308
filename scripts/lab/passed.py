# SPDX-License-Identifier: GPL-2.0-only
"""Remembers what has passed, by all that it depends on, so that nothing is looked at twice."""

import functools
import hashlib
import pathlib

from common import CACHE, REPO


@functools.cache
def content(*folders):
    """Returns a checksum of what folders of the repo hold, but for what is built in them."""
    paths = sorted(path for folder in folders for path in (REPO / folder).rglob("*"))
    built = {"__pycache__", "target"}
    files = [path for path in paths if path.is_file() and not built & set(path.parts)]
    texts = [[str(path.relative_to(REPO)).encode(), path.read_bytes()] for path in files]
    return hashlib.sha256(b"\n".join(sum(texts, []))).hexdigest()


class Passed:
    """What has passed, as checksums."""

    def __init__(self):
        self.path = CACHE / "passed"
        self.keys = set(self.path.read_text().split()) if self.path.exists() else set()
        packages = pathlib.Path("/var/lib/dpkg/status")
        self.tools = hashlib.sha256(packages.read_bytes() if packages.exists() else b"").hexdigest()

    def key(self, what, *texts):
        """Returns a checksum of what is looked at, by which tools, and all that it depends on."""
        return hashlib.sha256("\n".join([what, self.tools, *texts]).encode()).hexdigest()

    def add(self, key):
        """Remembers that something has passed."""
        self.keys.add(key)
        CACHE.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", encoding="ascii") as file:
            file.write(f"{key}\n")
