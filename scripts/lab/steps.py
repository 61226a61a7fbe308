# SPDX-License-Identifier: GPL-2.0-only
"""Builds the series patch by patch, in several ways: none may need a later one."""

import functools
import hashlib
import re
import shutil
import subprocess

import config
import kernel
import kgit
import patches
import rust
from common import CACHE, LAB, LabError, output, step, write_if_changed
from overlay import overlays
from passed import Passed

# Files of these make no difference to a kernel.
NOT_KERNEL = ("Documentation/", "MAINTAINERS", "tools/")
# Each build, and what make is told: two are linked, and the others compiled with W=1. All that
# can be seen of a patch besides is looked at in the first.
COMPILE = ["W=1", "arch/arm64/kvm/"]
FIRST = "4k"
BUILDS = {FIRST: ["Image"], "4k-norust": ["Image"]}
BUILDS |= dict.fromkeys(["4k-gcc", "16k", "64k"], COMPILE)
# Selftests depend on nothing of these.
NOT_SELFTESTS = ("Documentation/", "MAINTAINERS", "arch/arm64/kvm/", "rust/", "virt/")
NVHE = "arch/arm64/kvm/hyp/nvhe/kvm_nvhe.o"
# What says how a patch is looked at.
LOOKS = ("steps.py", "kernel.py", "rust.py")


def commits(branch=kgit.BRANCH):
    """Returns the commits of the series in order, as (id, subject)."""
    lines = kgit.git("log", "--reverse", "--format=%H %s", f"base..{branch}").splitlines()
    return [tuple(line.split(" ", 1)) for line in lines]


def files(commit):
    """Returns the files that a commit changes."""
    return kgit.git("diff-tree", "--no-commit-id", "--name-only", "-r", commit).splitlines()


def key_of(passed, variant, commit, without=(), looks=()):
    """Returns what a look at a commit depends on, as a checksum: some files of the lab, too."""
    content = [content_of(name, without) for name in ("base", commit)]
    texts = [(LAB / name).read_text() for name in looks]
    return passed.key(variant, config.text(variant), *content, *texts)


@functools.cache
def content_of(commit, without):
    """Returns a checksum of what a commit holds, but for some directories."""
    lines = kgit.git("ls-tree", "-r", commit).splitlines()
    kept = [line for line in lines if not line.partition("\t")[2].startswith(without)]
    return hashlib.sha256("\n".join(kept).encode()).hexdigest()


def remarks(text, what="warning|error"):
    """Returns the lines of a log that are remarks, without the numbers of their lines."""
    return [re.sub(r":\d+", "", line) for line in text.splitlines() if re.search(what, line)]


def attempt(check, *arguments):
    """Returns what a check returns, or why it failed, as a list of remarks."""
    try:
        return check(*arguments)
    except LabError as error:
        return [str(error)]


def sparse_words():
    """Returns words for make that run sparse, where the tree accepts the one that there is."""
    checker = shutil.which("sparse")
    valid = checker and output(["sh", kgit.TREE / "scripts/checker-valid.sh", checker]).strip()
    return ["C=1", f"CHECK={checker}"] if valid == "1" else []


def documentation(names):
    """Returns what kernel-doc and Sphinx say of files."""
    found, sources = [], [name for name in names if name.endswith((".c", ".h"))]
    if sources:
        command = ["scripts/kernel-doc", "-none", "-Wall", *sources]
        done = subprocess.run(command, cwd=kgit.TREE, capture_output=True, text=True, check=False)
        found += remarks(done.stdout + done.stderr)
    if any(name.startswith("Documentation/virt/") for name in names):
        command = ["make", "-s", "-C", kgit.TREE, "htmldocs", "SPHINXDIRS=virt/kvm"]
        log = step("making the documentation", command, "step-htmldocs")
        found += remarks(log.read_text(errors="replace"), r"WARNING|ERROR|error:")
    return found


