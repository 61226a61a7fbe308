# SPDX-License-Identifier: GPL-2.0-only
"""Breaks the series on purpose, one way after the other, and shows which test catches it.

Each file of scripts/lab/mutants is one small wrong change, with the promise
that it breaks and the test cases that must fail. It is applied to an overlay of
the kernel tree and of its build directory, so that neither is touched, then
built and booted with the programs that have these cases. A mutant that no named
case catches survives: that is an error of the tests.
"""

import argparse
import dataclasses
import pathlib
import re
import time

import kernel
import ktap
import machine
import run
import tree
from common import LAB, LabError, add_common_options, main, output, step, succeeds
from overlay import overlays

DIRECTORY = LAB / "mutants"

# A program that hangs has noticed something as well. Nested guests are slow.
SECONDS = {"nested": 90}


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A wrong change."""

    path: pathlib.Path
    breaks: str
    cases: list
    machine: str

    @property
    def name(self):
        """Its name."""
        return self.path.stem


def read(path):
    """Reads a mutant: a text with fields, then a diff."""
    text = path.read_text()
    fields = dict(re.findall(r"^(Breaks|Caught-by|Machine): *(.+)$", text, re.MULTILINE))
    if "Breaks" not in fields or "Caught-by" not in fields or "\ndiff --git " not in text:
        raise LabError(f"{path} lacks 'Breaks:', 'Caught-by:' or a diff")
    cases = [case.strip() for case in fields["Caught-by"].split(",")]
    return Mutant(path, fields["Breaks"], cases, fields.get("Machine", "nofwb"))


def mutants(names=()):
    """Returns the mutants, all or those that are named."""
    found = {path.stem: read(path) for path in sorted(DIRECTORY.glob("*.patch"))}
    unknown = set(names) - found.keys()
    if unknown:
        raise LabError(f"no mutant is called {', '.join(sorted(unknown))}")
    return [found[name] for name in names or found]


def failed_cases(lines):
    """Returns the names of the cases and programs that failed, KUnit's and the selftests' alike."""
    return [(case or program).name for program, case in ktap.failures(ktap.parse(lines))]


def programs(mutant, source):
    """Returns the test programs that have the cases of a mutant; KUnit's run at each boot."""
    kunit = set((source / "arch/arm64/kvm/userfault").glob("*.rs"))
    files = [*kunit, *(source / "tools/testing/selftests/kvm/arm64").glob("*.rs")]
    texts = {path: path.read_text() for path in sorted(files)}
    found = set()
    for case in mutant.cases:
        having = {path for path, text in texts.items() if f"fn {case}(" in text}
        if not having:
            raise LabError(f"{mutant.path} names the case '{case}', which no test has")
        found |= having
    return sorted(path.stem for path in found - kunit)


def try_mutant(mutant, source, build, initrd):
    """Builds and boots one mutant; returns (the cases that failed, what ended the run early)."""
    with overlays(source, build):
        if not succeeds(["git", "-C", source, "apply", "--check", mutant.path]):
            raise LabError(f"{mutant.path} does not apply to the series any more: bring it up to date")
        output(["git", "-C", source, "apply", mutant.path])
        command = kernel.make(source, build, "-s", "Image")
        step(f"building the mutant {mutant.name}", command, f"mutant-{mutant.name}")
        try:
            # Where KUnit alone has to notice, any program will do.
            names = "|".join(programs(mutant, source) or ["userfault_interface"])
            suite = run.suite(SECONDS.get(mutant.machine, 40), names)
            _, lines = machine.boot(mutant.machine, build, initrd, suite, show=False)
        except machine.Unfinished as error:
            return failed_cases(error.lines), str(error)
    return failed_cases(lines), ""


def hunt(chosen, jobs=None):
    """Tries mutants and yields (mutant, cases that failed, seconds)."""
    source = tree.ready()
    build = kernel.kernel(source, "4k", jobs)
    initrd = kernel.initrd(build, kernel.selftests(source, build, jobs))
    for mutant in chosen:
        start = time.monotonic()
        failed, _ = try_mutant(mutant, source, build, initrd)
        yield mutant, failed, time.monotonic() - start


def caught(mutant, failed):
    """Says whether a case that has to catch a mutant did."""
    return any(case in failed for case in mutant.cases)


def program():
    """Hunts mutants and shows a table."""
    parser = argparse.ArgumentParser(
        prog="scripts/mutants",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_common_options(parser)
    parser.add_argument("--list", action="store_true", help="show the mutants and stop")
    parser.add_argument("--jobs", type=int, metavar="N", help="jobs of a build")
    parser.add_argument("mutant", nargs="*", help="which to try; default: all")
    args = parser.parse_args()

    chosen = mutants(args.mutant)
    if args.list:
        for mutant in chosen:
            print(f"{mutant.name:40} {mutant.breaks}")
        return 0
    survivors = 0
    for mutant, failed, seconds in hunt(chosen, args.jobs):
        verdict = "caught" if caught(mutant, failed) else "SURVIVED"
        survivors += verdict != "caught"
        by = ", ".join(case for case in failed if not case.startswith("userfault_")) or "nothing"
        print(f"{verdict:8} {mutant.name:40} by {by} ({seconds:.0f} s)", flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} mutants caught")
    return 1 if survivors else 0


if __name__ == "__main__":
    main(program)
