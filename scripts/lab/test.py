# SPDX-License-Identifier: GPL-2.0-only
"""Proves this repo: its scripts, the patches, their Rust, the kernels they make
and what these do on machines. One line a check, and a count at the end."""

import argparse
import functools
import pathlib
import re
import subprocess
import sys
import tempfile
import time

import checkpatch
import config
import ends
import export
import here
import kernel
import kgit
import ktap_cases
import mirrors
import models
import mutants
import mutate
import oracle
import patches
import refused
import run
import rust
import selftest_builds
import tree
import vmm
from common import LAB, REPO, LabError, add_common_options, main, output, step
from overlay import overlays

# What is compiled with warnings, and the machines that the suite runs on, with which kernels.
WARNED = ["4k", "4k-norust"]
# For the rest there is 'scripts/run --matrix', with --without helper and --without rust.
RUN = {"4k": ["vhe", "nofwb"], "4k-norust": ["nofwb"]}
# The mutants that are tried each time.
QUICK_MUTANTS = [
    "bitmap-is-replaced",
    "disable-invalidates",
    "every-block-is-clear",
    "exit-from-within-the-fault-path",
    "exit-marks-dirty",
    "fault-ignores-mark",
    "rest-of-a-chunk-stays",
    "thp-covers-mark",
    "toggle-unbinds",
    "unreadable-is-clear",
    "bits-in-reverse",
]
# Where the example VMM runs Linux.
VMM_MACHINES = ["vhe", "nofwb"]


class Passed(str):
    """What a check has to say that passed."""


class Checks:
    """Runs checks, a line each, and counts them."""

    def __init__(self, only):
        self.only, self.passed, self.failed = only, 0, 0

    def check(self, name, function):
        """Runs a check: it fails by an exception or by returning what is wrong, as a text or a list.

        One that passes returns nothing, or Passed."""
        if self.only and not any(word in name for word in self.only):
            return
        start = time.monotonic()
        try:
            wrong = function() or ""
            wrong = "\n".join(wrong) if isinstance(wrong, list) else wrong
        except LabError as error:
            wrong = str(error)
        seconds = time.monotonic() - start
        if wrong and not isinstance(wrong, Passed):
            self.failed += 1
            print(f"FAIL  {name} ({seconds:.0f} s)\n{wrong}", flush=True)
        else:
            self.passed += 1
            detail = f" ({wrong})" if wrong else ""
            print(f"ok    {name}{detail} ({seconds:.0f} s)", flush=True)


def shell_scripts():
    """Runs shellcheck on the scripts that are shell."""
    scripts = [
        path
        for path in [*(REPO / "scripts").rglob("*"), REPO / ".ci/run"]
        if path.is_file() and re.match(rb"#!.*sh\b", path.read_bytes())
    ]
    output(["shellcheck", *scripts])


def lab_tests():
    """Runs the lab's own tests."""
    result = subprocess.run(
        [sys.executable, "-m", "unittest", "discover", "-s", str(LAB / "tests")],
        cwd=LAB,
        capture_output=True,
        text=True,
        check=False,
    )
    return result.stderr if result.returncode else None


def rust_files(source):
    """Returns the Rust files that the series adds, of the whole tree or of a folder of it."""
    names = mirrors.added_files(kgit.TREE)
    files = [kgit.TREE / name for name in names if name.endswith(".rs")]
    return [path for path in files if path.is_relative_to(source)]


def rustfmt(source):
    """Checks the format of the series' Rust, and of the lab's own."""
    with oracle.crate(source) as crate:
        ours = [crate / "main.rs", crate / "kernel.rs", *mutants.STAND_IN.glob("*.rs")]
        rust.check_format(source, *rust_files(source), *ours)


