# SPDX-License-Identifier: GPL-2.0-only
"""Builds selftests on the machine itself, with the compilers that Debian has for arm64."""

import hashlib
import pathlib
import shutil
import tempfile
import time

import kernel
import machine
from common import CACHE, lock, output, say, step

# What a user of Debian installs for it; busybox, as on each machine, is the rest of a system.
PACKAGES = ["bindgen", "gcc", "libc6-dev", "make", "rustc"]
# What the build needs of a kernel tree, besides the headers.
SOURCES = ["arch/arm64/tools", "scripts", "tools"]
# A test of each kind. Nothing says what they are built for.
TESTS = ("/tmp/o/arm64/rust_guest", "/tmp/o/set_memory_region_test")
COMMAND = (
    "export PATH=/usr/bin:$PATH; date -s @{now} >/dev/null;"
    " make -s -j2 -C /linux/tools/testing/selftests/kvm OUTPUT=/tmp/o"
    " KHDR_INCLUDES='-isystem /linux/usr/include' {tests} && {run}"
)


def download(folder):
    """Downloads the packages with all that they need, as if nothing were installed."""
    settings = ["APT::Architecture=arm64", "Dir::State::Status=/dev/null"]
    settings += [f"Dir::Cache::Archives={folder}", "APT::Sandbox::User=root"]
    apt = ["apt-get", "-qy", *(word for setting in settings for word in ("-o", setting))]
    step("reading the archive's package lists", [*apt, "update"], "apt-update")
    words = ["--no-install-recommends", "--download-only", "install", *PACKAGES]
    step("downloading compilers for arm64", [*apt, *words], "native-download")


def compilers():
    """Makes an initial RAM file system with the packages, once, and returns it: who wants those of
    today deletes it from the cache."""
    key = hashlib.sha256(" ".join(PACKAGES).encode()).hexdigest()[:8]
    target = CACHE / f"native-{key}.cpio.gz"
    if target.exists():
        return target
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        debs, root = pathlib.Path(scratch, "debs"), pathlib.Path(scratch, "root")
        (debs / "partial").mkdir(parents=True)
        download(debs)
        say("packing them for the machine")
        kernel.make_root(root)
        (root / "lib").rmdir()
        (root / "lib").symlink_to("usr/lib")
        for package in debs.glob("*.deb"):
            output(["dpkg-deb", "--extract", package, root])
        for name in ("doc", "locale", "man"):
            shutil.rmtree(root / "usr/share" / name, ignore_errors=True)
        kernel.archive(root, target)
    return target


def run(source, build, timeout):
    """Builds a test of each kind on a machine, with the machine's own compilers, and runs it;
    returns an exit code."""
    with lock(f"build-{build.parent.name}-{build.name}"):
        kernel.headers(source, build)
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        root, initrd = pathlib.Path(scratch, "root"), pathlib.Path(scratch, "initrd")
        (root / "linux/usr").mkdir(parents=True)
        script = 'git -C "$0" archive HEAD "${@:2}" | tar -xC "$1"'
        output(["bash", "-ec", script, source, root / "linux", *SOURCES])
        shutil.copytree(build / "usr/include", root / "linux/usr/include")
        sources = root.with_suffix(".cpio.gz")
        kernel.archive(root, sources)
        machine.join([compilers(), sources], initrd)
        words = {"tests": " ".join(TESTS), "run": " && ".join(TESTS), "now": int(time.time())}
        return machine.boot("native", build, initrd, COMMAND.format(**words), timeout=timeout)[0]
