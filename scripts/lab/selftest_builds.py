# SPDX-License-Identifier: GPL-2.0-only
"""Builds the selftests in the ways that people build them, besides the lab's own."""

import pathlib
import shutil
import subprocess

import kernel
from common import output
from overlay import overlays

# A test of each kind.
RUST, C = "arm64/rust_guest", "set_memory_region_test"
TESTS = pathlib.Path("tools/testing/selftests/kvm")


def by_clang(source, names, jobs):
    """Builds the selftests by LLVM=1, and returns which of those in Rust are no programs."""
    build = kernel.directory(source, "selftests-clang")
    build.mkdir(parents=True, exist_ok=True)
    # What an earlier run has built says nothing of this one.
    installed = kernel.selftests(source, build, jobs, ["LLVM=1", "CROSS_COMPILE="], anew=True)
    return [f"{name} was not built" for name in names if not is_program(installed / "kvm" / name)]


def is_program(path):
    """Says whether a file is a program for the target, and not what stands in for one."""
    return path.exists() and kernel.elf_machine(path) == kernel.EM_AARCH64


class Build:
    """A build directory, in which the two tests are made again and again."""

    def __init__(self, source, build):
        self.source, self.build = source, build
        self.output = build / "kselftest/kvm"
        self.crate = self.output / "rust/libkvm.rlib"

    def make(self, *words):
        """Makes the tests, and returns why that failed, if it did, as a list."""
        command = ["make", "-s", "-C", self.source / TESTS, "ARCH=arm64"]
        command += ["CROSS_COMPILE=aarch64-linux-gnu-", f"OUTPUT={self.output}"]
        command += [f"KHDR_INCLUDES=-isystem {self.build}/usr/include", *words]
        command += [self.output / name for name in (RUST, C)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return [f"make {' '.join(words)}: {done.stderr}"] if done.returncode else []

    def compiles(self, why, *words):
        """Makes the tests, and returns what is wrong where that does not compile the crate."""
        before = self.crate.stat().st_mtime_ns if self.crate.exists() else 0
        wrong = self.make(*words)
        compiled = self.crate.exists() and self.crate.stat().st_mtime_ns > before
        return wrong + ([] if compiled else [f"{why}, and nothing was compiled"])

    def static(self):
        """Links statically, as for a board with another C library."""
        wrong = self.make("USERLDFLAGS=-static")
        headers = output(["llvm-readelf", "--program-headers", self.output / RUST])
        return wrong + (["it is not static"] if "INTERP" in headers else [])

    def without_rust(self):
        """Has rustc fail: only what is written in Rust is lost, and says so."""
        (self.output / C).unlink()
        wrong = self.make("USERRUSTFLAGS=--there-is-no-such-flag")
        wrong += [] if is_program(self.output / C) else ["no test in C was built"]
        if not self.make("USERRUSTFLAGS=--there-is-no-such-flag", "FORCE_TARGETS=1"):
            wrong.append("make does not fail with FORCE_TARGETS")
        text = (self.output / RUST).read_text(errors="replace")
        return wrong + ([] if "could not be built" in text else ["nothing says what failed"])

    def header_comes_and_goes(self):
        """Uses a header, and does so no more."""
        uses = self.source / TESTS / "lib/rust/bindings.h"
        header = self.source / TESTS / "include/comes_and_goes.h"
        text, wrong = uses.read_text(), self.make()
        header.touch()
        for content in (f'#include "{header.name}"\n{text}', text):
            uses.write_text(content)
            wrong += self.compiles("a header changed")
            header.unlink(missing_ok=True)
        return wrong

    def rustc_changes(self):
        """Has another version of rustc, which cannot use what the one before has compiled."""
        other = self.build / "rustc"
        other.write_text('#!/bin/sh\nrustc "$@" && case $1 in -vV) echo other: 1;; esac\n')
        other.chmod(0o755)
        return self.compiles("rustc changed", f"RUSTC={other}")


def in_other_ways(source, build):
    """Builds tests in other ways, in which each is there; returns what is wrong."""
    with overlays(source, build):
        one = Build(source, build)
        ways = [one.static, one.without_rust, one.header_comes_and_goes, one.rustc_changes]
        return [f"{way.__name__}: {text}" for way in ways for text in way()]