def maintainers(source):
    """Compares the entry in MAINTAINERS and its place with what parse-maintainers.pl makes."""
    entry = (REPO / mirrors.SNIPPET).read_text()
    with tempfile.TemporaryDirectory() as scratch:
        words = ["--order", f"--input={source / 'MAINTAINERS'}"]
        words += [f"--output={scratch}/whole", f"--section={scratch}/section"]
        output([source / "scripts/parse-maintainers.pl", *words])
        sorted_text = pathlib.Path(scratch, "whole").read_text()
    text = (source / "MAINTAINERS").read_text()
    places = [one.partition(entry)[2].partition("\n")[0] for one in (text, sorted_text)]
    return "" if places[0] and places[0] == places[1] else f"the entry is out of order: {places}"


def kernel_warnings(source, build):
    """Builds what the series touches with W=1 and returns the warnings."""
    with overlays(build):
        log = step(
            f"compiling with warnings ({build.name})",
            kernel.make(source, build, "-s", "W=1", "arch/arm64/kvm/"),
            f"warnings-{build.name}",
        )
    touched = "|".join(re.escape(name) for name in patches.touched_files())
    text = log.read_text(errors="replace")
    return re.findall(rf"^.*(?:{touched}).*$", text, re.MULTILINE)


def clippy_selftests(source, build):
    """Runs clippy on the selftests' Rust and returns its log."""
    tests = source / "tools/testing/selftests/kvm"
    programs = [path for path in rust_files(tests) if path.parent.name == "arm64"]
    lints = "-D warnings -D missing_docs -D unsafe_op_in_unsafe_fn"
    lints += " -D clippy::undocumented_unsafe_blocks"
    script = (
        'clippy() { clippy-driver --edition=2021 --target=aarch64-unknown-linux-gnu "$@"; };'
        ' out=$(mktemp -d); trap \'rm -r "$out"\' EXIT; library=$1; lints=$2; shift 2;'
        ' clippy $lints --crate-type rlib --crate-name libkvm -o "$out/libkvm.rlib" "$library";'
        ' for program; do clippy $lints --crate-type bin --extern libkvm="$out/libkvm.rlib"'
        ' --emit=metadata -o "$out/program" "$program"; done'
    )
    return step(
        "running clippy on the selftests",
        ["sh", "-euc", script, "sh", tests / "lib/rust/libkvm.rs", lints, *programs],
        "clippy-selftests",
        env={"LIBKVM_BINDINGS": str(build / "kselftest/kvm/rust/bindings.rs")},
    )


def clippy(source, build):
    """Runs clippy on the helper and on the selftests' Rust."""
    with overlays(build):
        wrong = rust.clippy(source, build)
    clippy_selftests(source, build)
    return wrong


def selftests_by_clang(source, jobs):
    """Builds the selftests by LLVM=1, and returns which of those in Rust are no programs."""
    programs = rust_files(source / "tools/testing/selftests/kvm/arm64")
    return selftest_builds.by_clang(source, [path.stem for path in programs], jobs)


def no_panic(source, build):
    """Looks for symbols in the helper that only a panic needs."""
    with overlays(build):
        return rust.panic_symbols(source, build)


def configuration(source, build):
    """Compares a kernel's configuration with defconfig: what differs has a reason."""
    found = config.differences(source, build, build.name)
    bare = [f"{one.option}: {one.defconfig} -> {one.lab}" for one in found if not one.why]
    if bare:
        return ["these differ, and scripts/lab/config does not say why:", *bare]
    return Passed(f"{len(found)} differ, each for a reason")


def mutants_fit(source):
    """Puts all mutants into the files of the kernel tree, without building anything."""
    found = mutate.mutants()
    mutate.files(found, source)
    known = mutants.all_cases(source)
    cases = [mutants.commands(one, known) for one in found]
    return Passed(f"{len(found)} mutants, {sum(map(bool, cases))} of them to be noticed")


def quick_mutants(jobs):
    """Tries some mutants, which have to be noticed."""
    trials = [trial for *_, trial in mutants.hunt(mutants.choose(QUICK_MUTANTS), jobs=jobs)]
    return [f"{one.mutant.name} survived" for one in trials if not one.by]


