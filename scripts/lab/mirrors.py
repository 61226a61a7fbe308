# SPDX-License-Identifier: GPL-2.0-only
"""What the repo shows of the files that the series adds."""

import re
import subprocess

import kgit
from common import REPO

# Where the files that the series adds are shown in the repo.
MIRRORS = {
    "arch/arm64/kvm/": "arch-arm64-kvm/",
    "tools/testing/selftests/": "tools-testing-selftests/",
    "Documentation/": "Documentation/",
}
# What the series adds to MAINTAINERS.
SNIPPET = "MAINTAINERS.snippet"


def mirror_of(path):
    """Returns where the repo shows a file that the series adds, or nothing."""
    for prefix, folder in MIRRORS.items():
        if path.startswith(prefix):
            return folder + path.removeprefix(prefix)
    return None


def added_files(tree, first="base", last="HEAD"):
    """Returns the files that the series adds."""
    names = kgit.git("diff", "--name-only", "--no-renames", "--diff-filter=A", first, last, tree=tree)
    return names.splitlines()


def added_lines(name, tree, first="base", last="HEAD"):
    """Returns the lines that the series adds to a file."""
    diff = kgit.git("diff", "--unified=0", "--no-renames", first, last, "--", name, tree=tree)
    return "".join(f"{line}\n" for line in re.findall(r"^\+(?!\+\+ )(.*)", diff, re.MULTILINE))


def expected_mirrors(tree, first="base", last="HEAD"):
    """Returns what the repo must show of the patches, as {path in the repo: bytes}."""
    expected = {}
    entry = added_lines("MAINTAINERS", tree, first, last)
    if entry:
        expected[SNIPPET] = entry.encode()
    for name in added_files(tree, first, last):
        mirror = mirror_of(name)
        if mirror:
            blob = subprocess.run(
                ["git", "-C", str(tree), "show", f"{last}:{name}"],
                capture_output=True,
                check=True,
                env=kgit.environment(),
            )
            expected[mirror] = blob.stdout
    return expected


def actual_mirrors():
    """Returns what the repo shows of the patches, but not its own pages in Documentation."""
    actual = {}
    if (REPO / SNIPPET).exists():
        actual[SNIPPET] = (REPO / SNIPPET).read_bytes()
    for folder in MIRRORS.values():
        for path in sorted((REPO / folder).rglob("*")):
            name = str(path.relative_to(REPO))
            if path.is_file() and not (folder == "Documentation/" and name.count("/") == 1):
                actual[name] = path.read_bytes()
    return actual
