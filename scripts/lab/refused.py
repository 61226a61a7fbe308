# SPDX-License-Identifier: GPL-2.0-only
"""Checks that what the selftests' crate is to refuse does not build, and why it does not.

The first line of each file in refused/ says what is expected: `// error: TEXT`, an error of
rustc that has this text; `// guest: TEXT`, a refusal of check_guest.sh that has it; or `// fine`.
"""

import pathlib
import subprocess
import tempfile

from common import LAB

FILES = LAB / "refused"
FLAGS = ["--edition=2021", "--target=aarch64-unknown-linux-gnu", "-O", "-C", "codegen-units=1"]
FLAGS += ["-C", "relocation-model=static", "-D", "unsafe_code", "--crate-type", "bin"]


def refusal(library, check_guest, file):
    """Returns which step refuses a file, and what it says."""
    with tempfile.TemporaryDirectory() as scratch:
        target = pathlib.Path(scratch, "object")
        rustc = ["rustc", *FLAGS, f"--emit=obj={target}", "--extern", f"libkvm={library}", file]
        for step, words in (("error", rustc), ("guest", ["sh", check_guest, target])):
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            if done.returncode:
                return step, done.stdout + done.stderr
    return "fine", ""


def wrong(source, build):
    """Returns what is wrong with the crate that was built from a tree."""
    library = build / "kselftest/kvm/rust/libkvm.rlib"
    check_guest = source / "tools/testing/selftests/kvm/lib/rust/check_guest.sh"
    found = []
    for file in sorted(FILES.glob("*.rs")):
        expected = file.read_text().split("\n", 1)[0].removeprefix("// ")
        kind, _, text = expected.partition(": ")
        step, said = refusal(library, check_guest, file)
        if step != kind or text not in said:
            found += [f"{file.stem}: expected '{expected}', and it is '{step}':", said]
    return found
