# SPDX-License-Identifier: GPL-2.0-only
"""Builds and runs what is there at the end of each part, which must not need a later one."""

import functools
import hashlib

import config
import kernel
import kgit
import machine
import parts
import run
import steps
from common import output, step
from overlay import overlays

# What each part is built and run with: without RUST, and with all that it has.
VARIANTS = ["4k-norust", "4k"]
MACHINE = "nofwb"


def ends():
    """Returns the last commit of each part, as [(part, commit)]."""
    commits = steps.commits()
    subjects = [subject for _, subject in commits]
    return [(part.name, commits[part.last - 1][0]) for part in parts.split(subjects)]


def demand_paging(name, build, initrd):
    """Has the stock test page memory in by userfault, in one guest mode; returns what is wrong."""
    command = "/kselftest/kvm/demand_paging_test -k -m 6 -b 2M"
    code, lines = machine.boot(name, build, initrd, command, show=False)
    return lines[-20:] if code else []


def suite(build, jobs):
    """Builds the selftests that are checked out, runs them and returns what is wrong."""
    initrd = kernel.initrd(build, kernel.selftests(kgit.TREE, build, jobs))
    wrong = run.boot_suite(MACHINE, build, initrd)
    if config.has(build, "KVM_ARM64_USERFAULT") and not wrong:
        wrong = demand_paging(MACHINE, build, initrd)
    return wrong


def look(commit, variant, jobs=None):
    """Builds a commit, runs the suite that it has and returns what is wrong."""
    build = kernel.kernel(kgit.TREE, variant, jobs)
    with overlays(kgit.TREE, build):
        kgit.git("checkout", "--quiet", "--force", "--detach", commit)
        config.write(kgit.TREE, build, variant)
        command = kernel.make(kgit.TREE, build, "-s", "Image", jobs=jobs)
        step(f"building a part's end ({variant})", command, f"end-{variant}")
        output(["rm", "-rf", build / "kselftest_install", build / "kselftest"])
        return suite(build, jobs)


def key(commit, variant):
    """Returns what a look at a part's end depends on, as a checksum."""
    without = ("Documentation/", "MAINTAINERS")
    text = "\n".join([variant, steps.Passed().tools, steps.content(commit, without)])
    return hashlib.sha256(text.encode()).hexdigest()


def check_each(jobs=None, tested=()):
    """Yields (part, variant, function that returns remarks) for each part's end that has not
    passed yet and is not the same as a commit that was tested."""
    passed = steps.Passed()
    seen = passed.keys | {key(commit, variant) for commit in tested for variant in VARIANTS}

    def look_once(commit, variant, known):
        """Looks at a part's end and remembers that it passed."""
        wrong = look(commit, variant, jobs)
        if not wrong:
            passed.add(known)
        return wrong

    for name, commit in ends():
        for variant in VARIANTS:
            known = key(commit, variant)
            if known not in seen:
                seen.add(known)
                yield name, variant, functools.partial(look_once, commit, variant, known)
