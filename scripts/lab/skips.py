# SPDX-License-Identifier: GPL-2.0-only
"""What the suite may skip where: the list in scripts/lab/skips."""

import dataclasses
import fnmatch
import re

from common import LAB, LabError
from ktap import SKIP

FILE = LAB / "skips"


@dataclasses.dataclass(frozen=True)
class Allowed:
    """A line of the list. Each field is a pattern, as for names of files, and the first two may be
    several, with commas between them."""

    machine: str
    kernel: str
    program: str
    case: str
    reason: str

    def covers(self, *words):
        """Says whether it is about a test that was skipped."""
        *places, program, case, reason = dataclasses.astuple(self)
        patterns = [*(place.split(",") for place in places), [program], [case], [reason]]
        return all(
            any(fnmatch.fnmatchcase(word, pattern) for pattern in one)
            for word, one in zip(words, patterns)
        )


def allowed(text=None):
    """Reads the list."""
    found = []
    for line in (FILE.read_text() if text is None else text).splitlines():
        if line and not line.startswith("#"):
            match = re.fullmatch(r"(\S+)\s+(\S+)\s+(\S+)\s+(\S+)\s+(\S.*)", line)
            if not match:
                raise LabError(f"{FILE}: '{line}' is not 'MACHINE KERNEL PROGRAM CASE REASON'")
            found.append(Allowed(*match.groups()))
    return found


def unexpected(machine, kernel, programs, may=None):
    """Returns what was skipped on a machine with a kernel and may not be, as sentences."""
    may = allowed() if may is None else may
    skipped = [
        (program.name, case.name, case.reason)
        for program in programs
        for case in program.cases
        if case.verdict == SKIP
    ]
    # A program that skips as a whole has a case only in the list, and there only as a pattern.
    skipped += [
        (program.name, "", program.reason)
        for program in programs
        if program.verdict == SKIP and not program.cases
    ]
    return [
        f"{program} {case}".strip() + f" was skipped, and may not be: {reason or 'no reason given'}"
        for program, case, reason in skipped
        if not any(one.covers(machine, kernel, program, case, reason) for one in may)
    ]