def check_parts(check, jobs):
    """Checks each part's end that differs from what was checked before."""
    looks = []
    check("parts are named", lambda: looks.extend(ends.check_each(jobs, tested=[kgit.BRANCH])))
    for name, variant, look in looks:
        check(f"part {name} stands alone, {variant} kernel", look)


def program():
    """Runs the checks."""
    parser = argparse.ArgumentParser(prog="scripts/test", description=__doc__)
    add_common_options(parser)
    parser.add_argument("--jobs", type=int, metavar="N", help="jobs of a build")
    parser.add_argument("only", nargs="*", help="run only checks that have one of these words")
    args = parser.parse_args()

    checks = Checks(args.only)
    check = checks.check
    check("shell scripts pass shellcheck", shell_scripts)
    check("the lab passes its own tests", lab_tests)
    check(
        "the model of userfault holds, and fails where broken",
        lambda: Passed(f"{models.check():,} states"),
    )
    source = tree.ready()
    check("patches apply, mirrored folders agree", export.check)
    check("Rust is formatted", lambda: rustfmt(source))
    check(
        "the selftests' runner tells cases apart that fail, hang, skip and crash on purpose",
        lambda: ktap_cases.wrong(source),
    )
    check("the core agrees with the oracle", lambda: Passed(oracle.compare(source)))
    check("mutants fit the series, and name cases that are there", lambda: mutants_fit(source))
    check(
        "patches pass checkpatch --strict",
        lambda: checkpatch.remarks(source, patches.patch_files()),
    )
    check("MAINTAINERS is in order", lambda: maintainers(source))

    # What several checks use is built when the first of them runs.
    @functools.cache
    def build(variant):
        """Builds a variant of the kernel."""
        return kernel.kernel(source, variant, args.jobs)

    @functools.cache
    def initrd():
        """Builds the selftests, which are the same for all kernels of a granule."""
        return kernel.initrd(build("4k"), kernel.selftests(source, build("4k"), args.jobs))

    check("the kernel is configured as people run it", lambda: configuration(source, build("4k")))
    check("Rust passes clippy", lambda: initrd() and clippy(source, build("4k")))
    check(
        "the selftests' crate refuses what is unsafe",
        lambda: initrd() and refused.wrong(source, build("4k")),
    )
    check("the selftests are built by LLVM as well", lambda: selftests_by_clang(source, args.jobs))
    check(
        "the selftests are built statically, without Rust, and after what they need changed",
        lambda: initrd() and selftest_builds.in_other_ways(source, build("4k")),
    )
    check("the helper cannot panic", lambda: no_panic(source, build("4k")))
    for variant in WARNED:
        name = f"{variant} compiles without warnings at W=1"
        check(name, lambda: kernel_warnings(source, build(variant)))
    for variant, machines in RUN.items():
        for name in machines:
            text = f"the suite passes on {name}, {variant} kernel"
            check(text, lambda: run.boot_suite(name, build(variant), initrd()))
    name = RUN["4k"][-1]
    check(
        f"an ordinary user's programs pass on {name}",
        lambda: run.boot_as_user(name, build("4k"), initrd()),
    )
    check(
        f"KVM agrees with the fuzzer's model on {name}",
        lambda: run.boot_fuzzer(name, build("4k"), initrd()),
    )
    check(
        f"programs that were packed run on a machine as it is, {name}",
        lambda: here.check(name, build("4k"), args.jobs),
    )
    check("the example VMM passes its own tests", vmm.checks)
    for name in VMM_MACHINES:
        text = f"Linux is restored and migrated on demand on {name}"
        check(text, lambda: vmm.quick(name, build("4k")))
    check(
        "demand_paging_test pages in by userfault",
        lambda: ends.demand_paging("nofwb", build("4k"), initrd()),
    )
    check("tests notice what some mutants do", lambda: quick_mutants(args.jobs))
    check_parts(check, args.jobs)

    print(f"{checks.passed} passed, {checks.failed} failed")
    return 1 if checks.failed else 0


if __name__ == "__main__":
    main(program)
