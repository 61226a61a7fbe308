# SPDX-License-Identifier: GPL-2.0-only
"""Packs the tests and the benchmark for another machine, and runs them on this one as it is."""

import os
import pathlib
import shutil
import subprocess
import tempfile

import bench
import kernel
import kgit
import ktap
import machine
import skips
import tree
from common import CACHE, LAB, LOGS, LabError, output, say, step

# The parts of a report that have to be there, and a line that each of the last three has.
PARTS = ["kernel", "command line", "mode of KVM", "CPU", "configuration"]
RESULTS = {"tests": "# Totals:", "figures": "value=", "counts": "# bench: "}


def fill(folder, installed):
    """Copies what is needed of the installed selftests into a folder, with what runs it."""
    shutil.copytree(installed / "kselftest", folder / "kselftest")
    for path in (installed / "run_kselftest.sh", LAB / "here"):
        shutil.copy(path, folder)
    (folder / "kvm").mkdir()
    programs = [*(installed / "kvm").glob("userfault_*"), installed / "kvm/set_memory_region_test"]
    for path in filter(pathlib.Path.exists, programs):
        if kernel.elf_machine(path) != kernel.EM_AARCH64:
            log = LOGS / "selftests-series-here.log"
            raise LabError(f"{path.name} could not be built.\nSee why in {log}.")
        output(["llvm-strip", "-o", folder / "kvm" / path.name, path])
    # The benchmark is no test.
    names = sorted(path.name for path in (folder / "kvm").iterdir())
    listed = "".join(f"kvm:{name}\n" for name in names if name != "userfault_bench")
    (folder / "kselftest-list.txt").write_text(listed)


def pack(target, jobs=None):
    """Builds the programs of what is checked out and packs them for another machine."""
    if kgit.git("status", "--porcelain", tree=tree.ready()):
        raise LabError(f"{kgit.TREE} has uncommitted changes: commit them first")
    archive(target, jobs)
    say(f"{target}: unpack it on the machine to be tested and run kvm-userfault/here as root")
    return 0


def archive(target, jobs=None):
    """Builds the programs of the last commit and packs them."""
    source = kgit.TREE
    build = kernel.directory(source, "here")
    build.mkdir(parents=True, exist_ok=True)
    commit = kgit.git("rev-parse", "HEAD")
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch) / "kvm-userfault"
        folder.mkdir()
        # The machine may have another C library, or an older one.
        with bench.selftests(build, commit, jobs, ["EXTRA_CFLAGS=-static"]) as installed:
            fill(folder, installed)
        output(["tar", "-C", scratch, "-czf", target, folder.name])


def run(words):
    """Builds the programs, runs them on this machine, and returns an exit code."""
    if os.uname().machine != "aarch64":
        raise LabError(
            f"this is no arm64 machine but {os.uname().machine}.\nMake an archive with"
            " 'scripts/run --here --pack FILE' and take it to the host or board to be tested."
        )
    folder = CACHE / "here"
    folder.mkdir(parents=True, exist_ok=True)
    packed = folder / "here.tar.gz"
    pack_it = [LAB / "enter", LAB / "run.py", "--here", "--pack", packed]
    step("building what is to be run", pack_it, "here")
    output(["tar", "-C", folder, "-xzf", packed])
    return subprocess.run([folder / "kvm-userfault/here", *words], check=False).returncode


def wrong(lines, name, variant):
    """Returns what is wrong with a report of a machine with a variant of the kernel."""
    missing = [f"no part '{part}'" for part in [*PARTS, *RESULTS] if f"## {part}" not in lines]
    text = "\n".join(lines)
    found = {part: text.partition(f"\n## {part}\n")[2].partition("\n## ")[0] for part in RESULTS}
    for part, words in RESULTS.items():
        missing += [] if words in found[part] else [f"nothing like '{words}' in part '{part}'"]
    skipped = skips.unexpected(name, variant, ktap.parse(found["tests"].splitlines()))
    return missing + skipped + [line for line in lines if line.startswith("not ok")]


def check(name, build, jobs=None):
    """Packs the programs, runs them natively inside a machine of the lab, as on a board, and
    returns what is wrong with the report."""
    with tempfile.TemporaryDirectory() as scratch:
        packed, folder = pathlib.Path(scratch) / "here.tar.gz", pathlib.Path(scratch) / "programs"
        archive(packed, jobs)
        folder.mkdir()
        output(["tar", "-C", folder, "--strip-components=1", "-xzf", packed])
        initrd = kernel.initrd(build, folder, pathlib.Path(scratch) / "initrd.cpio.gz")
        command = "/kselftest/here && cat kvm-userfault-*.txt"
        code, lines = machine.boot(name, build, initrd, command, show=False, timeout=1800)
    return wrong(lines, name, build.name) or ([f"here ended with {code}"] if code else [])
