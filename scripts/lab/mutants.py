# SPDX-License-Identifier: GPL-2.0-only
"""Breaks the series on purpose, one way after the other, and shows which test notices.

All wrong changes of scripts/lab/mutants are in one kernel, whose parameter
kvm.mutant says which of them acts; mutate.py has their form. So is a stand-in for
what a later base has: a second way into the fault path. They are applied to an
overlay of the kernel tree and of its build directory, so that neither is touched.
A machine tries one after the other with the test cases that each names, and is
booted anew when the kernel has died or complained.

A mutant that nothing notices survives: that is an error of the tests.
"""

import argparse
import collections
import contextlib
import dataclasses
import re
import shutil
import time

import kernel
import ktap
import machine
import mutate
import run
import skips
import tree
from common import LAB, LabError, add_common_options, main, output, say, step
from overlay import overlays

# KVM_PRE_FAULT_MEMORY, as far as the fault path sees it, and its test.
STAND_IN = LAB / "stand-in"

PARAMETER = "/sys/module/kvm/parameters/mutant"
# How often a mutant is tried that nothing notices.
TRIES = 3

# How long a case may take, and for how long a machine may say nothing. Nested guests are slow.
SECONDS = {"nested": 120}
DEFAULT_SECONDS = 60

# What is freed becomes poison, so that who uses it dies of it.
POISON = "slab_debug=FP"

# What a kernel says that is as good as dead: it may go on saying it.
OOPS, STALL = r"Oops|Internal error|Kernel panic", r"detected stalls|self-detected stall|soft lockup"
DEAD = f"{OOPS}|{STALL}"

# How a mutant is tried: each program with the cases that are wanted of it, in the form of
# kselftest's runner, and then KUnit's suites, which run again when they are asked to.
SCRIPT = """\
set -o pipefail
cd /kselftest/kvm
t()
{{
	seconds=$1 program=$2 case=$3
	echo "# selftests: kvm: $program"
	if [ ! -x ./$program ]; then
		echo "not ok 1 selftests: kvm: $program # is not there"
		return
	fi
	timeout $((seconds + 20)) ./$program -t $seconds $case 2>&1 | sed 's/^/# /'
	code=$?
	case $code in
	0) echo "ok 1 selftests: kvm: $program" ;;
	4) echo "ok 1 selftests: kvm: $program # SKIP" ;;
	*) echo "not ok 1 selftests: kvm: $program # exit=$code" ;;
	esac
}}
k()
{{
	echo 1 >/sys/kernel/debug/kunit/$1/run
	cat /sys/kernel/debug/kunit/$1/results
}}
m()
{{
	echo $1 >{parameter}
	echo "mutant: begins $1"
}}
e()
{{
	echo 0 >{parameter}
	echo "mutant: ended $1"
}}
"""


@dataclasses.dataclass(frozen=True)
class Case:
    """A test case: of a program, or of a KUnit suite."""

    program: str
    name: str
    is_kunit: bool

    def command(self, seconds):
        """Returns the command that runs it."""
        return f"k {self.program}" if self.is_kunit else f"t {seconds} {self.program} {self.name}"


@dataclasses.dataclass
class Trial:
    """What became of a mutant on a machine."""

    mutant: mutate.Mutant
    failed: list
    how: str = ""

    @property
    def by(self):
        """Returns the named cases that noticed it, or how else it was noticed, or nothing."""
        named = [case for case in self.failed if case in self.mutant.cases]
        return ", ".join(named) or self.how


def all_cases(source):
    """Returns the test cases that a kernel tree has, as {name: [Case]}."""
    found = collections.defaultdict(list)
    for path in sorted((source / "arch/arm64/kvm/userfault").glob("*.rs")):
        text = path.read_text()
        suite = re.search(r"kunit_tests\((\w+)\)", text)
        for name in re.findall(r"#\[test\]\s+fn (\w+)\(", text):
            found[name].append(Case(suite[1], name, True))
    tests = source / "tools/testing/selftests/kvm/arm64"
    for path in sorted([*tests.glob("*.rs"), *STAND_IN.glob("*.rs")]):
        listed = re.search(r"\bcases: \[([^\]]*)\]", path.read_text())
        for name in re.findall(r"(\w+)(?:\s*:\s*\w+)?\s*(?:,|$)", listed[1] if listed else ""):
            found[name].append(Case(path.stem, name, False))
    return found