def aside(build, names, jobs):
    """Returns what else is to be seen of what is checked out and built: symbols of the object that
    runs at EL2 without VHE, remarks on documents, and on Rust."""
    nvhe = output(["llvm-nm", "--format=just-symbols", build / NVHE]).split()
    found = [f"nVHE symbol {name}" for name in nvhe] + documentation(names)
    paths = [kgit.TREE / name for name in names if name.endswith(".rs")]
    if paths:
        rust.check_format(kgit.TREE, *paths)
    if any(path.is_relative_to(kgit.TREE / "arch") for path in paths):
        found += rust.clippy(kgit.TREE, build, jobs) + rust.panic_symbols(kgit.TREE, build, jobs)
    return found


def look(build, words, commit, names, jobs):
    """Checks out, configures, as a patch may bring a symbol, and builds a commit, and returns all
    remarks."""
    kgit.git("checkout", "--quiet", "--force", "--detach", commit)
    config.write(kgit.TREE, build, build.name)
    subject = kgit.git("log", "-1", "--format=%s", commit)
    command = kernel.make(kgit.TREE, build, "-s", *words, jobs=jobs)
    log = step(f"building '{subject}' ({build.name})", command, f"step-{build.name}")
    found = remarks(log.read_text(errors="replace"))
    return found + (aside(build, names, jobs) if build.name == FIRST else [])


def of_base(build, words, jobs):
    """Returns the remarks on the base, which is built for them once. What is built is of the whole
    series then, or nothing: all is compiled that a patch can have compiled."""
    known = kgit.git("ls-tree", "--name-only", "base", "--", *patches.touched_files())
    known = [name for name in known.splitlines() if not name.endswith(".rs")]
    texts = [*words, *known, config.text(build.name), content_of("base", ())]
    path = CACHE / "remarks" / Passed().key(build.name, *texts)
    if not path.exists():
        write_if_changed(path, "\n".join(look(build, words, "base", known, jobs)))
    return path.read_text().splitlines()


def check_build(variant, left, jobs):
    """Builds commits in one way and yields (commit, remarks that the base does not have)."""
    words = BUILDS[variant] + (sparse_words() if variant == FIRST else [])
    build = kernel.kernel(kgit.TREE, variant, jobs, ["prepare"] if words == COMPILE else ["Image"])
    with overlays(kgit.TREE, build):
        old = of_base(build, words, jobs)
        for commit in left:
            found = attempt(look, build, words, commit, files(commit), jobs)
            yield commit, [line for line in found if line not in old]


def not_passed(passed, keys):
    """Returns {key: commit} of {commit: key}, without what has passed. Commits that are alike but
    for what a build does not see are looked at once."""
    left = {}
    for commit, key in keys.items():
        if key not in passed.keys:
            left.setdefault(key, commit)
    return left


def selftests(commit, build, jobs):
    """Builds all selftests of a commit, which fails where one in Rust cannot be built."""
    kgit.git("checkout", "--quiet", "--force", "--detach", commit)
    kernel.selftests(kgit.TREE, build, jobs)
    return []


def check_selftests(passed, series, jobs):
    """Builds the selftests of each patch; yields (commit, remarks)."""
    texts = [(LAB / name).read_text() for name in LOOKS]
    keys = {
        commit: passed.key("selftests", content_of(commit, NOT_SELFTESTS), *texts)
        for commit, _ in series
    }
    build = kernel.directory(kgit.TREE, "selftests-each")
    build.mkdir(parents=True, exist_ok=True)
    with overlays(kgit.TREE, build):
        for key, commit in not_passed(passed, keys).items():
            wrong = attempt(selftests, commit, build, jobs)
            if not wrong:
                passed.add(key)
            yield commit, wrong


def check_each(jobs=None):
    """Builds each patch in each way that has not passed yet; yields (variant, subject, remarks)."""
    passed, series = Passed(), commits()
    for variant in BUILDS:
        without = () if variant == FIRST else NOT_KERNEL
        keys = {commit: key_of(passed, variant, commit, without, LOOKS) for commit, _ in series}
        left = not_passed(passed, keys)
        for commit, wrong in check_build(variant, left.values(), jobs) if left else ():
            if not wrong:
                passed.add(keys[commit])
            yield variant, dict(series)[commit], wrong
    for commit, wrong in check_selftests(passed, series, jobs):
        yield "selftests", dict(series)[commit], wrong
