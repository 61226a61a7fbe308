# SPDX-License-Identifier: GPL-2.0-only
"""Measures what userfault costs: the base, the series without the helper in Rust and
all of it, on the same machines.

Instructions are counted on machines that take a nanosecond for each, and are the same
each time. Kernels built to count show what costs nothing there: TLB invalidations,
cleaned bytes, locks, hypercalls. Machines with eight CPUs show paging by eight vCPUs,
and how long a toggle takes. Results are a Markdown page, a JSON file and a picture.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import os
import pathlib
import re
import shlex
import shutil
import time

import config
import kernel
import kgit
import machine
import report
import steps
import tree
from common import CACHE, REPO, LabError, lock, main, new_parser, output
from common import say, step, took, write_if_changed
from overlay import overlays
from passed import Passed

# How long a case of the benchmark may take, and all of it.
CASE_SECONDS, SECONDS = 900, 3600

# What is compared: the base, and the series without and with the helper.
BASE, CORE, HELPER = report.KERNELS

# The kernel that tests run on, one that counts, and others whose clock ticks more or less often.
COUNT, EVENTS = "4k", "4k-trace"
TICKS = {100: "4k-hz100", 250: COUNT, 1000: "4k-hz1000"}
# Where the kernels to compare are kept.
FOLDER = CACHE / "bench-kernels"

PROGRAMS = REPO / "scripts/bench-programs"
PROGRAM = "/kselftest/kvm/userfault_bench"

# Cases of the benchmark, by what is measured.
QUICK = "fault fault_block mmio_exit userfault_exit userfault_page flush unmarked_block"
DEMAND = (
    "demand_userfault demand_userfault_copy demand_userfault_file demand_userfault_handler"
    " demand_missing demand_minor"
)
ALL = f"{QUICK} marked_share rearm slot_size latency prefetched_block {DEMAND}"
CALLS = f"{QUICK} marked_share rearm"
HYPERCALLS = "fault userfault_exit userfault_page flush marked_share"
TOGGLES = "toggle fault_meanwhile"


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of figures: the machine and the kernels that they are taken on, and of which cases."""

    host: str
    variant: str
    labels: tuple
    cases: str
    # Others at the same time would make it longer.
    alone: bool = False


def kinds_of(cpu):
    """Returns the kinds of figures of a CPU."""
    return {
        "instructions": Kind(f"counting-{cpu}", COUNT, report.KERNELS, ALL),
        "events": Kind(f"counting-{cpu}", EVENTS, report.KERNELS, CALLS),
    }


MACHINES = {
    "n1": kinds_of("n1"),
    "max": kinds_of("max"),
    "nvhe": {"events": Kind("nvhe", EVENTS, (CORE, HELPER), HYPERCALLS)},
    "protected": {"events": Kind("protected", EVENTS, (CORE, HELPER), HYPERCALLS)},
    "scaling": {"scaling": Kind("eight-n1", EVENTS, (HELPER,), DEMAND)},
    "toggles": {
        f"toggles-{hertz}": Kind("eight-n1", variant, (HELPER,), TOGGLES, alone=True)
        for hertz, variant in TICKS.items()
    },
}


@dataclasses.dataclass(frozen=True)
class Figure:
    """A line of the benchmark's output."""

    name: str
    vcpus: int
    slots: int
    slot_pages: int
    marked: int
    event: str
    value: float
    unit: str


def parse(lines):
    """Returns the figures of a benchmark's output."""
    figures = []
    for line in lines:
        if line.startswith("# bench: name="):
            found = {"event": "", **dict(re.findall(r"(\w+)=(\S+)", line))}
            fields = dataclasses.fields(Figure)
            figures.append(Figure(*(field.type(found[field.name]) for field in fields)))
    return figures


