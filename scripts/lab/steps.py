# SPDX-License-Identifier: GPL-2.0-only
"""Checks the series patch by patch: none may need a later one."""

import functools
import hashlib
import pathlib
import re
import subprocess

import checkpatch
import config
import kernel
import kgit
import patches
import rust
import sparse
from common import CACHE, LAB, LabError, output, say, step
from overlay import overlays

# Files of these make no difference to a kernel.
NOT_KERNEL = ("Documentation/", "MAINTAINERS", "tools/")

# How each patch is built: the first two are linked, and the others compiled with W=1.
FIRST = "4k"
LINKED = [FIRST, "4k-norust"]
COMPILED = ["4k-gcc", "16k", "64k"]
# What is looked at besides, in the first build.
ASIDE = ["checkpatch", "sparse", "Rust", "nVHE", "docs"]
COLUMNS = [*LINKED, *COMPILED, *ASIDE]

NVHE = "arch/arm64/kvm/hyp/nvhe/kvm_nvhe.o"


def commits(branch=kgit.BRANCH):
    """Returns the commits of the series in order, as (id, subject)."""
    lines = kgit.git("log", "--reverse", "--format=%H %s", f"base..{branch}").splitlines()
    return [tuple(line.split(" ", 1)) for line in lines]


def files(commit):
    """Returns the files that a commit changes."""
    names = kgit.git("diff-tree", "--no-commit-id", "--name-only", "-r", commit)
    return names.splitlines()


def concerns_kernel(commit):
    """Says whether a commit changes anything that a kernel is built from."""
    return any(not name.startswith(NOT_KERNEL) for name in files(commit))


def columns(commit):
    """Returns the columns in which a patch has something to show."""
    names = files(commit)
    found = ["checkpatch"]
    if concerns_kernel(commit):
        found += [*LINKED, *COMPILED, "sparse", "nVHE"]
    if any(name.endswith(".rs") for name in names):
        found.append("Rust")
    if any(name.startswith("Documentation/virt/") or name.endswith(".h") for name in names):
        found.append("docs")
    return found


class Passed:
    """What has passed, by all that it depends on, so that nothing is looked at twice."""

    def __init__(self):
        self.path = CACHE / "passed"
        self.keys = set(self.path.read_text().split()) if self.path.exists() else set()
        state = hashlib.sha256()
        names = [f"{name}.py" for name in ("steps", "checkpatch", "config", "kernel", "rust", "sparse")]
        tools = [*(LAB / name for name in names), *sorted(config.FRAGMENTS.iterdir())]
        for path in [*tools, pathlib.Path("/var/lib/dpkg/status")]:
            state.update(path.read_bytes() if path.exists() else b"")
        self.tools = state.hexdigest()

    def key(self, column, number, commit):
        """Returns what the look at a patch depends on, as a checksum."""
        if column == "checkpatch":
            state = patches.patch_files()[number].read_text()
        elif column in ("Rust", "docs"):
            state = content(commit, ())
        else:
            state = content(commit, NOT_KERNEL)
        text = "\n".join([column, self.tools, content("base", ()), state])
        return hashlib.sha256(text.encode()).hexdigest()

    def add(self, key):
        """Remembers that something has passed."""
        with open(self.path, "a", encoding="ascii") as file:
            file.write(f"{key}\n")


@functools.cache
def content(commit, without):
    """Returns a checksum of what a commit holds, but for some directories."""
    lines = kgit.git("ls-tree", "-r", commit).splitlines()
    kept = [line for line in lines if not line.partition("\t")[2].startswith(without)]
    return hashlib.sha256("\n".join(kept).encode()).hexdigest()


def remarks(text, what="warning|error"):
    """Returns the lines of a log that are remarks, without the numbers of their lines."""
    lines = [line for line in text.splitlines() if re.search(what, line)]
    return [re.sub(r":\d+", "", line) for line in lines]


class Build:
    """A build of one commit after the other."""

    def __init__(self, variant, jobs, *words):
        """Prepares for builds by make with some words."""
        self.variant, self.jobs, self.words = variant, jobs, words
        ready = ["Image"] if variant in LINKED else ["prepare"]
        self.path = kernel.kernel(kgit.TREE, variant, jobs, ready)
        self.old = set()

    def configure(self):
        """Configures anew: a patch may bring a symbol."""
        config.write(kgit.TREE, self.path, self.variant)

    def make(self, what):
        """Runs make and returns its log."""
        command = kernel.make(kgit.TREE, self.path, "-s", *self.words, jobs=self.jobs)
        log = step(f"{what} ({self.variant})", command, f"step-{self.variant}")
        return log.read_text(errors="replace")

    def compile(self, commit, subject):
        """Checks out and builds a commit, and returns the remarks that the base does not have."""
        kgit.git("checkout", "--quiet", "--force", "--detach", commit)
        self.configure()
        found = remarks(self.make(f"building '{subject}'"))
        return [line for line in found if line not in self.old]

    def compile_base(self):
        """Builds the base: what that has to say for itself is not the series' doing."""
        self.old = set(self.compile("base", "the base"))


