# SPDX-License-Identifier: GPL-2.0-only
"""Verifies the model of userfault with spin, over its full state space, and that it fails where
it is broken: an assertion that cannot fail says nothing.

To see how a broken model fails, in models/:

    spin -DNO_RETRY -run -bfs userfault.pml && spin -DNO_RETRY -t -p userfault.pml
"""

import re
import subprocess
import tempfile

from common import LAB, LabError, output

MODEL = LAB / "models/userfault.pml"

ENABLE = "an access succeeds after an enable"
REARM = "an access succeeds after a re-arm"
CONTENT = "an access succeeds without content"
# How the model may be broken: the promise that fails then, spin's message, and the macros.
BROKEN = [
    (REARM, "exits_by_rearm[gfn]", "LATE_SNAPSHOT MIGRATE"),
    (CONTENT, "filled[gfn]", "LATE_SNAPSHOT"),
    (CONTENT, "filled[gfn]", "NO_RETRY"),
    (ENABLE, "exits_by_enable[gfn]", "BLOCK_DESPITE_MARK"),
    (REARM, "exits_by_rearm[gfn]", "BLOCK_BEFORE_SNAPSHOT MIGRATE"),
    (ENABLE, "exits_by_enable[gfn]", "INVALIDATE_BEFORE_SWAP"),
    (ENABLE, "exits_by_enable[gfn]", "INVALIDATE_BEFORE_GRACE"),
    (ENABLE, "exits_by_enable[gfn]", "MARKS_BEFORE_SWAP MIGRATE"),
    ("a disable removes a mapping", "mapped_before[", "INVALIDATE_ON_DISABLE"),
    ("the bitmap is read after a disable", "is_disabled", "NO_GRACE_ON_DISABLE"),
    ("deadlock", "invalid end state", "GRACE_UNDER_LOCK"),
    (REARM, "exits_by_rearm[gfn]", "DROP_BEFORE_MARK MIGRATE"),
    (CONTENT, "filled[gfn]", "CLEAR_BEFORE_FILL"),
]


def search(macros, flags, *arguments):
    """Searches all states of the model with some macros and returns what spin says."""
    with tempfile.TemporaryDirectory() as scratch:
        words = [f"-D{macro}" for macro in macros.split()]
        output(["spin", *words, "-a", MODEL], cwd=scratch)
        output(["gcc", "-w", "-DSAFETY", *flags, "-o", "pan", "pan.c"], cwd=scratch)
        command = ["./pan", *arguments]
        done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False)
        return done.stdout + done.stderr


def check():
    """Fails if the model does not hold, or holds where it is broken; returns how many states it
    has."""
    text = search("", ["-O2", "-DCOLLAPSE"], "-w24", "-m4000000")
    states = re.search(r"^ *(\d+) states, stored", text, re.MULTILINE)
    incomplete = re.search("max search depth|not completed|out of memory", text)
    if not states or incomplete or "errors: 0" not in text:
        raise LabError(f"the model does not hold, or the search is not complete:\n{text}")
    for promise, message, macros in BROKEN:
        text = search(macros, ["-O1", "-DBFS"])
        found = re.search(r"^pan:1: (.*) \(at depth", text, re.MULTILINE)
        if not found or message not in found[1]:
            raise LabError(f"with {macros} the model should fail as {promise}, but:\n{text}")
    return int(states[1])
