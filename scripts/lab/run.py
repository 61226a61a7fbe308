# SPDX-License-Identifier: GPL-2.0-only
"""Applies the series, builds it, and runs it on a QEMU machine that hosts KVM guests.

Without a command the selftests of the series run, through kselftest's own
runner, and restore a guest on demand. A second run does only what has changed.
"""

import argparse
import re
import shlex

import kernel
import machine
import tree
from common import add_common_options, main

# Where KUnit shows what the suite found when the machine booted.
KUNIT = "/sys/kernel/debug/kunit/kvm_arm64_userfault/results"


# Where a debug kernel shows what memory nothing refers to any more.
LEAKS = "/sys/kernel/debug/kmemleak"


def suite(options=""):
    """Returns the command that shows KUnit's results and runs the selftests of the series."""
    options += " $(sed -n 's/^kvm:userfault/-t &/p' kselftest-list.txt)"
    return (
        f"[ ! -e {KUNIT} ] || cat {KUNIT}; cd /kselftest && ./run_kselftest.sh {options}; code=$?;"
        f" if [ -e {LEAKS} ]; then sleep 6; echo scan >{LEAKS}; cat {LEAKS}; fi; exit $code"
    )


# What the kernel prints when it finds something wrong with itself.
SPLAT = re.compile(
    r"BUG:|WARNING:|INFO: task|Kernel panic|Oops|KASAN|UBSAN|possible recursive locking"
    r"|kmemleak: \d+ new|unreferenced object"
)


def failures(lines):
    """Returns the tests that failed and what the kernel found wrong with itself."""
    failed = re.compile(r"[# ]*not ok \d")
    return [line for line in lines if failed.match(line) or SPLAT.search(line)]


def program():
    """Runs the machine that was asked for."""
    parser = argparse.ArgumentParser(
        prog="scripts/run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_common_options(parser)
    parser.add_argument("--machine", choices=machine.MACHINES, default="vhe", help="default: vhe")
    parser.add_argument("--pages", choices=("4k", "16k", "64k"), default="4k", help="default: 4k")
    parser.add_argument(
        "--debug", action="store_true", help="a kernel with lockdep, KASAN, kmemleak and UBSAN"
    )
    parser.add_argument("--tree", metavar="DIR", help="a kernel checkout to use as the base")
    parser.add_argument("--jobs", type=int, metavar="N", help="jobs of a build")
    parser.add_argument("--shell", action="store_true", help="give a prompt on the machine")
    parser.add_argument("--timeout", type=int, default=600, metavar="S", help="default: 600")
    parser.add_argument("command", nargs="*", help="what to run on the machine, after --")
    args = parser.parse_args()

    source = tree.user_tree(args.tree) if args.tree else tree.ready()
    build = kernel.kernel(source, args.pages + ("-debug" if args.debug else ""), args.jobs)
    initrd = kernel.initrd(build, kernel.selftests(source, build, args.jobs))
    command = shlex.join(args.command) if args.command else suite()
    code, lines = machine.boot(
        args.machine, build, initrd, command, shell=args.shell, timeout=args.timeout
    )
    return code or bool(failures(lines) if not args.command else [])


if __name__ == "__main__":
    main(program)