def image(build, commit, variant, jobs):
    """Builds a commit's kernel where another is built, unless that was done, and returns where it
    is."""
    key = steps.key_of(Passed(), variant, commit, steps.NOT_KERNEL)
    target = FOLDER / f"{variant}-{key[:12]}"
    name = "arch/arm64/boot/Image"
    if (target / name).exists():
        return target
    with overlays(kgit.TREE, build):
        kgit.git("checkout", "--quiet", "--force", "--detach", commit)
        config.write(kgit.TREE, build, variant)
        if commit != "base":
            # The base does not offer userfault.
            config.check(build, variant)
        command = kernel.make(kgit.TREE, build, "Image", jobs=jobs)
        step(f"building the {variant} kernel for the benchmark", command, f"bench-{variant}")
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(build / name, target / "new")
        (target / "new").rename(target / name)
    return target


def images_of(kinds, commit, jobs):
    """Builds the kernels of some kinds of figures, which are configured as those that tests run on
    as far as they offer that, and returns {(variant, label): where it is}."""
    compared = {BASE: ("base", ""), CORE: (commit, "-nohelper"), HELPER: (commit, "")}
    images = {}
    for variant in sorted({kind.variant for kind in kinds}):
        build = kernel.kernel(kgit.TREE, variant, jobs)
        labels = {label for kind in kinds if kind.variant == variant for label in kind.labels}
        for label in sorted(labels):
            of, without = compared[label]
            images[variant, label] = image(build, of, variant + without, jobs)
    # Of the same variant, but of a commit that is not wanted any more.
    names = {path.name.rpartition("-")[0] for path in images.values()}
    for old in FOLDER.glob("*-*"):
        if old not in images.values() and old.name.rpartition("-")[0] in names:
            shutil.rmtree(old)
    return images


def add_programs(tests):
    """Adds the benchmark to the selftests of a tree."""
    for path in PROGRAMS.glob("*.rs"):
        shutil.copy(path, tests / "arm64")
    makefile = tests / "Makefile.kvm"
    line = "TEST_GEN_PROGS_RUST_arm64 += arm64/"
    text = makefile.read_text()
    if line not in text:
        raise LabError(f"{makefile} has no '{line}', where the benchmark would be added")
    makefile.write_text(text.replace(line, f"{line}userfault_bench\n{line}", 1))


@contextlib.contextmanager
def selftests(build, commit, jobs, words=()):
    """Builds the selftests of a commit with the benchmark, for as long as they are used."""
    with overlays(kgit.TREE, build):
        kgit.git("checkout", "--quiet", "--force", "--detach", commit)
        add_programs(kgit.TREE / "tools/testing/selftests/kvm")
        yield kernel.selftests(kgit.TREE, build, jobs, words)


@functools.cache
def emulator():
    """Returns which QEMU there is."""
    return output(["qemu-system-aarch64", "--version"]).splitlines()[0]


def place(kind, build, commit, cases):
    """Returns where the figures of a run are kept: they depend on the machine and its emulator, the
    kernel, the programs and the cases."""
    programs = kgit.git("rev-parse", f"{commit}:tools/testing/selftests/kvm/lib")
    host = machine.BENCH_MACHINES.get(kind.host) or machine.MACHINES[kind.host]
    state = hashlib.sha256(f"{programs} {kind.variant} {cases} {host} {emulator()}".encode())
    for path in sorted(PROGRAMS.glob("*.rs")):
        state.update(path.read_bytes())
    return FOLDER / "figures" / f"{kind.host}-{build.name}-{state.hexdigest()[:12]}"


def run(kind, build, initrd, cases):
    """Runs the benchmark on a machine; returns what it prints, and what went wrong."""
    what_counts = "BENCH_EVENTS=1" if kind.variant == EVENTS else "BENCH_INSTRUCTIONS=1"
    words = [] if kind.alone else ["env", what_counts]
    command = shlex.join([*words, PROGRAM, "-t", str(CASE_SECONDS), *cases.split()])
    try:
        _, lines = machine.boot(kind.host, build, initrd, command, show=False, timeout=SECONDS)
        wrong = []
    except machine.Unfinished as error:
        lines, wrong = error.lines, [str(error)]
    wrong += [line for line in lines if line.startswith("not ok")]
    return lines, wrong if parse(lines) else [*wrong, "no figures"]


