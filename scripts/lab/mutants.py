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

import collections
import contextlib
import re
import shlex
import shutil
import time

import kernel
import ktap
import machine
import mutate
import skips
import tree
from common import LAB, LabError, main, new_parser, output, say, step
from overlay import overlays

# KVM_PRE_FAULT_MEMORY, as far as the fault path sees it, and its test.
STAND_IN = LAB / "stand-in"

# How often a mutant is tried that nothing notices.
TRIES = 3

# How long a case may take. Nested guests are slow.
SECONDS = collections.defaultdict(lambda: 60, nested=120)

# What is freed becomes poison, so that who uses it dies of it.
POISON = "slab_debug=FP"

# What a kernel says that is as good as dead: it may go on saying it.
DEAD = "Oops|Internal error|Kernel panic|detected stalls|self-detected stall|soft lockup"

# How a mutant is tried: each program with a case that is wanted of it, in the form of
# kselftest's runner, and KUnit's suites, which run again when they are asked to.
SCRIPT = """\
set -o pipefail
cd /kselftest/kvm
t()
{
	echo "# selftests: kvm: $1"
	timeout $((seconds + 20)) ./$1 -t $seconds $2 2>&1 | sed 's/^/# /'
	code=$?
	case $code in
	0) echo "ok 1 selftests: kvm: $1" ;;
	4) echo "ok 1 selftests: kvm: $1 # SKIP" ;;
	*) echo "not ok 1 selftests: kvm: $1 # exit=$code" ;;
	esac
}
k()
{
	echo 1 >/sys/kernel/debug/kunit/$1/run
	cat /sys/kernel/debug/kunit/$1/results
}
m()
{
	number=$1
	shift
	dmesg -c >/dev/null
	echo $number >/sys/module/kvm/parameters/mutant
	echo "mutant: begins $number"
	for test; do $test; done
	echo 0 >/sys/module/kvm/parameters/mutant
	echo "mutant: ended $number"
	# What comes after this would not say much.
	! dmesg | grep -qE "$splat" || exit 1
}
"""


# What became of a mutant: the tests that failed, and what noticed it, which may be nothing.
Trial = collections.namedtuple("Trial", "mutant failed by")


def all_cases(source):
    """Returns the test cases that a kernel tree has, and the commands that run each."""
    found = collections.defaultdict(list)
    for path in sorted((source / "arch/arm64/kvm/userfault").glob("*.rs")):
        text = path.read_text()
        suite = re.search(r"kunit_tests\((\w+)\)", text)
        for name in re.findall(r"#\[test\]\s+fn (\w+)\(", text):
            found[name].append(f"k {suite[1]}")
    tests = source / "tools/testing/selftests/kvm/arm64"
    for path in sorted([*tests.glob("*.rs"), *STAND_IN.glob("*.rs")]):
        listed = re.search(r"^    cases: \[\n(.*?)^    \],$", path.read_text(), re.M | re.S)
        for name in re.findall(r"^ {8}(\w+)", listed[1] if listed else "", re.M):
            found[name].append(f"t {path.stem} {name}")
    return found


def commands(mutant, known):
    """Returns the commands that run the cases that a mutant names."""
    unknown = [name for name in mutant.cases if name not in known]
    if unknown:
        raise LabError(f"{mutant.name} names cases that no test has: {', '.join(unknown)}")
    return list(dict.fromkeys(command for name in mutant.cases for command in known[name]))


def failed_cases(lines, name, variant):
    """Returns the names of the cases and programs that failed, or skipped though they may not."""
    programs = ktap.parse(lines)
    failed = [(case or program).name for program, case in ktap.failures(programs)]
    wrong = skips.unexpected(name, variant, programs)
    return failed + [sentence.split(" was skipped")[0].split()[-1] for sentence in wrong]


def sections(lines):
    """Yields (number of a mutant, its lines, whether it came to its end)."""
    parts = re.split(r"^.*mutant: begins (\d+)\n", "\n".join([*lines, ""]), flags=re.MULTILINE)
    for number, part in zip(parts[1::2], parts[2::2]):
        part, ended, _ = part.partition(f"mutant: ended {number}\n")
        yield int(number), part.splitlines(), bool(ended)


