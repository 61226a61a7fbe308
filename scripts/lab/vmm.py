# SPDX-License-Identifier: GPL-2.0-only
"""Builds the example VMM of scripts/vmm, and runs its trials on a machine of the lab."""

import os
import pathlib
import re
import shlex
import shutil
import tempfile

import kernel
import machine
from common import CACHE, REPO, lock, say, step

SOURCE = REPO / "scripts" / "vmm"
# The trials, by the names of their scripts in scripts/vmm/try.
TRIALS = ["restore", "migrate", "failures"]
TARGET = "aarch64-unknown-linux-gnu"
BUILD = ["--locked", "--release", "--target", TARGET]
HOME = CACHE / "vmm"

# The columns of the tables: the word of a row, and what it means.
COLUMNS = {
    "way": "way",
    "mode": "mode",
    "first": "first instruction, ms",
    "all": "all there, ms",
    "downtime": "downtime, ms",
    "rounds": "rounds",
    "missing": "pages missing at the switch",
    "requests": "pages asked for",
    "exits": "exits",
    "faults": "userfaultfd faults",
    "supplied_first": "supplied first",
    "bytes": "bytes copied",
    "sent": "bytes sent",
}


def cargo(what, *words, log="vmm"):
    """Runs cargo with the crates that Cargo.lock names, which it fetches once."""
    environment = {
        "CARGO_HOME": str(HOME / "cargo"),
        "CARGO_TARGET_DIR": str(HOME / "target"),
        # One file that needs nothing of the machine it runs on.
        "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS": "-C target-feature=+crt-static",
        "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER": "aarch64-linux-gnu-gcc",
    }
    certificates = CACHE / "certificates.crt"
    if certificates.exists() and certificates.stat().st_size:
        environment["CARGO_HTTP_CAINFO"] = str(certificates)
    # The user may have a registry of their own.
    (HOME / "cargo").mkdir(parents=True, exist_ok=True)
    users = pathlib.Path(os.environ.get("CARGO_HOME") or pathlib.Path.home() / ".cargo")
    for config in filter(pathlib.Path.exists, (users / "config.toml", users / "config")):
        shutil.copy(config, HOME / "cargo")
    with lock("vmm"):
        step(what, ["cargo", *words], log, cwd=SOURCE, env=environment)


def checks():
    """Runs what needs no KVM: the unit tests, clippy and rustfmt."""
    cargo("checking the format of the example VMM", "fmt", "--check", log="vmm-fmt")
    cargo("testing the example VMM on this host", "test", "--locked", log="vmm-test")
    words = [*BUILD, "--", "-D", "warnings"]
    cargo("looking at the example VMM with clippy", "clippy", *words, log="vmm-clippy")


def initrd(build, guest_build):
    """Builds and packs the VMM, its guest's program and kernel, and returns the archive."""
    cargo("building the example VMM", "build", *BUILD)
    programs = HOME / "target" / TARGET / "release"
    with tempfile.TemporaryDirectory() as directory:
        guest, root = pathlib.Path(directory) / "guest", pathlib.Path(directory) / "root"
        guest.mkdir()
        shutil.copy(programs / "guest", guest / "init")
        kernel.make_root(root)
        shutil.copytree(SOURCE / "try", root / "vmm")
        shutil.copy(programs / "vmm", root / "vmm/vmm")
        shutil.copy(guest_build / "arch/arm64/boot/Image", root / "vmm/Image")
        kernel.archive(guest, root / "vmm/guest.cpio.gz")
        target = build / "vmm.cpio.gz"
        kernel.archive(root, target)
    return target


def table(lines):
    """Returns the rows that a trial printed as a table in Markdown."""
    rows = [dict(re.findall(r"(\S+)=(\S+)", line)) for line in lines if line.startswith("row ")]
    names = [name for name in COLUMNS if any(name in row for row in rows)]
    cells = [[COLUMNS[name] for name in names], ["---"] * len(names)]
    cells += [[row.get(name, "-") for name in names] for row in rows]
    return ["| " + " | ".join(line) + " |" for line in cells] if rows else []


def problems(code, lines):
    """Returns what went wrong in a trial, also with the kernel of the machine."""
    wrong = [line for line in lines if line.startswith("FAIL ") or machine.SPLAT.search(line)]
    if not wrong and (code or not any(line.startswith("ok ") for line in lines)):
        wrong.append(f"the trial ended with code {code}, or found nothing right")
    return wrong


def boot(where, build, guest_build, command, **options):
    """Runs a command beside the VMM on a machine, and returns what went wrong and the console."""
    archive = initrd(build, guest_build)
    try:
        code, lines = machine.boot(where, build, archive, command, **options)
    except machine.Unfinished as error:
        return [str(error), *problems(1, error.lines)], error.lines
    return problems(code, lines), lines


def quick(where, build):
    """Restores and migrates a small guest with four vCPUs, whose slot is toggled as it runs."""
    command = "export APPEND=megabytes=24; TOGGLES=20 sh /vmm/restore vcpu"
    command += " && sh /vmm/migrate postcopy"
    return boot(where, build, build, command, timeout=300, show=False)[0]


def trial(name, where, build, guest_build, words, timeout):
    """Runs a trial on a machine, shows its table and returns an exit code."""
    # A debug kernel takes minutes for what others do in seconds.
    patience = "PATIENCE=600 " if build.name.endswith("-debug") else ""
    command = f"{patience}sh /vmm/{name} {shlex.join(words)}"
    wrong, lines = boot(where, build, guest_build, command, timeout=timeout)
    print("\n".join(table(lines)))
    for text in wrong:
        say(f"failed: {text}")
    return 1 if wrong else 0
