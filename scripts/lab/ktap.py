# SPDX-License-Identifier: GPL-2.0-only
"""Reads the KTAP of a machine's console: KUnit's suites and kselftest's programs."""

import dataclasses
import re

PASS, SKIP, FAIL = "pass", "skip", "FAIL"

# One level of nesting, as KUnit shows it and as kselftest's runner does.
NESTED = re.compile(r"(?: {4}|# )(\S.*)")
START = re.compile(r"(?:# Subtest: |selftests: \S+: )(\S+)")
PLAN = re.compile(r"1\.\.(\d+)(?: # SKIP ?(.*))?")
RESULT = re.compile(r"(not )?ok \d+(?: -)? (?:selftests: \S+: )?(.*?)(?: # (.*))?")


@dataclasses.dataclass
class Result:
    """How a case ended, or a program with its cases; a KUnit suite counts as a program."""

    name: str
    verdict: str
    reason: str = ""
    cases: list = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Running:
    """A program of which the end has not been read yet."""

    name: str = ""
    planned: int | None = None
    reason: str = ""
    cases: list = dataclasses.field(default_factory=list)

    def read(self, text):
        """Takes in a line that the program printed."""
        plan, case = PLAN.fullmatch(text), result(text)
        if plan:
            self.planned, self.reason = int(plan[1]), plan[2] or ""
        elif case:
            self.cases.append(case)

    def ended(self, end):
        """Returns the program's result, given the line by which the runner ends it."""
        if end.verdict == SKIP:
            end.reason = end.reason or self.reason
        elif end.verdict == PASS and self.planned not in (None, len(self.cases)):
            end.verdict = FAIL
            end.reason = f"{len(self.cases)} of {self.planned} cases on the console"
        end.cases = self.cases
        return end


def result(text):
    """Returns the result that a line reports, or nothing."""
    match = RESULT.fullmatch(text)
    if not match:
        return None
    failed, name, directive = match[1], match[2], match[3] or ""
    if failed:
        return Result(name, FAIL, directive)
    if directive.startswith("SKIP"):
        return Result(name, SKIP, directive.removeprefix("SKIP").strip())
    return Result(name, PASS)


def parse(lines):
    """Returns the programs of a console in order; one that has no end has failed."""
    programs, running = [], Running()
    for line in lines:
        nested = NESTED.fullmatch(line)
        start = nested and START.fullmatch(nested[1])
        if start:
            programs += unfinished(running)
            running = Running(start[1])
        elif nested:
            running.read(nested[1])
        elif end := result(line):
            programs.append(running.ended(end))
            running = Running()
    return programs + unfinished(running)


def planned(lines):
    """Returns how many programs the reports of a console announce."""
    return sum(int(plan[1]) for plan in map(PLAN.fullmatch, lines) if plan)


def unfinished(running):
    """Returns the program that runs, if any, as one that has failed: its end is missing."""
    return [Result(running.name, FAIL, "did not end", running.cases)] if running.name else []


def failures(programs):
    """Yields what failed, as (program, case); where no case explains it, case is None."""
    for program in programs:
        failed = [case for case in program.cases if case.verdict == FAIL]
        yield from ((program, case) for case in failed)
        if program.verdict == FAIL and not (failed and program.reason in ("", "exit=1")):
            yield program, None
