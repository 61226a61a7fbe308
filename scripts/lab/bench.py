# SPDX-License-Identifier: GPL-2.0-only
"""Measures what userfault costs: counts the instructions of the base, of the series
without the helper in Rust and of all of it, on the same machines.

The machines take a nanosecond for each instruction, so that what the program
userfault_bench measures are numbers of instructions, and the same ones each
time. On kernels of their own, built to count calls and locks, it then counts
what costs nothing there. Results are a Markdown page, a JSON file and a picture.
"""

import argparse
import concurrent.futures
import dataclasses
import functools
import os
import pathlib
import re
import shlex
import shutil

import config
import kernel
import kgit
import machine
import report
import tree
from common import CACHE, REPO, LabError, add_common_options, lock, main, output, step
from overlay import overlays

# How long a case of the benchmark may take, and all of it.
CASE_SECONDS, SECONDS = 900, 3600

# What is compared: the base, and the series without and with the helper.
BASE, CORE, HELPER = "base", "core", "helper"

# The kernel whose instructions are counted, the one that tests run on, and a kernel that counts
# calls and locks.
COUNT, EVENTS = "4k", "4k-trace"
# Where the kernels to compare are kept.
FOLDER = CACHE / "bench-kernels"

# The machines, and where calls and locks are counted: with two CPUs.
MACHINES = {"n1": ("counting-n1", "nofwb"), "max": ("counting-max", "vhe")}

# What is run of the benchmark. Without names it runs all of its cases.
PROGRAMS = REPO / "scripts/bench-programs"
PROGRAM = "/kselftest/kvm/userfault_bench"
QUICK_CASES = "fault fault_block mmio_exit userfault_exit userfault_page unmarked_block terabyte"
EVENT_CASES = (
    "mmio_exit userfault_exit userfault_page marked_share unmarked_block"
    " terabyte demand_userfault demand_userfault_file demand_missing demand_minor"
)


@dataclasses.dataclass(frozen=True)
class Figure:
    """A line of the benchmark's output."""

    name: str
    vcpus: int
    slot_pages: int
    marked: int
    event: str
    value: float
    unit: str


def parse(lines):
    """Returns the figures of a benchmark's output."""
    figures = []
    for line in lines:
        if line.startswith("# bench: "):
            fields = dict(re.findall(r"(\w+)=(\S+)", line))
            figures.append(
                Figure(
                    fields["name"],
                    *(int(fields[key]) for key in ("vcpus", "slot_pages", "marked")),
                    fields.get("event", ""),
                    float(fields["value"]),
                    fields["unit"],
                )
            )
    return figures


def kernels(commit):
    """Returns the kernels to compare, as {name: (commit, what is added to a variant's name)}."""
    return {BASE: ("base", "-nohelper"), CORE: (commit, "-nohelper"), HELPER: (commit, "")}


def image(build, commit, variant, jobs):
    """Builds a commit's kernel where another is built, unless there is one of the same source, and
    returns where it is."""
    content = kgit.git("rev-parse", f"{commit}^{{tree}}")
    asked = config.defaults(kgit.TREE) + config.text(variant)
    target = FOLDER / f"{variant}-{content[:12]}"
    stamp = target / "config"
    if stamp.exists() and stamp.read_text() == asked:
        return target
    with overlays(kgit.TREE, build):
        kgit.git("checkout", "--quiet", "--force", "--detach", commit)
        config.write(kgit.TREE, build, variant)
        if commit != "base":
            # The base does not offer userfault.
            config.check(build, variant)
        command = kernel.make(kgit.TREE, build, "Image", jobs=jobs)
        step(f"building the {variant} kernel for the benchmark", command, f"bench-{variant}")
        name = pathlib.Path("arch/arm64/boot/Image")
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(build / name, target / name)
        stamp.write_text(asked)
    return target


def selftests(build, commit, jobs):
    """Builds the selftests of the whole series with the benchmark, and returns an initrd."""
    tests = kgit.TREE / "tools/testing/selftests/kvm"
    target = FOLDER / "initrd.cpio.gz"
    with overlays(kgit.TREE, build):
        kgit.git("checkout", "--quiet", "--force", "--detach", commit)
        for path in PROGRAMS.glob("*.rs"):
            shutil.copy(path, tests / "arm64")
        makefile = tests / "Makefile.kvm"
        line = "TEST_GEN_PROGS_RUST_arm64 += arm64/"
        text = makefile.read_text()
        if line not in text:
            raise LabError(f"{makefile} has no '{line}', where the benchmark would be added")
        makefile.write_text(text.replace(line, f"{line}userfault_bench\n{line}", 1))
        FOLDER.mkdir(parents=True, exist_ok=True)
        shutil.copy(kernel.initrd(build, kernel.selftests(kgit.TREE, build, jobs)), target)
    return target


