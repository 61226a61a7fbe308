# SPDX-License-Identifier: GPL-2.0-only
"""Proves this repo: its scripts, the patches, their Rust, the kernels they make
and what these do on machines. One line a check, and a count at the end. Machines
are always run, but for a part's end that has passed. That and a patch that has passed
checkpatch are looked at again when they change; other checks when this repo or the
tools change, and always where the kernel tree holds work that patches/ does not."""

import functools
import os
import pathlib
import re
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
import machine
import models
import mutants
import mutate
import oracle
import patches
import refused
import run
import rust
import selftest_builds
import steps
import tree
import vmm
from common import ERRORS, LAB, REPO, LabError, in_words, lock, main, new_parser, output, step
from overlay import overlays
from passed import Passed, content

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
# For clippy on the selftests.
LINTS = "-D warnings -D missing_docs -D unsafe_op_in_unsafe_fn"
LINTS += " -D clippy::undocumented_unsafe_blocks"


class Found(str):
    """What a check has to say that passed."""


def passes(name, function):
    """Runs a check, shows how it ended, and says whether it passed: it fails by an exception or by
    returning what is wrong, as a text or a list. One that passes returns nothing, or Found."""
    start = time.monotonic()
    try:
        said = function() or ""
    except ERRORS as error:
        said = in_words(error)
    seconds = f"({time.monotonic() - start:.0f} s)"
    if said and not isinstance(said, Found):
        wrong = "\n".join(said) if isinstance(said, list) else said
        print(f"FAIL  {name} {seconds}\n{wrong}", flush=True)
        return False
    print(f"ok    {name} {f'({said}) ' if said else ''}{seconds}", flush=True)
    return True


def key_of(passed, name):
    """Returns what a check depends on, as a checksum, or nothing if the tree holds own work."""
    with lock("linux"):
        return None if tree.own_work() else passed.key(name, content())


def once(name, function):
    """Returns a check that is not made again, once it has passed, before the repo or the tools
    change. Where the tree holds work of its own, it is made."""

    def check():
        """Makes the check, or finds that it was made."""
        passed = Passed()
        key = key_of(passed, name)
        if key in passed.keys:
            return Found("as before")
        said = function()
        # Somebody may have changed something meanwhile.
        if key and key == key_of(passed, name) and (not said or isinstance(said, Found)):
            passed.add(key)
        return said

    return name, check


def shell_scripts():
    """Runs shellcheck on the scripts that are shell, and on what these are made of."""
    paths = [path for path in [*(REPO / "scripts").rglob("*"), REPO / ".ci/run"] if path.is_file()]
    shell = [path for path in paths if re.match(rb"#!.*sh\b", path.read_bytes())]
    output(["shellcheck", *shell, *(REPO / "scripts").rglob("*.sh")])


def lab_tests():
    """Runs the lab's own tests."""
    output([sys.executable, "-m", "unittest", "discover", "-s", LAB / "tests"], cwd=LAB)


def rust_files(folder):
    """Returns the Rust files that the series adds to a folder of the tree."""
    names = [kgit.TREE / name for name in export.added_files() if name.endswith(".rs")]
    return [path for path in names if path.is_relative_to(folder)]


def rustfmt(source):
    """Checks the format of the series' Rust, and of the lab's own."""
    with oracle.crate(source) as crate:
        ours = [crate / "main.rs", crate / "kernel.rs", *mutants.STAND_IN.glob("*.rs")]
        rust.check_format(source, *rust_files(source), *ours)


def maintainers(source):
    """Compares the entry in MAINTAINERS and its place with what parse-maintainers.pl makes."""
    entry, file = (REPO / export.SNIPPET).read_text(), source / "MAINTAINERS"
    with tempfile.TemporaryDirectory() as scratch:
        words = ["--order", f"--output={scratch}/whole", f"--section={scratch}/section"]
        output([source / "scripts/parse-maintainers.pl", *words, f"--input={file}"])
        sorted_text = pathlib.Path(scratch, "whole").read_text()
    places = [one.partition(entry)[2].partition("\n")[0] for one in (file.read_text(), sorted_text)]
    return "" if places[0] and places[0] == places[1] else f"the entry is out of order: {places}"


