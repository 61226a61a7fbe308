# SPDX-License-Identifier: GPL-2.0-only
"""Checks the series patch by patch: none may need a later one."""

import re
import subprocess

import checkpatch
import kernel
import rust
import tree
from common import LabError, output, say, step
from overlay import overlays

# Files of these make no difference to a kernel.
NOT_KERNEL = ("Documentation/", "MAINTAINERS", "tools/")

# What can be left out at the end of the series: a patch with its test, each pair for itself.
FEATURES = [
    (
        "KVM: arm64: Map blocks where no page of them is marked",
        "KVM: arm64: selftests: Test blocks in userfault slots",
    ),
    (
        "KVM: arm64: Unmap only marked pages when userfault is enabled",
        "KVM: arm64: selftests: Test what enabling userfault unmaps",
    ),
]

# How each patch is built: the first two are linked, and the others compiled with W=1.
FIRST = "4k"
LINKED = [FIRST, "4k-norust"]
COMPILED = ["4k-gcc", "16k", "64k"]
# What is looked at besides, in the first build.
ASIDE = ["checkpatch", "sparse", "Rust", "nVHE", "docs"]
COLUMNS = [*LINKED, *COMPILED, *ASIDE]

# What the Makefile says of a sparse that its scripts/checker-valid.sh does not like.
NO_SPARSE = "sparse is not available or not up to date"

NVHE = "arch/arm64/kvm/hyp/nvhe/kvm_nvhe.o"


def commits(branch=tree.BRANCH):
    """Returns the commits of the series in order, as (id, subject)."""
    lines = tree.git("log", "--reverse", "--format=%H %s", f"base..{branch}").splitlines()
    return [tuple(line.split(" ", 1)) for line in lines]


def files(commit):
    """Returns the files that a commit changes."""
    names = tree.git("diff-tree", "--no-commit-id", "--name-only", "-r", commit)
    return names.splitlines()


def concerns_kernel(commit):
    """Says whether a commit changes anything that a kernel is built from."""
    return any(not name.startswith(NOT_KERNEL) for name in files(commit))


def remarks(text, what="warning|error"):
    """Returns the lines of a log that are remarks, without the numbers of their lines."""
    lines = [line for line in text.splitlines() if re.search(what, line)]
    return [re.sub(r":\d+", "", line) for line in lines]


class Build:
    """A build of the tree, of whatever is checked out."""

    def __init__(self, variant, jobs):
        self.variant, self.jobs = variant, jobs
        self.path = kernel.kernel(tree.TREE, variant, jobs)

    def configure(self):
        """Configures anew: a patch may bring a symbol."""
        kernel.write_config(tree.TREE, self.path, self.variant)

    def make(self, what, *words):
        """Runs make and returns its log."""
        command = kernel.make(tree.TREE, self.path, "-s", *words, jobs=self.jobs)
        log = step(f"{what} ({self.variant})", command, f"step-{self.variant}")
        return log.read_text(errors="replace")

    def compile(self, subject, *words):
        """Configures and builds a commit, and returns the remarks."""
        self.configure()
        return remarks(self.make(f"building '{subject}'", *words))


def attempt(check, *arguments):
    """Returns what a check returns, or why it failed, as a list of remarks."""
    try:
        return check(*arguments)
    except LabError as error:
        return [str(error)]


def rust_remarks(build, names):
    """Returns what is wrong with the Rust of what is checked out."""
    paths = [tree.TREE / name for name in names if name.endswith(".rs")]
    rust.check_format(tree.TREE, *paths)
    if not any(path.is_relative_to(tree.TREE / "arch") for path in paths):
        return []
    log = rust.clippy(tree.TREE, build.path, build.jobs)
    wrong = remarks(log.read_text(errors="replace"))
    return wrong + rust.panic_symbols(tree.TREE, build.path, build.jobs)


def nvhe_symbols(build):
    """Returns the symbols of the object that runs at EL2 without VHE."""
    return set(output(["llvm-nm", "--format=just-symbols", build.path / NVHE]).split())


def documentation_remarks(names):
    """Returns what kernel-doc and Sphinx say of files."""
    sources = [name for name in names if name.endswith((".c", ".h"))]
    found = []
    if sources:
        command = [tree.TREE / "scripts/kernel-doc", "-none", "-Wall", *sources]
        result = subprocess.run(
            [str(word) for word in command],
            cwd=tree.TREE,
            capture_output=True,
            text=True,
            check=False,
        )
        found += remarks(result.stdout + result.stderr)
    if any(name.startswith("Documentation/virt/") for name in names):
        command = ["make", "-s", "-C", tree.TREE, "htmldocs", "SPHINXDIRS=virt/kvm"]
        log = step("making the documentation", command, "step-htmldocs")
        found += remarks(log.read_text(errors="replace"), r"WARNING|ERROR|error:")
    return found


def first_build(jobs):
    """Builds each patch, looks at all that can be seen of it there, and yields what is wrong as
    (number, column, remarks)."""
    build = Build(FIRST, jobs)
    touched = tree.touched_files()
    with overlays(tree.TREE, build.path):
        tree.git("checkout", "--quiet", "--force", "--detach", "base")
        build.configure()
        # What the base has to say for itself is not the series' doing.
        text = build.make("building the base", "C=1", "Image")
        has_sparse = NO_SPARSE not in text
        if not has_sparse:
            say("the tree wants a newer sparse than there is: that column stays empty")
        old = set(remarks(text))
        old_symbols = nvhe_symbols(build)
        old_docs = set(documentation_remarks([name for name in touched if in_base(name)]))

        for number, (commit, subject) in enumerate(commits()):
            names = files(commit)
            tree.git("checkout", "--quiet", "--force", "--detach", commit)
            patch = tree.patch_files()[number]
            yield number, "checkpatch", checkpatch.patch_remarks(tree.TREE, False, patch)
            if concerns_kernel(commit):
                said = attempt(build.compile, subject, "C=1", "Image")
                # The compiler's and sparse's look alike.
                new = [line for line in said if line not in old]
                yield number, FIRST, new
                if has_sparse:
                    yield number, "sparse", new
                if new:
                    continue
                yield number, "nVHE", sorted(nvhe_symbols(build) - old_symbols)
            if any(name.endswith(".rs") for name in names):
                yield number, "Rust", attempt(rust_remarks, build, names)
            if any(name.startswith("Documentation/virt/") or name.endswith(".h") for name in names):
                docs = attempt(documentation_remarks, names)
                yield number, "docs", [line for line in docs if line not in old_docs]


def in_base(name):
    """Says whether the base has a file."""
    return bool(tree.git("ls-tree", "base", "--", name))


def other_build(variant, jobs):
    """Builds each patch that concerns a kernel in another way, and yields what is wrong."""
    build = Build(variant, jobs)
    words = ["Image"] if variant in LINKED else ["W=1", "arch/arm64/kvm/"]
    with overlays(tree.TREE, build.path):
        for number, (commit, subject) in enumerate(commits()):
            if not concerns_kernel(commit):
                continue
            tree.git("checkout", "--quiet", "--force", "--detach", commit)
            yield number, variant, attempt(build.compile, subject, *words)


def check_each(jobs=None):
    """Checks each patch in each way, and yields what is wrong as (number, column, remarks)."""
    yield from first_build(jobs)
    for variant in [*LINKED[1:], *COMPILED]:
        yield from other_build(variant, jobs)


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