def cases_of(mutant, known):
    """Returns the cases that a mutant names."""
    unknown = [name for name in mutant.cases if name not in known]
    if unknown:
        raise LabError(f"{mutant.name} names cases that no test has: {', '.join(unknown)}")
    return [case for name in mutant.cases for case in known[name]]


def script(chosen, known, seconds):
    """Returns the commands that try mutants; 0 stands for a kernel where none acts."""
    lines = [SCRIPT.format(parameter=PARAMETER)]
    for number, cases in chosen:
        commands = dict.fromkeys(case.command(seconds) for case in cases)
        lines += [f"m {number}", *commands, f"e {number}"]
    return "\n".join(lines)


def failed_cases(lines, name, variant):
    """Returns the names of the cases and programs that failed, or skipped though they may not."""
    programs = ktap.parse(lines)
    failed = [(case or program).name for program, case in ktap.failures(programs)]
    wrong = skips.unexpected(name, variant, programs)
    return failed + [sentence.split(" was skipped")[0].split()[-1] for sentence in wrong]


def how_noticed(lines, ended, failed):
    """Returns how the kernel, or the end of a program, shows that something is wrong."""
    splats = [line for line in lines if run.SPLAT.search(line)]
    if any(re.search(OOPS, line) for line in lines):
        return "an Oops"
    if any(re.search(STALL, line) for line in lines):
        return "a hang"
    if splats:
        return f"a splat ({splats[0][:60].strip()})"
    if not ended:
        return "a hang"
    if any(re.search(r"# exit=1(3[4-9]|4[0-2])|killed by signal", line) for line in lines):
        return "an abort" if failed else ""
    return ""


def sections(lines):
    """Yields (number of a mutant, its lines, whether it came to its end)."""
    number, part = None, []
    for line in lines:
        begins = re.search(r"mutant: begins (\d+)$", line)
        ended = re.search(r"mutant: ended (\d+)$", line)
        if begins:
            number, part = int(begins[1]), []
        elif ended and number is not None:
            yield number, part, True
            number = None
        elif number is not None:
            part.append(line)
    if number is not None:
        yield number, part, False


class Place:
    """A machine with a kernel that has all mutants, on which some are tried."""

    def __init__(self, name, build, initrd, known):
        self.name, self.build, self.initrd, self.known = name, build, initrd, known
        self.seconds = SECONDS.get(name, DEFAULT_SECONDS)

    def boot(self, chosen):
        """Boots the machine to try [(number, cases)] and returns its console."""
        command = script(chosen, self.known, self.seconds)
        try:
            _, lines = machine.boot(
                self.name,
                self.build,
                self.initrd,
                command,
                limits=machine.Limits(600 + 60 * len(chosen), self.seconds + 60, DEAD),
                show=False,
                extra=POISON,
            )
        except machine.Unfinished as error:
            lines = error.lines
        return lines

    def check_tests(self, mutants):
        """Fails if the cases of mutants fail where none acts."""
        cases = list(dict.fromkeys(case for one in mutants for case in cases_of(one, self.known)))
        found = list(sections(self.boot([(0, cases)])))
        failed = [case for _, lines, _ in found for case in failed_cases(lines, *self.names)]
        if failed or not found or not found[0][2]:
            raise LabError(
                f"on {self.name} with {self.build.name}, where no mutant acts, these fail:"
                f" {', '.join(failed) or 'the machine did not get to its end'}"
            )

    @property
    def names(self):
        """Returns the names of machine and kernel."""
        return self.name, self.build.name

    def hunt(self, mutants):
        """Tries mutants, those that nothing notices some times, and yields the last Trial of each:
        it takes luck to lose a race."""
        for number in range(TRIES):
            survived = []
            for trial in self.try_each(mutants):
                if trial.by or number == TRIES - 1:
                    yield trial
                else:
                    survived.append(trial.mutant)
            mutants = survived

    def try_each(self, mutants):
        """Tries mutants once and yields a Trial for each."""
        left = {one.number: one for one in mutants}
        while left:
            chosen = [(number, cases_of(one, self.known)) for number, one in left.items()]
            before = len(left)
            for number, lines, ended in sections(self.boot(chosen)):
                failed = failed_cases(lines, *self.names)
                how = how_noticed(lines, ended, failed)
                yield Trial(left.pop(number), failed, how)
                if how and how != "an abort":
                    # What comes after this would not say much.
                    break
            if len(left) == before:
                raise LabError(f"the {self.name} machine did not get to its first mutant")


