# SPDX-License-Identifier: GPL-2.0-only
"""Checks that what the selftests' crate is to refuse does not build, and why it does not.

usage: check.py RUST_OUT CHECK_GUEST [FILE...]

RUST_OUT is where Makefile.rust has put libkvm.rlib, CHECK_GUEST is lib/rust/check_guest.sh. The
first line of each file says what is expected: `// error: TEXT`, an error of rustc that has this
text; `// guest: TEXT`, a refusal of check_guest.sh that has it; or `// fine`.
"""

import os
import pathlib
import subprocess
import sys
import tempfile

TARGET = os.environ.get("RUST_TARGET", "aarch64-unknown-linux-gnu")
FLAGS = ["--edition=2021", f"--target={TARGET}", "-O", "-C", "codegen-units=1"]
FLAGS += ["-C", "relocation-model=static", "-D", "unsafe_code", "--crate-type", "bin"]


def run(words):
    """Returns whether a command succeeds, and what it says."""
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    return result.returncode == 0, result.stdout + result.stderr


def build(out, check, file, target):
    """Returns the step that refuses a file, and what it says."""
    words = ["rustc", *FLAGS, f"--emit=obj={target}", "--extern", f"libkvm={out}/libkvm.rlib"]
    good, text = run([*words, file])
    if not good:
        return "error", text
    good, text = run(["sh", check, target])
    return ("fine", "") if good else ("guest", text)


def main():
    """Looks at each file."""
    out, check, *files = sys.argv[1:]
    files = files or sorted(pathlib.Path(__file__).parent.glob("*.rs"))
    wrong = 0
    with tempfile.TemporaryDirectory() as directory:
        for number, file in enumerate(map(pathlib.Path, files), 1):
            expected = file.read_text().split("\n", 1)[0].removeprefix("// ")
            kind, _, text = expected.partition(": ")
            step, said = build(out, check, file, f"{directory}/{file.stem}.o")
            good = step == kind and text in said
            wrong += not good
            print(f"{'ok' if good else 'not ok'} {number} {file.stem}")
            if not good:
                print("\n".join(f"# {line}" for line in [f"expected {expected}", *said.split("\n")]))
    print(f"1..{len(files)}")
    return 1 if wrong else 0


sys.exit(main())