def kernel_warnings(source, build):
    """Builds what the series touches with W=1 and returns the warnings."""
    with overlays(build):
        command = kernel.make(source, build, "-s", "W=1", "arch/arm64/kvm/")
        log = step(f"compiling with warnings ({build.name})", command, f"warnings-{build.name}")
    touched = "|".join(re.escape(name) for name in patches.touched_files())
    text = log.read_text(errors="replace")
    return re.findall(rf"^.*(?:{touched}).*$", text, re.MULTILINE)


def clippy(source, build):
    """Runs clippy on the helper and on the selftests' Rust."""
    with overlays(build):
        wrong = rust.clippy(source, build)
    tests = source / "tools/testing/selftests/kvm"
    driver = ["clippy-driver", "--edition=2021", "--target=aarch64-unknown-linux-gnu"]
    driver += LINTS.split()
    bindings = {"LIBKVM_BINDINGS": str(build / "kselftest/kvm/rust/bindings.rs")}
    with tempfile.TemporaryDirectory() as scratch:
        library = f"{scratch}/libkvm.rlib"
        words = ["--crate-type=rlib", "--crate-name=libkvm", "-o", library]
        output([*driver, *words, tests / "lib/rust/libkvm.rs"], env=os.environ | bindings)
        words = [f"--extern=libkvm={library}", "--emit=metadata", "-o", f"{scratch}/program"]
        for program in rust_files(tests / "arm64"):
            output([*driver, *words, program], env=os.environ | bindings)
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
    bare = [f"{option}: {theirs} -> {ours}" for option, theirs, ours, why in found if not why]
    if bare:
        return ["these differ, and scripts/lab/config does not say why:", *bare]
    return Found(f"{len(found)} differ, each for a reason")


def mutants_fit(source):
    """Puts all mutants and the stand-in to the files of the kernel tree, without building it."""
    for path in mutants.STAND_IN.glob("*.patch"):
        output(["git", "-C", source, "apply", "--check", path])
    found = mutate.mutants()
    for one in found:
        for name, variant in one.places:
            if name not in machine.MACHINES:
                raise LabError(f"{one.name} is for a machine that is not there: {name}")
            config.text(variant)
    mutate.files(found, source)
    known = mutants.all_cases(source)
    cases = [mutants.commands(one, known) for one in found]
    return Found(f"{len(found)} mutants, {sum(map(bool, cases))} of them to be noticed")


def quick_mutants(jobs):
    """Tries some mutants, which have to be noticed."""
    trials = [trial for *_, trial in mutants.hunt(mutants.choose(QUICK_MUTANTS), jobs=jobs)]
    return [f"{one.mutant.name} survived" for one in trials if not one.by]


def parts_alone(jobs, tested):
    """Builds and runs the end of each part that has not passed yet, and is not what was tested in
    this run, and returns what is wrong."""
    return [
        f"part {part}, {variant} kernel: {text}"
        for part, variant, look in ends.check_each(jobs, tested)
        for text in steps.attempt(look)
    ]


def checks(jobs):
    """Yields all checks, each as its name and what it does, which is done before the next one."""
    yield once("shell scripts pass shellcheck", shell_scripts)
    yield once("the lab passes its own tests", lab_tests)
    name = "the model of userfault holds, and fails where broken"
    yield once(name, lambda: Found(f"{models.check():,} states"))
    source = tree.ready
    yield "patches apply, mirrored folders agree", lambda: source() and export.check()
    yield once("Rust is formatted", lambda: rustfmt(source()))
    name = "the selftests' runner tells cases apart that fail, hang, skip and crash on purpose"
    yield once(name, lambda: ktap_cases.wrong(source()))
    yield once("the core agrees with the oracle", lambda: Found(oracle.compare(source())))
    name = "mutants fit the series, and name cases that are there"
    yield once(name, lambda: mutants_fit(source()))
    name = "patches pass checkpatch --strict"
    yield name, lambda: checkpatch.remarks(source(), patches.patch_files())
    yield once("MAINTAINERS is in order", lambda: maintainers(source()))
    yield from kernel_checks(source, jobs)


