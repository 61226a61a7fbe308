# SPDX-License-Identifier: GPL-2.0-only
"""Runs checkpatch on patches."""

import concurrent.futures
import functools
import os
import subprocess

from common import LabError
from passed import Passed

UNSIGNED = "Missing Signed-off-by: line(s)"
# What checkpatch may say, and why that stays.
EXCEPTIONS = {
    UNSIGNED: "whoever sends the series signs it",
    "does MAINTAINERS need updating?": "one patch does so for all",
    "WARNING: Unknown commit id": "the base here has no history",
    "arch/arm64/kvm/trace_arm.h:": "tracepoints are laid out like all others of that file",
    "arch/arm64/include/asm/mte.h:": "its empty functions stand without lines between them",
    "missing.sh:2: WARNING: Misplaced SPDX": "its first line, #!/bin/sh, is not in the patch",
    "'inout' may be misspelled": "an operand of Rust's asm!()",
    "'TGE' may be misspelled": "a bit of HCR_EL2",
}


def unexpected(lines, signed=False):
    """Returns the remarks that have no reason to stay."""
    exceptions = [text for text in EXCEPTIONS if not (signed and text == UNSIGNED)]
    return [line for line in lines if not any(text in line for text in exceptions)]


def patch_remarks(source, signed, path):
    """Runs checkpatch on a patch and returns what has no reason to stay."""
    command = ["scripts/checkpatch.pl", "--strict", "--codespell", "--terse", "--no-summary"]
    command += ["--showfile", path]
    result = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    if result.returncode not in (0, 1):
        raise LabError(f"checkpatch ended with {result.returncode} on {path}:\n{result.stderr}")
    lines = dict.fromkeys((result.stdout + result.stderr).splitlines())
    return [f"{path.name}: {line}" for line in unexpected(lines, signed)]


def remarks(source, patches, signed=False):
    """Runs checkpatch of a kernel tree on patches that have not passed yet and returns what has no
    reason to stay."""
    passed, names = Passed(), ("*checkpatch*", "spelling.txt")
    rules = [path.read_text() for name in names for path in (source / "scripts").glob(name)]
    rules += [str(EXCEPTIONS), str(signed)]
    keys = {path: passed.key("checkpatch", *rules, path.read_text()) for path in patches}
    left = [path for path, key in keys.items() if key not in passed.keys]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(functools.partial(patch_remarks, source, signed), left))
    for path, lines in zip(left, found):
        if not lines:
            passed.add(keys[path])
    return [line for lines in found for line in lines]
