# SPDX-License-Identifier: GPL-2.0-only
"""Runs cases that fail, hang, skip and crash on purpose, to see what the crate's own runner makes
of them. That needs no kernel and no other machine: it is compiled for this one."""

import pathlib
import re
import shutil
import subprocess
import tempfile
import time

from common import LAB, output

CASES = LAB / "ktap-cases"
RUNNER = "tools/testing/selftests/kvm/lib/rust/ktap.rs"
# What of the report is always the same.
RESULT = re.compile(r"(?:not )?ok .*|# Totals: .*|# cleaned up")


def report(source):
    """Compiles the runner of a kernel tree with the cases and returns what they print."""
    with tempfile.TemporaryDirectory() as name:
        scratch = pathlib.Path(name)
        shutil.copytree(CASES, scratch, dirs_exist_ok=True)
        shutil.copy(source / RUNNER, scratch)
        words = ["rustc", "--edition=2021"]
        output([*words, "--crate-type=rlib", "libkvm.rs"], cwd=scratch)
        output([*words, "--extern=libkvm=liblibkvm.rlib", "on_purpose.rs"], cwd=scratch)
        program = [scratch / "on_purpose", "-t", "2"]
        return subprocess.run(program, capture_output=True, text=True, check=False).stdout


def is_alive(pid):
    """Says whether a process is there, and not just waited for."""
    status = pathlib.Path("/proc", pid, "status")
    return status.exists() and not re.search(r"^State:\s+Z", status.read_text(), re.MULTILINE)


def wrong(text):
    """Returns how a report differs from what is expected, and what a case left behind."""
    found = [line for line in text.splitlines() if RESULT.fullmatch(line)]
    expected = (CASES / "expected").read_text().splitlines()
    differences = [] if found == expected else ["expected:", *expected, "found:", *found]
    left = re.findall(r"left behind: (\d+)", text)
    end = time.monotonic() + 5
    while any(map(is_alive, left)) and time.monotonic() < end:
        time.sleep(0.01)
    if not left or any(map(is_alive, left)):
        differences.append(f"the process {' '.join(left) or '?'} is still there, or never was")
    return differences
