# SPDX-License-Identifier: GPL-2.0-only
"""Builds and runs what is there at the end of each part, which must not need a later one."""

import functools

import config
import kernel
import kgit
import patches
import run
import steps
from common import output, step
from overlay import overlays
from passed import Passed

# What each part can be built and run with: without RUST, and with all that it has.
VARIANTS = ["4k-norust", "4k"]
MACHINE = "nofwb"
NO_TEST = ("Documentation/", "MAINTAINERS")
# What says how a part's end is looked at.
LOOKS = ("ends.py", "kernel.py", "ktap.py", "machine.py", "run.py", "skips", "skips.py")
# The stock test that pages memory in by userfault, in one guest mode.
STOCK = "demand_paging_test -k -m 6 -b 2M"


def look(passed, key, commit, variant, jobs=None):
    """Builds a commit, runs the suite that it has, returns what is wrong, and remembers by a key
    that nothing is."""
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
            wrong = run.boot_program(MACHINE, build, initrd, STOCK)
    if not wrong:
        passed.add(key)
    return wrong


def variants(commit, whole):
    """Returns what a part's end is run with; unless it is looked at on the whole, without RUST
    until there is a helper, and with it from there on."""
    if whole:
        return VARIANTS
    helper = kgit.git("ls-tree", commit, "--", "arch/arm64/kvm/userfault/")
    return VARIANTS[1:] if helper else VARIANTS[:1]


def check_each(jobs=None, tested=(), whole=False):
    """Yields (part, variant, function that returns remarks) for each part's end that has not
    passed yet and is not the same as a commit that was tested; on the whole, with all variants."""
    passed, commits = Passed(), steps.commits()

    def key_of(variant, commit):
        """Returns what the look at a part's end depends on."""
        return steps.key_of(passed, variant, commit, NO_TEST, LOOKS)

    known = {key_of(variant, one) for one in tested for variant in VARIANTS}
    known |= passed.keys
    for part in patches.parts([subject for _, subject in commits]):
        commit = commits[part.last - 1][0]
        for variant in variants(commit, whole):
            key = key_of(variant, commit)
            if key not in known:
                known.add(key)
                look_once = functools.partial(look, passed, key, commit, variant, jobs)
                yield part.name, variant, look_once