def measure(chosen, images, initrd, commit, options):
    """Runs all that is to be run, most of it at once; returns the results, and what went wrong."""
    results, wrong = {name: {which: {} for which in kinds} for name, kinds in chosen.items()}, []
    runs = [
        (name, which, label, kind)
        for name, kinds in chosen.items()
        for which, kind in kinds.items()
        for label in kind.labels
    ]

    def take(one):
        """Takes the figures of one run."""
        *words, label, kind = one
        cases, build = QUICK if options.quick else kind.cases, images[kind.variant, label]
        kept = place(kind, build, commit, cases)
        what = ", ".join([*words, label])
        if kept.exists():
            lines = kept.read_text().splitlines()
        else:
            lines, problems = run(kind, build, initrd, cases)
            wrong.extend(f"{what}: {text}" for text in problems)
            if not problems:
                write_if_changed(kept, "\n".join(lines))
        figures = parse(lines)
        say(f"{what}: {len(figures)} figures")
        return figures

    what = f"measuring {' '.join(chosen)}{', quick' if options.quick else ''}"
    say(f"{what} ({took(what)}{len(runs)} runs)")
    start = time.monotonic()
    for alone, jobs in ((False, options.jobs or os.cpu_count() or 1), (True, 1)):
        some = [one for one in runs if one[-1].alone == alone]
        with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            for (name, which, label, _), figures in zip(some, pool.map(take, some)):
                results[name][which][label] = figures
    took(what, time.monotonic() - start)
    return results, wrong


def choose(names, quick):
    """Returns the machines that are asked for, with the kinds of figures to take there."""
    chosen = {name: MACHINES[name] for name in names or MACHINES}
    if quick:
        what = "instructions"
        chosen = {name: {what: kinds[what]} for name, kinds in chosen.items() if what in kinds}
    if not chosen:
        raise LabError("--quick counts instructions, for which there are the machines n1 and max")
    return chosen


def program():
    """Builds, measures and writes the results."""
    parser = new_parser("scripts/bench", __doc__)
    option = parser.add_argument
    text = "or kind of figures; may be repeated; default: all"
    option("--machine", action="append", choices=MACHINES, help=text)
    option("--quick", action="store_true", help="only the main figures")
    text = "where results go; default: bench in the cache"
    option("--output", metavar="DIR", type=pathlib.Path, default=CACHE / "bench", help=text)
    option("--jobs", type=int, metavar="N", help="jobs of a build, machines at a time")
    args = parser.parse_args()

    chosen = choose(args.machine, args.quick)
    if kgit.git("status", "--porcelain", tree=tree.ready()):
        raise LabError(f"{kgit.TREE} has uncommitted changes: commit them first")
    commit = kgit.git("rev-parse", kgit.BRANCH)
    kinds = [kind for kinds in chosen.values() for kind in kinds.values()]
    with lock("build-bench"):
        images = images_of(kinds, commit, args.jobs)
        build = kernel.kernel(kgit.TREE, COUNT, args.jobs)
        initrd = FOLDER / "initrd.cpio.gz"
        with selftests(build, commit, args.jobs) as installed:
            shutil.copy(kernel.initrd(build, installed), initrd)
        results, wrong = measure(chosen, images, initrd, commit, args)
    words = ["--quick"] if args.quick else []
    words += [f"--machine {name}" for name in args.machine or []]
    base, series = (kgit.git("log", "-1", "--format=%s", one) for one in ("base", commit))
    about = {
        "command": " ".join(["scripts/bench", *words]),
        "emulator": emulator(),
        "kernels": {BASE: base, CORE: series, HELPER: series},
    }
    for path in report.write(args.output, results, about):
        print(path)
    for text in wrong:
        say(f"failed: {text}")
    return 1 if wrong else 0


if __name__ == "__main__":
    main(program)
