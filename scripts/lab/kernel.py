# SPDX-License-Identifier: GPL-2.0-only
"""Builds the arm64 kernel and the selftests of a tree."""

import os
import pathlib
import re
import shutil

from common import CACHE, LAB, LabError, lock, output, say, step, write_if_changed

CONFIG = LAB / "config"
# What the kernel is built with: the fragments of config/, in order.
VARIANTS = {
    "4k": ["kernel", "rust"],
    "16k": ["kernel", "rust", "16k"],
    "64k": ["kernel", "rust", "64k"],
    "4k-norust": ["kernel"],
    "4k-gcc": ["kernel", "rust"],
    "4k-count": ["kernel", "rust", "count"],
    "4k-trace": ["kernel", "rust", "trace"],
    "4k-debug": ["kernel", "rust", "debug"],
    "16k-debug": ["kernel", "rust", "16k", "debug"],
    "64k-debug": ["kernel", "rust", "64k", "debug"],
}


def compiler(variant):
    """Returns the words for make that choose the compiler of a variant."""
    return ["CROSS_COMPILE=aarch64-linux-gnu-"] if variant.endswith("-gcc") else ["LLVM=1"]


def directory(tree, variant):
    """Returns where a variant of a tree is built."""
    return CACHE / "build" / (tree.name if tree.parent != CACHE else "series") / variant


def make(tree, build, *words, jobs=None):
    """Returns a make command for a kernel build."""
    jobs = jobs or (os.cpu_count() or 1) + 1
    words = [*compiler(build.name), f"O={build}", *words]
    return ["make", "-C", tree, f"-j{jobs}", "ARCH=arm64", *words]


def fragments(variant):
    """Returns the configuration fragments of a variant."""
    return [CONFIG / f"{name}.config" for name in VARIANTS[variant]]


def write_config(tree, build, variant):
    """Writes .config from allnoconfig and the fragments, as far as the tree offers their symbols."""
    # In the cache, as merge_config.sh knows no path with a space.
    merged = build / "kvm-userfault.config"
    merged.write_text("".join(path.read_text() for path in fragments(variant)))
    step(
        f"configuring the {variant} kernel",
        [
            "sh",
            "-ec",
            'make -s -C "$0" ARCH=arm64 "$3" O="$1" allnoconfig;'
            ' cd "$0"; scripts/kconfig/merge_config.sh -m -O "$1" "$1/.config" "$2";'
            ' make -s ARCH=arm64 "$3" O="$1" olddefconfig',
            tree,
            build,
            merged,
            *compiler(variant),
        ],
        f"configure-{variant}",
    )


def wanted(variant):
    """Returns the lines of .config that the fragments of a variant ask for."""
    lines = {}
    for file in fragments(variant):
        for line in file.read_text().splitlines():
            match = re.match(r"(?:# )?(CONFIG_\w+)[ =]", line)
            if match:
                # A later fragment overrides an earlier one.
                lines[match[1]] = line
    return [line for line in lines.values() if line.startswith("CONFIG")]


def configure(tree, build, variant):
    """Writes .config unless it is up to date; says what the tree does not offer."""
    stamp = build / ".kvm-userfault-config"
    key = "\n".join(wanted(variant)) + "\n"
    if stamp.exists() and stamp.read_text() == key and (build / ".config").exists():
        return
    build.mkdir(parents=True, exist_ok=True)
    stamp.unlink(missing_ok=True)
    write_config(tree, build, variant)
    check_config(build, variant)
    stamp.write_text(key)


def check_config(build, variant):
    """Fails if the tree does not offer what a variant is to have."""
    have = set((build / ".config").read_text().splitlines())
    missing = [line for line in wanted(variant) if line not in have]
    if missing:
        raise LabError(
            f"the tree does not offer what the {variant} kernel is to have: {', '.join(missing)}."
            " See scripts/lab/config, and 'make rustavailable' for CONFIG_RUST."
        )


def kernel(tree, variant, jobs=None, words=("Image",)):
    """Builds a kernel and returns its build directory."""
    build = directory(tree, variant)
    with lock(f"build-{build.parent.name}-{variant}"):
        configure(tree, build, variant)
        minutes = "1 to 5 minutes, seconds if little has changed"
        step(
            f"building the {variant} kernel ({minutes})",
            make(tree, build, *words, jobs=jobs),
            f"kernel-{variant}",
        )
    return build


def selftests(tree, build, jobs=None):
    """Builds and installs the KVM selftests, and returns where they are."""
    installed = build / "kselftest_install"
    with lock(f"build-{build.parent.name}-{build.name}"):
        step("installing the kernel's headers", make(tree, build, "headers"), "headers")
        step(
            "building the KVM selftests (20 seconds)",
            [
                "make",
                "-C",
                tree / "tools/testing/selftests",
                f"-j{jobs or (os.cpu_count() or 1) + 1}",
                "ARCH=arm64",
                "CROSS_COMPILE=aarch64-linux-gnu-",
                "TARGETS=kvm",
                "FORCE_TARGETS=1",
                f"O={build}",
                f"KSFT_INSTALL_PATH={installed}",
                "install",
            ],
            "selftests",
        )
    return installed


EM_AARCH64 = 183

# The C library that the tests are linked with, as the cross compiler has it.
LIBRARIES = ["ld-linux-aarch64.so.1", "libc.so.6", "libm.so.6", "libgcc_s.so.1"]


def library(name):
    """Returns the file of a shared library of the target."""
    path = output(["aarch64-linux-gnu-gcc", f"-print-file-name={name}"]).strip()
    if not os.path.isabs(path):
        raise LabError(f"the cross compiler knows no {name}; install libc6-dev-arm64-cross")
    return pathlib.Path(path).resolve()


def busybox():
    """Returns the static busybox for the target."""
    for path in ("/bin/busybox", "/usr/bin/busybox"):
        if os.path.exists(path) and elf_machine(path) == EM_AARCH64:
            return path
    raise LabError("there is no busybox for arm64; install busybox-static:arm64")


def archive(root, target):
    """Packs a directory as an initial RAM file system."""
    new = target.with_name(target.name + ".new")
    script = 'cd "$0"; find . | sort | cpio --quiet -o -H newc -R 0:0 | gzip -1 >"$1"'
    output(["sh", "-ec", script, root, new])
    new.replace(target)


def initrd(build, installed):
    """Makes the initial RAM file system with the selftests, and returns it."""
    target = build / "initrd.cpio.gz"
    sources = [LAB / "init", *installed.rglob("*")]
    if target.exists() and target.stat().st_mtime > max(path.stat().st_mtime for path in sources):
        return target
    say("packing the selftests for the machine")
    root = build / "initrd"
    shutil.rmtree(root, ignore_errors=True)
    for name in ("bin", "dev", "lib", "proc", "sys", "tmp", "usr/bin"):
        (root / name).mkdir(parents=True)
    shutil.copy(busybox(), root / "bin/busybox")
    shutil.copy(LAB / "init", root / "init")
    (root / "init").chmod(0o755)
    for name in LIBRARIES:
        shutil.copy(library(name), root / "lib" / name)
    shutil.copytree(installed, root / "kselftest", symlinks=True)
    output(["llvm-strip", *filter(elf_machine, (root / "kselftest/kvm").iterdir())])
    archive(root, target)
    shutil.rmtree(root)
    return target


def elf_machine(path):
    """Returns the machine that a program is for, or nothing if a file is no program."""
    with open(path, "rb") as file:
        head = file.read(20)
    return int.from_bytes(head[18:20], "little") if head.startswith(b"\x7fELF") else None