@contextlib.contextmanager
def kernel_with(all_mutants, source, variant, jobs=None):
    """Builds a kernel that has all mutants and the stand-in, with the selftests, for as long as
    they are used."""
    build = kernel.kernel(source, variant, jobs)
    with overlays(source, build):
        for path in STAND_IN.glob("*.patch"):
            output(["git", "-C", source, "apply", "--3way", path])
        for path in STAND_IN.glob("*.rs"):
            shutil.copy(path, source / "tools/testing/selftests/kvm/arm64")
        for name, text in mutate.files(all_mutants, source).items():
            (source / name).write_text(text)
        command = kernel.make(source, build, "-s", "Image", jobs=jobs)
        step(f"building the {variant} kernel with {len(all_mutants)} mutants", command, "mutants")
        yield build, kernel.initrd(build, kernel.selftests(source, build, jobs))


def choose(names=()):
    """Returns the mutants that are named, or all that are not equivalent."""
    found = {one.name: one for one in mutate.mutants()}
    unknown = set(names) - found.keys()
    if unknown:
        raise LabError(f"no mutant is called {', '.join(sorted(unknown))}")
    if names:
        return [found[name] for name in names]
    return [one for one in found.values() if one.cases]


def hunt(chosen, machines=None, jobs=None):
    """Tries mutants on their machines and yields (machine, variant of the kernel, Trial)."""
    source = tree.ready()
    known = all_cases(source)
    for one in chosen:
        cases_of(one, known)
    by_kernel = collections.defaultdict(lambda: collections.defaultdict(list))
    for one in chosen:
        for name, variant in one.places:
            if not machines or name in machines:
                by_kernel[variant][name].append(one)
    for variant, by_machine in by_kernel.items():
        with kernel_with(mutate.mutants(), source, variant, jobs) as (build, initrd):
            for name, mutants in by_machine.items():
                place = Place(name, build, initrd, known)
                say(f"{len(mutants)} mutants on the {name} machine, {variant} kernel")
                place.check_tests(mutants)
                for trial in place.hunt(mutants):
                    yield name, variant, trial


def show_list(chosen):
    """Shows mutants, and why some cannot be noticed."""
    for one in chosen:
        print(f"{one.name:44} {one.breaks}")
    for one in mutate.mutants():
        if not one.cases:
            print(f"{one.name:44} equivalent: {one.fields['equivalent']}")


def program():
    """Hunts mutants and shows a line for each."""
    parser = argparse.ArgumentParser(
        prog="scripts/mutants",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_common_options(parser)
    parser.add_argument("--list", action="store_true", help="show the mutants and stop")
    parser.add_argument("--machine", action="append", choices=machine.MACHINES, help="only there")
    parser.add_argument("--jobs", type=int, metavar="N", help="jobs of a build")
    parser.add_argument("mutant", nargs="*", help="which to try; default: all")
    args = parser.parse_args()

    chosen = choose(args.mutant)
    if args.list:
        show_list(chosen)
        return 0
    noticed, tried, start = 0, 0, time.monotonic()
    for name, variant, trial in hunt(chosen, args.machine, args.jobs):
        tried += 1
        noticed += bool(trial.by)
        others = f", but these failed: {', '.join(trial.failed)}" if trial.failed else ""
        by = f"by {trial.by}" if trial.by else f"by no case that is named{others}"
        verdict = "noticed" if trial.by else "SURVIVED"
        print(f"{verdict:8} {trial.mutant.name:44} {name:9} {variant:12} {by}", flush=True)
    minutes = (time.monotonic() - start) / 60
    print(f"{noticed} of {tried} trials of {len(chosen)} mutants noticed, {minutes:.0f} minutes")
    return 0 if noticed == tried else 1


if __name__ == "__main__":
    main(program)
