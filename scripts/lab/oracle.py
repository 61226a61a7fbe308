# SPDX-License-Identifier: GPL-2.0-only
"""Compares the core of the helper in Rust with an oracle, on the host, in seconds.

The core is what the helper decides with: all of its modules but the root, where it meets C. They
are compiled from the kernel tree as they are, against a stand-in for what they use of the kernel
crate. Each case has a seed of its own; that of a failure is shown and can be given again.
"""

import contextlib
import json
import pathlib
import random
import shutil
import tempfile

import tree
from common import LAB, LabError, main, new_parser, output

CASES = 3_000_000
# To count what runs takes ten times as long.
COUNTED_CASES = 50_000

# An overflow ends the program. The kernel allows this lint for Rust 1.85 as well.
FLAGS = "--edition=2021 -C opt-level=3 -C codegen-units=1 -C overflow-checks -C debug-assertions"
FLAGS += " -D warnings -A clippy::precedence -A unexpected_cfgs"

# Lines with a way out that nothing can take, and why: the code has it, as it has no panic.
UNREACHABLE = {
    "usize::try_from": "usize has 64 bits",
    "end.checked_sub(start)?": "pages begin before they end",
    "Bitmap::from_words(words)?": "nobody has room for 2 GiB of marks",
    "self.slot.gfn(pages.first())?": "the pages are the slot's",
}


@contextlib.contextmanager
def crate(source):
    """Makes a directory that shows the oracle together with the helper of a kernel tree."""
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        shutil.copytree(LAB / "core", directory, dirs_exist_ok=True)
        (directory / "userfault").symlink_to(source / "arch/arm64/kvm/userfault")
        yield directory


def compile_with(compiler, directory, program, *flags):
    """Compiles the comparison, and what stands in for the kernel crate."""
    library = directory / "libkernel.rlib"
    words = ["--edition=2021", "--crate-type=rlib", "-O", "-o", library, "kernel.rs"]
    output(["rustc", *words], cwd=directory)
    flags = [*flags, *FLAGS.split(), "--extern", f"kernel={library}", "-o", program]
    output([compiler, *flags, "main.rs"], cwd=directory)


def coverage(directory, seed):
    """Runs some cases and returns (lines of the core, places in it where nothing ran)."""
    program, raw, profile = (directory / name for name in ("counting", "raw", "profile"))
    compile_with("rustc", directory, program, "-C", "instrument-coverage")
    output([program, seed, COUNTED_CASES], env={"LLVM_PROFILE_FILE": str(raw)})
    output(["llvm-profdata", "merge", "-o", profile, raw])
    report = json.loads(output(["llvm-cov", "export", program, f"--instr-profile={profile}"]))

    lines, missed = 0, []
    files = {pathlib.Path(file["filename"]).name: file for file in report["data"][0]["files"]}
    for path in sorted((directory / "userfault").glob("*.rs")):
        if path.name == "userfault.rs":
            continue
        if path.name not in files:
            missed.append(f"userfault/{path.name} is not compared")
            continue
        lines += files[path.name]["summary"]["lines"]["count"]
        text = path.read_text().splitlines()
        for line, column, count, is_counted, is_entry, is_gap in files[path.name]["segments"]:
            if is_counted and is_entry and not is_gap and not count:
                if not any(words in text[line - 1] for words in UNREACHABLE):
                    missed.append(f"userfault/{path.name}:{line}:{column} never ran")
    return lines, missed


def compare(source, cases=CASES, seed=None):
    """Runs the comparison with the core of a kernel tree and returns what it was, in words."""
    seed = random.getrandbits(32) if seed is None else seed
    with crate(source) as directory:
        program = directory / "comparing"
        compile_with("clippy-driver", directory, program)
        output([program, seed, cases])
        lines, missed = coverage(directory, seed)
    if missed:
        raise LabError("\n".join(["the cases do not cover all of the core:", *missed]))
    return f"{cases:,} cases from seed {seed}, 100 % of {lines} lines"


def program():
    """Runs the comparison."""
    parser = new_parser("scripts/lab/enter scripts/lab/oracle.py", __doc__)
    parser.add_argument("--cases", type=int, default=CASES, metavar="N", help=f"default: {CASES}")
    parser.add_argument("--seed", type=int, metavar="N", help="of the first case; default: any")
    args = parser.parse_args()
    print(compare(tree.ready(), args.cases, args.seed))


if __name__ == "__main__":
    main(program)