class Place:
    """A machine with a kernel that has all mutants, on which some are tried."""

    def __init__(self, name, build, initrd, known):
        self.name, self.build, self.initrd, self.known = name, build, initrd, known

    def boot(self, chosen):
        """Boots the machine to try mutants, and yields of each that it got to (number, tests that
        failed, how the kernel shows that something is wrong with it)."""
        seconds = SECONDS[self.name]
        lines = [f"m {one.number} {shlex.join(commands(one, self.known))}" for one in chosen]
        splat = machine.SPLAT.pattern.replace(r"\d", "[0-9]")
        script = "\n".join([SCRIPT, f"seconds={seconds} splat='{splat}'", *lines])
        limits = {"timeout": 600 + 60 * len(chosen), "silence": seconds + 60, "stop": DEAD}
        place = self.name, self.build, self.initrd
        try:
            _, console = machine.boot(*place, script, **limits, show=False, extra=POISON)
        except machine.Unfinished as error:
            console = error.lines
        for number, lines, ended in sections(console):
            failed = failed_cases(lines, self.name, self.build.name)
            splat = next(filter(machine.SPLAT.search, lines), "")[:60].strip()
            how = f"a splat ({splat})" if splat else ""
            yield number, failed, how or ("" if ended else "a hang")

    def hunt(self, mutants):
        """Tries mutants, after their cases where none acts, and yields a Trial of each. It takes
        luck to lose a race: one that nothing notices comes again, after the others."""
        cases = ",".join(case for one in mutants for case in one.cases)
        none = mutate.Mutant(0, "none", {"caught-by": cases}, [])
        left = {one.number: one for one in (none, *mutants)}
        tries = collections.Counter()
        while left:
            before = tries.total()
            for number, failed, how in self.boot(list(left.values())):
                tries[number] += 1
                mutant = left.pop(number)
                programs = {words.split()[1] for words in commands(mutant, self.known)}
                by = [case for case in failed if case in mutant.cases]
                by = ", ".join(by) or how or ", ".join(one for one in failed if one in programs)
                if mutant is none:
                    if failed or how:
                        where = f"on {self.name} with {self.build.name}, where no mutant acts"
                        raise LabError(f"{where}, these fail: {', '.join(failed) or how}")
                elif by or tries[number] == TRIES:
                    yield Trial(mutant, failed, by)
                else:
                    left[number] = mutant
                if how:
                    # What comes after this would not say much.
                    break
            if tries.total() == before:
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
    return [found[name] for name in names] or [one for one in found.values() if one.cases]


def hunt(chosen, machines=None, jobs=None, kernels=None):
    """Tries mutants on their machines and yields (machine, variant of the kernel, Trial)."""
    source = tree.ready()
    known = all_cases(source)
    for one in chosen:
        commands(one, known)
    places = {place for one in chosen for place in one.places}
    places = {place for place in places if not machines or place[0] in machines}
    places = {place for place in places if not kernels or place[1] in kernels}
    for variant in sorted({variant for _, variant in places}):
        with kernel_with(mutate.mutants(), source, variant, jobs) as (build, initrd):
            for name in sorted(name for name, kind in places if kind == variant):
                mutants = [one for one in chosen if (name, variant) in one.places]
                say(f"{len(mutants)} mutants on the {name} machine, {variant} kernel")
                for trial in Place(name, build, initrd, known).hunt(mutants):
                    yield name, variant, trial


def program():
    """Hunts mutants and shows a line for each."""
    parser = new_parser("scripts/mutants", __doc__)
    parser.add_argument("--list", action="store_true", help="show the mutants and stop")
    parser.add_argument("--machine", action="append", choices=machine.MACHINES, help="only there")
    variants = sorted({kernel for one in mutate.mutants() for _, kernel in one.places})
    parser.add_argument("--kernel", action="append", choices=variants, help="only with it")
    parser.add_argument("--jobs", type=int, metavar="N", help="jobs of a build")
    parser.add_argument("mutant", nargs="*", help="which to try; default: all")
    args = parser.parse_args()

    chosen = choose(args.mutant)
    if args.list:
        for one in chosen:
            print(f"{one.name:44} {one.fields['breaks']}")
        for one in mutate.mutants():
            if not one.cases:
                print(f"{one.name:44} equivalent: {one.fields['equivalent']}")
        return 0
    noticed, start = [], time.monotonic()
    for name, variant, trial in hunt(chosen, args.machine, args.jobs, args.kernel):
        noticed.append(bool(trial.by))
        others = f", but these failed: {', '.join(trial.failed)}" if trial.failed else ""
        by = trial.by or f"no case that is named{others}"
        verdict = "noticed" if trial.by else "SURVIVED"
        print(f"{verdict:8} {trial.mutant.name:44} {name:9} {variant:12} by {by}", flush=True)
    print(
        f"{sum(noticed)} of {len(noticed)} trials of {len(chosen)} mutants noticed,"
        f" {(time.monotonic() - start) / 60:.0f} minutes"
    )
    return 0 if all(noticed) else 1


if __name__ == "__main__":
    main(program)
