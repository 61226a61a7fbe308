# SPDX-License-Identifier: GPL-2.0-only
"""Applies the series, builds it, and runs it on a QEMU machine that hosts KVM guests.

Without a command the selftests of the series run, through kselftest's own
runner, and restore a guest on demand. A second run does only what has changed.

With --vmm a small VMM boots Linux, and restores or migrates it in the ways that
are named after --, or in all: see Documentation/vmm.md.

With --matrix they run on each machine with each page size, or on those that
--machine and --pages name, and a table in Markdown shows what they found.

With --native two of them are built on the machine itself, by Debian's compilers.

With --here they run on this arm64 host or board as it is, with the benchmark, and
leave a file to send back: 'scripts/run --here', or on a small board with an archive
of the programs that 'scripts/run --here --pack FILE' has made on another machine.
"""

import pathlib
import shlex
import tempfile
import time

import config
import here
import kernel
import ktap
import machine
import matrix
import native
import skips
import tree
import user_tree
import vmm
from common import LOGS, LabError, main, new_parser, say

# What the names of the helper's KUnit suites begin with, and where a machine shows what they
# found when it booted.
KUNIT = "kvm_arm64_userfault"
KUNIT_RESULTS = f"/sys/kernel/debug/kunit/{KUNIT}*/results"
KUNIT_OPTION = "KVM_ARM64_USERFAULT_KUNIT_TEST"

# What an ordinary user can run: most of the others look at stage 2, which is for root.
USER_PROGRAMS = "userfault_(dirty_log|exits|guest_memfd|interface|kvm_access|memory|restore)"

# Where a debug kernel shows what memory nothing refers to any more.
LEAKS = "/sys/kernel/debug/kmemleak"


def suite(names="userfault_.*|rust_guest|set_memory_region_test"):
    """Returns the command that shows KUnit's results and runs the selftests of the series.

    A program may take some time; kselftest's own limit is for machines that are not emulated.
    """
    tests = f"$(sed -nE 's/^kvm:({names})$/-t &/p' kselftest-list.txt)"
    return (
        f"cat {KUNIT_RESULTS} 2>/dev/null;"
        f" cd /kselftest && ./run_kselftest.sh --override-timeout 1800 {tests}; code=$?;"
        f" if [ -e {LEAKS} ]; then sleep 6; echo scan >{LEAKS}; cat {LEAKS}; fi; exit $code"
    )


# Runs what follows as nobody, who may use KVM and the console.
AS_USER = (
    "mkdir -p /etc; echo nobody:x:65534:65534:nobody:/tmp:/bin/sh >/etc/passwd;"
    " chmod 666 /dev/kvm /dev/stdout; chmod -R a+rX /kselftest; su nobody -c "
)


def failures(lines):
    """Returns the tests that failed and what the kernel found wrong with itself."""
    failed = [
        f"{program.name} {case.name}" if case else f"{program.name}: {program.reason}"
        for program, case in ktap.failures(ktap.parse(lines))
    ]
    return failed + [line for line in lines if machine.SPLAT.search(line)]


def problems(code, lines, kunit=True):
    """Returns what is wrong with a run of the suite that has come to its end, but for skips."""
    names = [program.name for program in ktap.parse(lines)]
    wrong = failures(lines)
    suites = [name for name in names if name.startswith(KUNIT)]
    if kunit and not suites:
        wrong.append(f"KUnit has no results of {KUNIT}")
    if len(names) == len(suites):
        wrong.append("no selftest ran")
    if len(names) != ktap.planned(lines):
        wrong.append(f"{len(names)} of {ktap.planned(lines)} programs on the console")
    if code and not wrong:
        wrong.append(f"the suite ended with code {code}")
    return wrong


def verdict(name, build, code, lines, user=False):
    """Returns all that is wrong with a run of the suite on a machine, maybe by an ordinary user."""
    # KUnit's results are in debugfs, which is for root.
    wrong = problems(code, lines, config.has(build, KUNIT_OPTION) and not user)
    place = f"{name}-user" if user else name
    return wrong + skips.unexpected(place, build.name, ktap.parse(lines))


def keep(name, lines):
    """Writes a console where no later run writes, and returns where that is."""
    file, path = tempfile.mkstemp(".log", f"failed-{name}-", LOGS)
    with open(file, "w", encoding="utf-8") as out:
        out.write("\n".join(lines))
    return path


def boot_suite(name, build, initrd, user=False):
    """Runs KUnit and the selftests on a machine, or what an ordinary user can run of them, and
    returns what is wrong."""
    command = AS_USER + shlex.quote(suite(USER_PROGRAMS)) if user else suite()
    code, lines = machine.boot(name, build, initrd, command, show=False, timeout=1800)
    wrong = verdict(name, build, code, lines, user)
    return wrong + [f"the console is in {keep(name, lines)}"] if wrong else []


def boot_program(name, build, initrd, program):
    """Runs one selftest on a machine, and returns what is wrong."""
    code, lines = machine.boot(name, build, initrd, f"/kselftest/kvm/{program}", show=False)
    return lines[-20:] if code else [line for line in lines if machine.SPLAT.search(line)]


def variant_of(args, pages):
    """Returns the variant of the kernel that was asked for."""
    return pages + ("-debug" if args.debug else "") + (f"-no{args.without}" if args.without else "")


def build_variant(args, source, pages):
    """Builds a kernel and the selftests and returns (build directory, initial RAM file system)."""
    build = kernel.kernel(source, variant_of(args, pages), args.jobs)
    return build, kernel.initrd(build, kernel.selftests(source, build, args.jobs))


