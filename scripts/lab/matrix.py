# SPDX-License-Identifier: GPL-2.0-only
"""Shows what the suite found on several machines: a table, then what failed or did not run."""

import collections
import dataclasses

from ktap import FAIL, PASS, SKIP


@dataclasses.dataclass
class Run:
    """The suite on one machine: its programs, all that is wrong, and how long it took."""

    machine: str
    pages: str
    programs: list
    wrong: list
    seconds: float

    @property
    def place(self):
        """Returns where it was."""
        return f"{self.machine} {self.pages}"

    def tests(self):
        """Yields (program and case, result); a program without cases is a test."""
        for program in self.programs:
            for case in program.cases:
                yield f"{program.name} {case.name}", case
            if not program.cases:
                yield program.name, program

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


def listed(title, pairs):
    """Returns a list of pairs of what happened and where, the same with all of its places."""
    places = collections.defaultdict(list)
    for what, where in pairs:
        places[what].append(where)
    lines = [f"- {what}; on {', '.join(where)}" for what, where in places.items()]
    return ["", f"{title}:", "", *lines] if lines else []


def report(runs, whole):
    """Returns the lines to show, and whether all is well.

    A test that nothing runs is an error, but only the whole matrix can tell.
    """
    tests = [(name, result, run.place) for run in runs for name, result in run.tests()]
    ran = {name for name, result, _ in tests if result.verdict != SKIP}
    with_cases = {name.split()[0] for name, *_ in tests if " " in name}
    never = sorted({name for name, *_ in tests} - ran - with_cases)
    skipped = [
        (f"{name}: {result.reason or 'no reason given'}", place)
        for name, result, place in tests
        if result.verdict == SKIP
    ]
    lines = table(runs)
    lines += listed("Failed", [(text, run.place) for run in runs for text in run.wrong])
    lines += listed("Skipped", skipped)
    if never:
        who = "every machine, which is an error" if whole else "every machine that was asked"
        lines += ["", f"Skipped by {who}:", "", *(f"- {test}" for test in never)]
    verdicts = collections.Counter(result.verdict for _, result, _ in tests)
    good = sum(not run.wrong for run in runs)
    counts = f"{verdicts[PASS]} tests passed, {verdicts[SKIP]} skipped, {verdicts[FAIL]} failed"
    lines += ["", f"{len(runs)} runs, {good} without a failure; {counts}"]
    return lines, good == len(runs) and not (whole and never)
