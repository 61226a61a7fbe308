# SPDX-License-Identifier: GPL-2.0-only
"""Boots QEMU machines with EL2, on which real KVM guests run."""

import contextlib
import dataclasses
import pathlib
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time

import kernel
from common import LOGS, LabError, say, ticker

# What the kernel prints when it finds something wrong with itself.
SPLAT = re.compile(
    r"BUG:|WARNING:|INFO: task|Kernel panic|Oops|KASAN|UBSAN|possible recursive locking"
    r"|kmemleak: \d+ new|unreferenced object"
)


@dataclasses.dataclass(frozen=True)
class Machine:
    """A kind of host for KVM."""

    cpu: str
    options: str = ""
    command_line: str = ""
    cpus: int = 2
    clock: tuple = ()
    memory: str = "2G"


# Memory tags are where KVM gives them to guests: not on a protected host, and not to guests with
# EL2. When a VM ends, KVM goes through all of its address space block by block, for stage 2 and
# each shadow of it. With the 52 bits of LPA2 this takes longest under TCG, so one machine has that,
# and not with 16K pages, where blocks are 32M and libkvm's largest VM takes a minute and a half to
# end. The architecture's pointer authentication is a cipher, which takes TCG most of its time.
MAX = "max,pauth-impdef=on"
MACHINES = {
    "vhe": Machine(MAX, ",mte=on"),
    "nofwb": Machine("neoverse-n1"),
    "nvhe": Machine(f"{MAX},lpa2=off", ",mte=on", "kvm-arm.mode=nvhe"),
    "protected": Machine(f"{MAX},lpa2=off", "", "kvm-arm.mode=protected"),
    "nested": Machine(f"{MAX},lpa2=off", "", "kvm-arm.mode=nested"),
}

# An instruction takes a nanosecond of their clock, whatever it does: times are
# numbers of instructions, and the same on each boot.
COUNTING = ("-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off")
BENCH_MACHINES = {
    "counting-n1": Machine("neoverse-n1", cpus=1, clock=COUNTING),
    "counting-max": Machine(MAX, cpus=1, clock=COUNTING),
    # With a CPU for each vCPU and a clock like any other.
    "eight-n1": Machine("neoverse-n1", cpus=8),
}

# It has compilers in its file system, which is in memory.
NATIVE_MACHINE = {"native": Machine("neoverse-n1", memory="8G")}

# Each machine runs with each, as QEMU's max and neoverse-n1 have all granules at both stages.
PAGES = ("4k", "16k", "64k")


class Unfinished(LabError):
    """A machine that did not get to the end of its command, with what it printed until then."""

    def __init__(self, message, lines):
        super().__init__(message)
        self.lines = lines


def command_archive(directory, command, shell):
    """Packs what the machine is to run, to be loaded after the initial RAM file system."""
    root, target = (pathlib.Path(directory) / name for name in ("root", "command.cpio.gz"))
    root.mkdir()
    (root / ("shell" if shell else "command")).write_text(command + "\n")
    kernel.archive(root, target)
    return target


def join(archives, target):
    """Joins archives, each of which is loaded over those before it."""
    with open(target, "wb") as out:
        for path in archives:
            with open(path, "rb") as part:
                shutil.copyfileobj(part, out)
            out.write(b"\0" * (-out.tell() % 4))


def qemu(machine, build, initrd, extra):
    """Returns the command that boots a machine."""
    # With 64K pages a huge page is 512M, and one has to be found in one piece.
    memory = "6G" if build.name.startswith("64k") else machine.memory
    image = build / "arch/arm64/boot/Image"
    cpu = f"{MAX},lpa2=off" if machine.cpu == MAX and build.name.startswith("16k") else machine.cpu
    options = "virt,virtualization=on,gic-version=3" + machine.options
    words = f"console=ttyAMA0 panic=-1 loglevel=5 {machine.command_line} {extra}".split()
    return [
        *("qemu-system-aarch64", "-M", options, "-cpu", cpu, "-smp", str(machine.cpus)),
        *machine.clock,
        *("-m", memory, "-nic", "none", "-nographic", "-no-reboot"),
        *("-kernel", image, "-initrd", initrd, "-append", " ".join(words)),
    ]


@dataclasses.dataclass(frozen=True)
class Limits:
    """When to end a machine: after some seconds, after some in which it has said nothing, or when
    it says something that a pattern matches."""

    timeout: float = 600
    silence: float = float("inf")
    stop: str = r"(?!)"


def boot(name, build, initrd, command, *, shell=False, show=True, extra="", **limits):
    """Boots a machine, runs a command on it and returns (exit code, lines of its console), within
    limits as of Limits."""
    say(f"booting the {name} machine ({build.name} kernel)")
    with tempfile.TemporaryDirectory() as directory:
        combined = pathlib.Path(directory) / "initrd"
        join([initrd, command_archive(directory, command, shell)], combined)
        kind = {**MACHINES, **BENCH_MACHINES, **NATIVE_MACHINE}[name]
        words = [str(word) for word in qemu(kind, build, combined, extra)]
        if shell:
            return subprocess.run(words, check=False).returncode, []
        return watch(words, f"boot-{build.name}-{name}", Limits(**limits), show)


def watch(words, log, limits, show):
    """Runs a machine to its end, showing its console, and returns (exit code, lines)."""
    LOGS.mkdir(parents=True, exist_ok=True)
    path = LOGS / f"{log}.log"
    shown = contextlib.nullcontext() if show else ticker("running", path)
    lines, code, why = [], None, "stopped before its command ended"
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with (
        open(path, "w", buffering=1, encoding="utf-8") as out,
        subprocess.Popen(words, **options) as process,
        shown,
        contextlib.closing(console(process, limits)) as said,
    ):
        try:
            for line in said:
                out.write(line + "\n")
                if match := re.match(r"lab: ended with (\d+)", line):
                    code = int(match[1])
                    continue
                lines.append(line)
                if show:
                    print(line, flush=True)
                if re.search(limits.stop, line):
                    why = "was stopped for what it said"
                    break
        except TimeoutError as error:
            why = str(error)
    if code is None:
        if not show:
            print("\n".join(lines[-20:]), file=sys.stderr)
        raise Unfinished(f"the machine {why}; its console is in {path}", lines)
    return code, lines


def console(process, limits):
    """Yields the lines of a machine's console until it ends, or a limit is reached, and ends it."""
    said = queue.SimpleQueue()

    def read():
        """Reads the console."""
        for line in process.stdout:
            said.put(line)
        said.put(None)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    end = time.monotonic() + limits.timeout
    try:
        while (left := end - time.monotonic()) > 0:
            try:
                line = said.get(timeout=min(left, limits.silence))
            except queue.Empty:
                if limits.silence < left:
                    raise TimeoutError(f"said nothing for {limits.silence} seconds") from None
                continue
            if line is None:
                return
            yield line.decode(errors="replace").rstrip("\r\n")
        raise TimeoutError(f"did not finish in {limits.timeout} seconds")
    finally:
        process.kill()
        # What else has the console could keep it open.
        reader.join(10)