def show_differences(args, source):
    """Shows how a kernel's configuration differs from defconfig; returns an exit code."""
    variant = variant_of(args, args.pages or "4k")
    build = kernel.directory(source, variant)
    config.bring_up_to_date(source, build, variant)
    found = config.differences(source, build, variant)
    for option, theirs, ours, why in found:
        print(f"{option:36} {theirs:>6} -> {ours:6} {why or 'NO REASON in scripts/lab/config'}")
    return 0 if all(why for *_, why in found) else 1


def run_suite(args, name, pages, build, initrd):
    """Runs the suite on one machine; a machine that does not end is what is wrong with the run."""
    start = time.monotonic()
    try:
        code, lines = machine.boot(name, build, initrd, suite(), show=False, timeout=args.timeout)
        wrong = verdict(name, build, code, lines)
    except machine.Unfinished as error:
        lines, wrong = error.lines, [str(error), *failures(error.lines)]
    return matrix.Run(name, pages, ktap.parse(lines), wrong, time.monotonic() - start)


def run_matrix(args, source):
    """Runs the suite on the machines that were asked for, shows the table, returns an exit code."""
    runs = []
    names = [args.machine] if args.machine else machine.MACHINES
    for pages in [args.pages] if args.pages else machine.PAGES:
        try:
            build, initrd = build_variant(args, source, pages)
        except LabError as error:
            runs += [matrix.Run(name, pages, [], [str(error)], 0) for name in names]
            continue
        for name in names:
            runs.append(run_suite(args, name, pages, build, initrd))
            say(f"the {name} machine ({pages} pages): {runs[-1].end()}")
    lines, good = matrix.report(runs, whole=not (args.machine or args.pages or args.without))
    print("\n".join(lines))
    return 0 if good else 1


def run_vmm(args, source):
    """Runs a trial of the example VMM."""
    pages = args.pages or "4k"
    build = kernel.kernel(source, variant_of(args, pages), args.jobs)
    # A guest that is a debug kernel as well would not boot in ten minutes.
    guest_build = kernel.kernel(source, pages, args.jobs) if args.debug else build
    name = args.machine or "vhe"
    return vmm.trial(args.vmm, name, build, guest_build, args.command, args.timeout)


def run_one(args, source):
    """Runs the suite, a command or a prompt on a machine."""
    build, initrd = build_variant(args, source, args.pages or "4k")
    command = shlex.join(args.command) or suite()
    name, options = args.machine or "vhe", {"shell": args.shell, "timeout": args.timeout}
    code, lines = machine.boot(name, build, initrd, command, **options)
    if args.command or args.shell:
        return code
    wrong = verdict(name, build, code, lines)
    for text in wrong:
        say(f"failed: {text}")
    return 1 if wrong else 0


def program():
    """Runs the machine that was asked for, or all."""
    parser = new_parser("scripts/run", __doc__)
    add = parser.add_argument
    add("--machine", choices=machine.MACHINES, help="default: vhe, or all")
    add("--pages", choices=machine.PAGES, help="default: 4k, or all")
    add("--debug", action="store_true", help="a kernel with lockdep, KASAN, kmemleak and UBSAN")
    add("--without", choices=config.WITHOUT, help="a kernel without RUST, or without the helper")
    add("--tree", metavar="DIR", help="a kernel checkout to use as the base")
    add("--jobs", type=int, metavar="N", help="jobs of a build")
    add("--timeout", type=int, default=3600, metavar="S", help="of a boot; default: 3600 seconds")
    of_here = parser.add_mutually_exclusive_group()
    of_here.add_argument("--pack", metavar="FILE", help="with --here: only make the archive")
    of_here.add_argument("--full", action="store_true", help="with --here: all tests and figures")
    one = parser.add_mutually_exclusive_group()
    one.add_argument(
        "--matrix", action="store_true", help="all machines with all page sizes, in a table"
    )
    one.add_argument(
        "--config-diff",
        action="store_true",
        help="show how the kernel's configuration differs from arm64's defconfig, and why",
    )
    one.add_argument("--shell", action="store_true", help="give a prompt on the machine")
    one.add_argument(
        "--vmm", choices=vmm.TRIALS, help="restore or migrate a Linux guest by the example VMM"
    )
    one.add_argument(
        "--native", action="store_true", help="build and run two tests on the machine itself"
    )
    one.add_argument(
        "--here", action="store_true", help="run on this arm64 machine as it is, as root"
    )
    add("command", nargs="*", help="what to run on the machine, after --")
    args = parser.parse_args()
    if args.matrix and args.command:
        parser.error("--matrix runs the suite: leave out the command")
    if args.native and (args.machine or args.command):
        parser.error("--native has a machine and a command of its own")
    if (args.pack or args.full) and not args.here:
        parser.error("--pack and --full are of --here")

    if args.here and args.pack:
        return here.pack(pathlib.Path(args.pack).absolute(), args.jobs)
    if args.here:
        return here.run(["--full"] if args.full else [])
    source = user_tree.user_tree(args.tree) if args.tree else tree.ready()
    if args.config_diff:
        return show_differences(args, source)
    if args.matrix:
        return run_matrix(args, source)
    if args.native:
        build = kernel.kernel(source, variant_of(args, args.pages or "4k"), args.jobs)
        return native.run(source, build, args.timeout)
    return run_vmm(args, source) if args.vmm else run_one(args, source)


if __name__ == "__main__":
    main(program)
