# SPDX-License-Identifier: GPL-2.0-only
"""Builds and runs what is there at the end of each part, which must not need a later one."""

import functools

import config
import kernel
import kgit
import machine
import patches
import run
import steps
from common import output, step
from overlay import overlays

# What each part is built and run with: without RUST, and with all that it has.
VARIANTS = ["4k-norust", "4k"]
MACHINE = "nofwb"
NO_TEST = ("Documentation/", "MAINTAINERS")


def demand_paging(name, build, initrd):
    """Has the stock test page memory in by userfault, in one guest mode; returns what is wrong."""
    command = "/kselftest/kvm/demand_paging_test -k -m 6 -b 2M"
    code, lines = machine.boot(name, build, initrd, command, show=False)
    return lines[-20:] if code else []


def look(commit, variant, jobs=None):
    """Builds a commit, runs the suite that it has and returns what is wrong."""
    build = kernel.kernel(kgit.TREE, variant, jobs)
    with overlays(kgit.TREE, build):
        kgit.git("checkout", "--quiet", "--force", "--detach", commit)
        config.write(kgit.TREE, build, variant)
        command = kernel.make(kgit.TREE, build, "-s", "Image", jobs=jobs)
        step(f"building a part's end ({variant})", command, f"end-{variant}")
        output(["rm", "-rf", build / "kselftest_install", build / "kselftest"])
        initrd = kernel.initrd(build, kernel.selftests(kgit.TREE, build, jobs))
        wrong = run.boot_suite(MACHINE, build, initrd)
        if config.has(build, "KVM_ARM64_USERFAULT") and not wrong:
            wrong = demand_paging(MACHINE, build, initrd)
        return wrong


def check_each(jobs=None, tested=()):
    """Yields (part, variant, function that returns remarks) for each part's end that has not
    passed yet and is not the same as a commit that was tested."""
    passed, commits = steps.Passed(), steps.commits()
    seen = passed.keys | {
        passed.key(variant, commit, NO_TEST) for commit in tested for variant in VARIANTS
    }

    def look_once(commit, variant, known):
        """Looks at a part's end and remembers that it passed."""
        wrong = look(commit, variant, jobs)
        if not wrong:
            passed.add(known)
        return wrong

    for part in patches.parts([subject for _, subject in commits]):
        commit = commits[part.last - 1][0]
        for variant in VARIANTS:
            known = passed.key(variant, commit, NO_TEST)
            if known not in seen:
                seen.add(known)
                yield part.name, variant, functools.partial(look_once, commit, variant, known)
