# SPDX-License-Identifier: GPL-2.0-only
"""Remembers what has passed, by all that it depends on, so that nothing is looked at twice."""

import hashlib
import pathlib

from common import CACHE, REPO


def content():
    """Returns a checksum of what the repo holds, but for what is built in it."""
    others = {".git", "__pycache__", "target"}
    paths = sorted(path.relative_to(REPO) for path in REPO.rglob("*") if path.is_file())
    files = [path for path in paths if not others & set(path.parts)]
    texts = [text for path in files for text in (str(path).encode(), (REPO / path).read_bytes())]
    return hashlib.sha256(b"\n".join(texts)).hexdigest()


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
