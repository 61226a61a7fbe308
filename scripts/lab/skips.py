# SPDX-License-Identifier: GPL-2.0-only
"""What the suite may skip where: the list in scripts/lab/skips."""

import fnmatch

from common import LAB, LabError
from ktap import SKIP

FILE = LAB / "skips"


def allowed(text=None):
    """Reads the list: of each line its five patterns, the first two as lists of some."""
    found = []
    for line in (FILE.read_text() if text is None else text).splitlines():
        if line and not line.startswith("#"):
            words = line.split(None, 4)
            if len(words) != 5:
                raise LabError(f"{FILE}: '{line}' is not 'MACHINE KERNEL PROGRAM CASE REASON'")
            machines, kernels, *others = words
            found.append([machines.split(","), kernels.split(","), *([one] for one in others)])
    return found


def covers(line, words):
    """Says whether a line of the list is about a test that was skipped."""
    return all(
        any(fnmatch.fnmatchcase(word, pattern) for pattern in patterns)
        for word, patterns in zip(words, line)
    )


def unexpected(machine, kernel, programs, may=None):
    """Returns what was skipped on a machine with a kernel and may not be, as sentences."""
    may = allowed() if may is None else may
    wrong = []
    for program in programs:
        # A program that skips as a whole has a case only in the list, and there only as a pattern.
        for test in program.cases or [program]:
            name = "" if test is program else test.name
            words = machine, kernel, program.name, name, test.reason
            if test.verdict == SKIP and not any(covers(line, words) for line in may):
                what = f"{program.name} {name}".strip()
                reason = test.reason or "no reason given"
                wrong.append(f"{what} was skipped, and may not be: {reason}")
    return wrong
