# SPDX-License-Identifier: GPL-2.0-only
"""Looks at the series' Rust: its format, and what clippy and nm say of the helper."""

import re

import kernel
from common import output, step

HELPER = "arch/arm64/kvm/userfault/userfault.o"


def check_format(source, *paths):
    """Fails if files are not as the tree's rustfmt would have them."""
    style = source / ".rustfmt.toml"
    output(["rustfmt", "--check", "--edition=2021", "--config-path", style, *paths])


def clippy(source, build, jobs=None):
    """Runs clippy on the helper and returns what it says of files that the series touches: where
    the kernel crate is built anew, it speaks of that as well."""
    (build / HELPER).unlink(missing_ok=True)
    command = kernel.make(source, build, "-s", "CLIPPY=1", HELPER, jobs=jobs)
    log = step("running clippy on the helper", command, "clippy-helper")
    remarks = re.split(r"\n(?=warning|error)", log.read_text(errors="replace"))
    touched = r"--> \S*/(arch/arm64/kvm/userfault/|rust/kernel/bitmap\.rs)"
    return [remark.strip() for remark in remarks if re.search(touched, remark)]


def panic_symbols(source, build, jobs=None):
    """Returns the symbols of the helper that only a panic needs; its KUnit tests may panic."""
    tests = "KVM_ARM64_USERFAULT_KUNIT_TEST"
    output([source / "scripts/config", "--file", build / ".config", "--disable", tests])
    command = kernel.make(source, build, "-s", HELPER, jobs=jobs)
    step("building the helper without its KUnit tests", command, "no-panic")
    symbols = output(["llvm-nm", "--undefined-only", build / HELPER])
    return [line for line in symbols.splitlines() if re.search("panic|rust_build_error", line)]