def kernel_checks(source, jobs):
    """Yields checks of kernels and what runs on them. What several use is built when the first of
    them runs."""

    @functools.cache
    def build(variant="4k"):
        """Builds a variant of the kernel."""
        return kernel.kernel(source(), variant, jobs)

    @functools.cache
    def initrd():
        """Builds the selftests, which are the same for all kernels of a granule."""
        return kernel.initrd(build(), kernel.selftests(source(), build(), jobs))

    passed_on = set()

    def suite(where, variant):
        """Runs the suite, and remembers where it passed."""
        wrong = run.boot_suite(where, build(variant), initrd())
        passed_on.update([] if wrong else [(where, variant)])
        return wrong

    def tested():
        """Returns the commits that were tested as the ends of parts are."""
        needed = {(ends.MACHINE, variant) for variant in ends.VARIANTS}
        with lock("linux"):
            return [] if needed - passed_on or tree.own_work() else [kgit.BRANCH]

    name = "the kernel is configured as people run it"
    yield once(name, lambda: configuration(source(), build()))
    yield once("Rust passes clippy", lambda: initrd() and clippy(source(), build()))
    name = "the selftests' crate refuses what is unsafe"
    yield once(name, lambda: initrd() and refused.wrong(source(), build()))
    name = "the selftests are built by LLVM as well"
    yield once(name, lambda: selftests_by_clang(source(), jobs))
    name = "the selftests are built statically, without Rust, and after what they need changed"
    yield once(name, lambda: initrd() and selftest_builds.in_other_ways(source(), build()))
    yield once("the helper cannot panic", lambda: no_panic(source(), build()))
    for variant in WARNED:
        name = f"{variant} compiles without warnings at W=1"
        yield once(name, lambda: kernel_warnings(source(), build(variant)))
    for variant, machines in RUN.items():
        for where in machines:
            name = f"the suite passes on {where}, {variant} kernel"
            yield name, lambda: suite(where, variant)
    where = RUN["4k"][-1]
    name = f"an ordinary user's programs pass on {where}"
    yield name, lambda: run.boot_suite(where, build(), initrd(), user=True)
    name = f"KVM agrees with the fuzzer's model on {where}"
    yield name, lambda: run.boot_program(where, build(), initrd(), "userfault_fuzz")
    name = f"programs that were packed run on a machine as it is, {where}"
    yield name, lambda: here.check(where, build(), jobs)
    yield once("the example VMM passes its own tests", vmm.checks)
    for where in VMM_MACHINES:
        name = f"Linux is restored and migrated on demand on {where}"
        yield name, lambda: vmm.quick(where, build())
    name = "demand_paging_test pages in by userfault"
    yield name, lambda: run.boot_program(ends.MACHINE, build(), initrd(), ends.STOCK)
    yield "tests notice what some mutants do", lambda: quick_mutants(jobs)
    yield "each part stands alone", lambda: source() and parts_alone(jobs, tested())


def program():
    """Runs the checks."""
    parser = new_parser("scripts/test", __doc__)
    parser.add_argument("--jobs", type=int, metavar="N", help="jobs of a build")
    parser.add_argument("only", nargs="*", help="run only checks that have one of these words")
    args = parser.parse_args()
    names = "\n".join(name for name, _ in checks(args.jobs))
    for word in args.only:
        if word not in names:
            parser.error(f"no check has '{word}' in its name; these are there:\n{names}")
    passed = [
        passes(name, function)
        for name, function in checks(args.jobs)
        if not args.only or any(word in name for word in args.only)
    ]
    print(f"{sum(passed)} passed, {len(passed) - sum(passed)} failed")
    return 0 if all(passed) else 1


if __name__ == "__main__":
    main(program)