def run(name, build, initrd, kind, cases):
    """Runs the benchmark on a machine and returns its figures."""
    words = ["env", "BENCH_EVENTS=1"] if kind == "events" else []
    command = shlex.join([*words, PROGRAM, "-t", str(CASE_SECONDS), *cases])
    code, lines = machine.boot(name, build, initrd, command, show=False, timeout=SECONDS)
    figures = parse(lines)
    if code or not figures or any(line.startswith("not ok") for line in lines):
        raise LabError("the benchmark failed:\n" + "\n".join(lines[-20:]))
    return figures


def jobs_of(machines, images, quick):
    """Yields what is to be run, as (machine, kernel, what is counted, arguments for run())."""
    for name, (counting, ordinary) in machines.items():
        for label, build in images[COUNT].items():
            cases = QUICK_CASES.split() if quick else []
            yield name, label, "instructions", (counting, build, cases)
        for label, build in images.get(EVENTS, {}).items():
            yield name, label, "events", (ordinary, build, EVENT_CASES.split())


def measure(machines, images, initrd, quick, jobs):
    """Runs all that is to be run, some of it at once, and returns the results."""
    results = {name: {"instructions": {}, "events": {}} for name in machines}
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        running = {}
        for name, label, kind, (host, build, cases) in jobs_of(machines, images, quick):
            future = pool.submit(run, host, build, initrd, kind, cases)
            running[future] = results[name][kind], label
        for future in concurrent.futures.as_completed(running):
            into, label = running[future]
            try:
                into[label] = future.result()
            except LabError:
                pool.shutdown(cancel_futures=True)
                raise
    return results


def images_of(compared, kinds, jobs):
    """Builds the kernels and returns {variant: {name: where it is}}; the same one is built once."""
    images = {}
    for kind in kinds:
        build = kernel.kernel(kgit.TREE, kind, jobs)
        images[kind] = {
            name: image(build, commit, kind + rest, jobs)
            for name, (commit, rest) in compared.items()
        }
    used = {path for found in images.values() for path in found.values()}
    for old in FOLDER.glob("*/config"):
        if old.parent not in used and old.parent.name.startswith(tuple(kinds)):
            shutil.rmtree(old.parent)
    return images


def program():
    """Builds, measures and writes the results."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_common_options(parser)
    parser.add_argument(
        "--machine", action="append", choices=MACHINES, help="may be repeated; default: both"
    )
    parser.add_argument(
        "--quick", action="store_true", help="leave out what takes long: under 3 minutes"
    )
    parser.add_argument(
        "--output",
        metavar="DIR",
        type=pathlib.Path,
        default=CACHE / "bench",
        help="where results go; default: bench in the cache",
    )
    parser.add_argument(
        "--branch", help="measure this branch of the series' tree, and leave the tree as it is"
    )
    parser.add_argument("--jobs", type=int, metavar="N", help="jobs of a build, machines at a time")
    args = parser.parse_args()

    if not args.branch and kgit.git("status", "--porcelain", tree=tree.ready()):
        raise LabError(f"{kgit.TREE} has uncommitted changes: commit them first")
    commit = kgit.git("rev-parse", args.branch or kgit.BRANCH)
    compared = kernels(commit)
    with lock("build-bench"):
        images = images_of(compared, [COUNT] if args.quick else [COUNT, EVENTS], args.jobs)
        initrd = selftests(kernel.directory(kgit.TREE, COUNT), commit, args.jobs)
        machines = {name: MACHINES[name] for name in args.machine or MACHINES}
        jobs = args.jobs or os.cpu_count() or 1
        results = measure(machines, images, initrd, args.quick, jobs)
    command = "scripts/bench" + (" --quick" if args.quick else "")
    command += "".join(f" --machine {name}" for name in args.machine or [])
    for path in report.write(args.output, results, describe(compared, command)):
        print(path)
    return 0


def describe(compared, command):
    """Returns what the results are of, for the report."""
    subject = functools.partial(kgit.git, "log", "-1", "--format=%s")
    return {
        "command": command,
        "emulator": output(["qemu-system-aarch64", "--version"]).splitlines()[0],
        "kernels": {name: subject(commit) for name, (commit, _) in compared.items()},
    }


if __name__ == "__main__":
    main(program)
