# SPDX-License-Identifier: GPL-2.0-only
"""Builds the arm64 kernel and the selftests of a tree."""

import os
import shutil

import config
from common import CACHE, LAB, LabError, lock, output, say, step

JOBS = (os.cpu_count() or 1) + 1
EM_AARCH64 = 183
# The C library that the tests are linked with, as the cross compiler has it.
LIBRARIES = ["ld-linux-aarch64.so.1", "libc.so.6", "libm.so.6", "libgcc_s.so.1"]


def directory(tree, variant):
    """Returns where a variant of a tree is built."""
    return CACHE / "build" / (tree.name if tree.parent != CACHE else "series") / variant


def make(tree, build, *words, jobs=None):
    """Returns a make command for a kernel build."""
    words = [*config.compiler(build.name), f"O={build}", *words]
    return ["make", "-C", tree, f"-j{jobs or JOBS}", "ARCH=arm64", *words]


def begin(build):
    """Begins a build with a copy of one that is near to it; make keeps what fits."""
    near = [
        path.parent
        for path in sorted(build.parent.glob("*/vmlinux"))
        if config.kind(path.parent.name) == config.kind(build.name)
    ]
    if near and not build.exists():
        say(f"beginning with a copy of the {near[0].name} kernel's build")
        scratch = build.with_name(f"{build.name}.new")
        shutil.rmtree(scratch, ignore_errors=True)
        with lock(f"build-{build.parent.name}-{near[0].name}"):
            shutil.copytree(near[0], scratch, symlinks=True)
        scratch.rename(build)


def kernel(tree, variant, jobs=None, words=("Image",)):
    """Builds a kernel and returns its build directory."""
    build = directory(tree, variant)
    with lock(f"build-{build.parent.name}-{variant}"):
        begin(build)
        config.bring_up_to_date(tree, build, variant)
        how = "again" if (build / "vmlinux").exists() else "from nothing"
        command = make(tree, build, *words, jobs=jobs)
        log = f"kernel-{build.parent.name}-{variant}"
        step(f"building the {variant} kernel {how}", command, log)
    return build


def headers(tree, build):
    """Installs the kernel's headers into a build directory, which the caller has locked."""
    log = f"headers-{build.parent.name}-{build.name}"
    step("installing the kernel's headers", make(tree, build, "headers"), log)


def selftests(tree, build, jobs=None, words=(), anew=False):
    """Builds and installs the KVM selftests, anew or on what was built, and returns where they are.
    """
    installed = build / "kselftest_install"
    command = ["make", "-C", tree / "tools/testing/selftests", f"-j{jobs or JOBS}", "ARCH=arm64"]
    command += ["CROSS_COMPILE=aarch64-linux-gnu-", "TARGETS=kvm", "FORCE_TARGETS=1"]
    command += [f"O={build}", f"KSFT_INSTALL_PATH={installed}", *words, "install"]
    name = f"{build.parent.name}-{build.name}"
    with lock(f"build-{name}"):
        for old in (build / "kselftest", installed) if anew else ():
            shutil.rmtree(old, ignore_errors=True)
        headers(tree, build)
        step("building the KVM selftests", command, f"selftests-{name}")
    return installed


def busybox():
    """Returns the static busybox for the target."""
    path = shutil.which("busybox")
    if not path or elf_machine(path) != EM_AARCH64:
        raise LabError("there is no busybox for arm64; install busybox-static:arm64")
    return path


def make_root(root):
    """Makes what each machine's initial RAM file system has."""
    for name in ("bin", "dev", "lib", "proc", "sys", "tmp", "usr/bin"):
        (root / name).mkdir(parents=True)
    shutil.copy(busybox(), root / "bin/busybox")
    shutil.copy(LAB / "init", root / "init")
    (root / "init").chmod(0o755)


def archive(root, target):
    """Packs a directory as an initial RAM file system."""
    new = target.with_name(target.name + ".new")
    script = 'cd "$0"; find . | sort | cpio --quiet -o -H newc -R 0:0 | gzip -1 >"$1"'
    output(["sh", "-ec", script, root, new])
    new.replace(target)


def pack(installed, target):
    """Packs an initial RAM file system with the selftests."""
    say("packing the selftests for the machine")
    root = target.with_name("initrd")
    shutil.rmtree(root, ignore_errors=True)
    make_root(root)
    for name in LIBRARIES:
        path = output(["aarch64-linux-gnu-gcc", f"-print-file-name={name}"]).strip()
        shutil.copy(path, root / "lib" / name)
    shutil.copytree(installed, root / "kselftest", symlinks=True)
    output(["llvm-strip", *filter(elf_machine, (root / "kselftest/kvm").iterdir())])
    archive(root, target)
    shutil.rmtree(root)


def initrd(build, installed, target=None):
    """Makes the initial RAM file system with the selftests, and returns it."""
    target = target or build / "initrd.cpio.gz"
    with lock(f"build-{build.parent.name}-{build.name}"):
        sources = [LAB / "init", *installed.rglob("*")]
        newest = max(path.stat().st_mtime for path in sources)
        if not target.exists() or target.stat().st_mtime <= newest:
            pack(installed, target)
    return target


def elf_machine(path):
    """Returns the machine that a program is for, or nothing if a file is no program."""
    with open(path, "rb") as file:
        head = file.read(20)
    return int.from_bytes(head[18:20], "little") if head.startswith(b"\x7fELF") else None
