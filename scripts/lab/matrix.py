# SPDX-License-Identifier: GPL-2.0-only
"""Shows what the suite found on several machines: a table, then what failed or did not run."""

import collections
import dataclasses
import textwrap

from ktap import FAIL, PASS, SKIP

WIDTH = 100


@dataclasses.dataclass
class Run:
    """The suite on one machine: its programs, all that is wrong, and how long it took."""

    machine: str
    pages: str
    programs: list
    wrong: list
    seconds: float

    def tests(self):
        """Yields (program, case, result); a program without cases is a test, with no case."""
        for program in self.programs:
            for case in program.cases:
                yield program.name, case.name, case
            if not program.cases:
                yield program.name, "", program

    def cell(self, name):
        """Returns what a program found: cases that passed and those that did not."""
        program = next((one for one in self.programs if one.name == name), None)
        if not program:
            return FAIL if self.wrong else ""
        number = collections.Counter(case.verdict for case in program.cases)
        if program.verdict == FAIL:
            return f"{number[PASS]}, {number[FAIL] or 1} FAIL"
        if number[SKIP]:
            return f"{number[PASS]}, {number[SKIP]} skip"
        return str(number[PASS]) if program.cases else program.verdict

    def end(self):
        """Returns how the run ended."""
        return f"{'FAIL' if self.wrong else 'ok'}, {self.seconds:.0f} s"


def table(runs):
    """Returns a Markdown table: a row for a program and a page size, a column for a machine."""
    found = {(run.pages, run.machine): run for run in runs}
    machines = dict.fromkeys(run.machine for run in runs)
    programs = dict.fromkeys(program.name for run in runs for program in run.programs)
    rows = [["pages", "program", *machines]]
    for pages in dict.fromkeys(run.pages for run in runs):
        row = [found[pages, machine] for machine in machines]
        rows += [[pages, name, *(run.cell(name) for run in row)] for name in programs]
        rows.append([pages, "the whole run", *(run.end() for run in row)])
    widths = [max(map(len, column)) for column in zip(*rows)]
    rows.insert(1, ["-" * width for width in widths])
    return [f"| {' | '.join(map(str.ljust, row, widths))} |" for row in rows]


def places(runs):
    """Returns where runs were: machines, each with its page sizes."""
    pages = collections.defaultdict(list)
    for run in runs:
        pages[run.machine].append(run.pages)
    machines = collections.defaultdict(list)
    for machine, sizes in pages.items():
        machines[" ".join(sizes)].append(machine)
    return ", ".join(f"{' '.join(names)} ({sizes})" for sizes, names in machines.items())


def grouped(pairs):
    """Returns {key: [values]} of pairs of a key and a value."""
    groups = collections.defaultdict(list)
    for key, value in pairs:
        groups[key].append(value)
    return groups


def item(text):
    """Returns the lines of an item of a Markdown list."""
    return textwrap.wrap(
        f"- {text}", WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


def failed(runs):
    """Returns a list of what is wrong, each with where that is."""
    wrong = grouped((text, run) for run in runs for text in run.wrong)
    lines = [line for text in wrong for line in item(f"{text}; on {places(wrong[text])}")]
    return ["", "Failed:", "", *lines] if lines else []


def skipped(runs):
    """Returns a list of why tests were skipped, each with where that is and the tests."""
    skips = grouped(
        ((f"{program} {case}".strip(), result.reason or "no reason given"), run)
        for run in runs
        for program, case, result in run.tests()
        if result.verdict == SKIP
    )
    tests = grouped(((why, places(where)), test) for (test, why), where in skips.items())
    lines = []
    for (why, where), names in tests.items():
        lines += item(f"{why}; on {where}:") + [f"  - {name}" for name in names]
    return ["", "Skipped:", "", *lines] if lines else []


def never_run(runs):
    """Returns the tests that each run has skipped, alone or with their whole program."""
    tests = [test for run in runs for test in run.tests()]
    ran = {(program, case) for program, case, result in tests if result.verdict != SKIP}
    with_cases = {program for program, case, _ in tests if case}
    never = {(program, case) for program, case, _ in tests} - ran
    return [
        f"{program} {case}".strip()
        for program, case in sorted(never)
        if case or program not in with_cases
    ]


def report(runs, whole):
    """Returns the lines to show, and whether all is well.

    A test that nothing runs is an error, but only the whole matrix can tell.
    """
    never = never_run(runs)
    lines = table(runs) + failed(runs) + skipped(runs)
    if never:
        who = "every machine, which is an error" if whole else "every machine that was asked"
        lines += ["", f"Skipped by {who}:", "", *(f"- {test}" for test in never)]
    verdicts = collections.Counter(result.verdict for run in runs for *_, result in run.tests())
    lines += [
        "",
        f"{len(runs)} runs, {sum(not run.wrong for run in runs)} without a failure;"
        f" {verdicts[PASS]} tests passed, {verdicts[SKIP]} skipped, {verdicts[FAIL]} failed",
    ]
    return lines, not any(run.wrong for run in runs) and not (whole and never)
