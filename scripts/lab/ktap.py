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
    """How a case ended, or a program with its cases; a KUnit suite counts as a program. One whose
    end has not been read has failed."""

    name: str
    verdict: str = FAIL
    reason: str = "did not end"
    cases: list = dataclasses.field(default_factory=list)
    plan: tuple | None = None


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
    return Result(name, PASS, "")


def ended(running, end):
    """Returns the result of a program that ran, given the line by which its runner ends it."""
    planned, why = running.plan or (len(running.cases), "")
    if end.verdict == SKIP:
        end.reason = end.reason or why
    elif end.verdict == PASS and planned != len(running.cases):
        end.verdict = FAIL
        end.reason = f"{len(running.cases)} of {planned} cases on the console"
    end.cases = running.cases
    return end


def parse(lines):
    """Returns the programs of a console in order."""
    programs, running = [], Result("")
    for line in lines:
        nested = NESTED.fullmatch(line)
        text = nested[1] if nested else line
        plan, told = PLAN.fullmatch(text), result(text)
        if nested and (start := START.fullmatch(text)):
            running = Result(start[1])
            programs.append(running)
        elif nested and plan:
            running.plan = int(plan[1]), plan[2] or ""
        elif nested and told:
            running.cases.append(told)
        elif told:
            programs = [one for one in programs if one is not running] + [ended(running, told)]
            running = Result("")
    return programs


def planned(lines):
    """Returns how many programs the reports of a console announce."""
    return sum(int(plan[1]) for plan in map(PLAN.fullmatch, lines) if plan)


def failures(programs):
    """Yields what failed, as (program, case); where no case explains it, case is None."""
    for program in programs:
        failed = [case for case in program.cases if case.verdict == FAIL]
        yield from ((program, case) for case in failed)
        if program.verdict == FAIL and not (failed and program.reason in ("", "exit=1")):
            yield program, None