def attempt(check, *arguments):
    """Returns what a check returns, or why it failed, as a list of remarks."""
    try:
        return check(*arguments)
    except LabError as error:
        return [str(error)]


def rust_remarks(build, names):
    """Returns what is wrong with the Rust of what is checked out."""
    paths = [kgit.TREE / name for name in names if name.endswith(".rs")]
    rust.check_format(kgit.TREE, *paths)
    if not any(path.is_relative_to(kgit.TREE / "arch") for path in paths):
        return []
    wrong = rust.clippy(kgit.TREE, build.path, build.jobs)
    return wrong + rust.panic_symbols(kgit.TREE, build.path, build.jobs)


def nvhe_symbols(build):
    """Returns the symbols of the object that runs at EL2 without VHE."""
    return set(output(["llvm-nm", "--format=just-symbols", build.path / NVHE]).split())


def documentation_remarks(names):
    """Returns what kernel-doc and Sphinx say of files."""
    sources = [name for name in names if name.endswith((".c", ".h"))]
    found = []
    if sources:
        command = [kgit.TREE / "scripts/kernel-doc", "-none", "-Wall", *sources]
        result = subprocess.run(
            [str(word) for word in command],
            cwd=kgit.TREE,
            capture_output=True,
            text=True,
            check=False,
        )
        found += remarks(result.stdout + result.stderr)
    if any(name.startswith("Documentation/virt/") for name in names):
        command = ["make", "-s", "-C", kgit.TREE, "htmldocs", "SPHINXDIRS=virt/kvm"]
        log = step("making the documentation", command, "step-htmldocs")
        found += remarks(log.read_text(errors="replace"), r"WARNING|ERROR|error:")
    return found


def first_build(numbers, jobs):
    """Builds patches, looks at all that can be seen of them there, and yields what is wrong as
    (number, column, remarks)."""
    checker = sparse.find(kgit.TREE)
    if not checker:
        say("the tree wants a newer sparse than there is: that column stays empty")
    build = Build(FIRST, jobs, *(["C=1", f"CHECK={checker}"] if checker else []), "Image")
    touched = patches.touched_files()
    with overlays(kgit.TREE, build.path):
        build.compile_base()
        old_symbols = nvhe_symbols(build)
        old_docs = set(documentation_remarks([name for name in touched if in_base(name)]))

        for number, (commit, subject) in enumerate(commits()):
            if number not in numbers:
                continue
            here = columns(commit)
            patch = patches.patch_files()[number]
            yield number, "checkpatch", checkpatch.patch_remarks(kgit.TREE, False, patch)
            if FIRST in here:
                wrong = attempt(build.compile, commit, subject)
                yield number, FIRST, wrong
                # The compiler's remarks and sparse's look alike.
                if checker:
                    yield number, "sparse", wrong
                if wrong:
                    continue
                yield number, "nVHE", sorted(nvhe_symbols(build) - old_symbols)
            else:
                kgit.git("checkout", "--quiet", "--force", "--detach", commit)
            if "Rust" in here:
                yield number, "Rust", attempt(rust_remarks, build, files(commit))
            if "docs" in here:
                docs = attempt(documentation_remarks, files(commit))
                yield number, "docs", [line for line in docs if line not in old_docs]


def in_base(name):
    """Says whether the base has a file."""
    return bool(kgit.git("ls-tree", "base", "--", name))


def other_build(variant, numbers, jobs):
    """Builds patches in another way, and yields what is wrong."""
    build = Build(variant, jobs, *(["Image"] if variant in LINKED else ["W=1", "arch/arm64/kvm/"]))
    with overlays(kgit.TREE, build.path):
        build.compile_base()
        for number, (commit, subject) in enumerate(commits()):
            if number in numbers:
                yield number, variant, attempt(build.compile, commit, subject)


def check_each(jobs=None):
    """Checks each patch in each way that has not passed yet, and yields what is wrong as (number,
    column, remarks)."""
    passed = Passed()
    keys = {
        (number, column): passed.key(column, number, commit)
        for number, (commit, _) in enumerate(commits())
        for column in columns(commit)
    }
    left = {place for place, key in keys.items() if key not in passed.keys}
    for number, column in sorted(keys.keys() - left):
        yield number, column, []

    builds = {(FIRST, *ASIDE): first_build}
    for variant in [*LINKED[1:], *COMPILED]:
        builds[(variant,)] = functools.partial(other_build, variant)
    for here, build in builds.items():
        numbers = {number for number, column in left if column in here}
        for number, column, wrong in build(numbers, jobs) if numbers else ():
            if not wrong:
                passed.add(keys[number, column])
            yield number, column, wrong


def table(results):
    """Returns the lines of a table of {(number, column): remarks}."""
    width = max(len(subject) for _, subject in commits())
    lines = ["  ".join([" " * (width + 3), *COLUMNS])]
    for number, (_, subject) in enumerate(commits()):
        cells = []
        for column in COLUMNS:
            wrong = results.get((number, column))
            word = "-" if wrong is None else "FAIL" if wrong else "ok"
            cells.append(word.ljust(len(column)))
        lines.append("  ".join([f"{number + 1:2} {subject:{width}}", *cells]).rstrip())
    return lines
