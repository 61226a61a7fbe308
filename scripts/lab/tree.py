# SPDX-License-Identifier: GPL-2.0-only
"""The kernel git tree: the base as its first commit, then one commit a patch."""

import contextlib
import fcntl
import functools
import shutil
import time

import base
import kgit
import patches
from common import CACHE, LabError, lock, say, step, wait_for, write_if_changed

# What the tree holds after work on the series.
UNCOMMITTED = "uncommitted changes"
UNEXPORTED = "commits that are not exported"
# Stands for the commit of a branch that is not there yet.
NOTHING = "nothing"


def have_base():
    """Says whether the tree has the base that patches/base names, or what stands for that."""
    if not kgit.tip("base"):
        return False
    stands_for = kgit.note("base")
    have = [kgit.git("rev-parse", "base^{tree}")]
    have += stands_for.read_text().split() if stands_for.exists() else []
    return base.pinned()["tree"] in have


def commit_source(package, name, version):
    """Commits a kernel source package and returns the commit, the same wherever it is made."""
    scratch, index = kgit.TREE.with_name("linux.new"), kgit.TREE.with_name("linux.index")
    base.unpack(package, scratch)
    say("committing the base")
    index.unlink(missing_ok=True)
    repository = ["--git-dir", kgit.TREE / ".git", "--work-tree", "."]
    kgit.git(*repository, "add", "--all", "--force", tree=scratch, index=index)
    content = kgit.git("write-tree", index=index)
    index.unlink()
    shutil.rmtree(scratch)
    return kgit.git("commit-tree", content, "-m", f"{name} {version}", date=kgit.BASE_DATE)


def make_base(force=False):
    """Makes the base a commit of the tree, anew when patches/base names another."""
    if have_base():
        return
    keep_own_work(force)
    kgit.TREE.mkdir(parents=True, exist_ok=True)
    kgit.git("init", "--quiet", "--initial-branch=base")
    for key, value in zip(("user.name", "user.email"), kgit.ROLE):
        kgit.git("config", key, value)
    # Conflicts that were resolved once are resolved alike the next time.
    kgit.git("config", "rerere.enabled", "true")
    pin = base.pinned()
    commit = pin.get("commit") or commit_source(*base.fetch())
    if not kgit.asks("cat-file", "-e", commit):
        words = ["git", "-C", kgit.TREE, "fetch", "--quiet", "--no-tags", "--depth=1"]
        words += [pin["remote"], commit]
        step(f"fetching {pin['remote']}", words, "fetch", env=kgit.environment())
    have = kgit.git("rev-parse", f"{commit}^{{tree}}")
    if have != pin["tree"]:
        say(f"this base differs from the pinned one: its tree is {have}, not {pin['tree']}")
        kgit.note("base").write_text(pin["tree"])
    set_base(commit)


def set_base(commit):
    """Makes a commit the base, and shows it where there is no series yet."""
    kgit.git("update-ref", "refs/heads/base", commit)
    if not kgit.tip():
        kgit.git("checkout", "--quiet", "--force", "base")


def show(checksum, commit):
    """Makes the branch a commit, brings the tree's files up to it, and remembers what it is of."""
    kgit.git("checkout", "--quiet", "--force", "-B", kgit.BRANCH, commit)
    write_if_changed(kgit.note("applied"), f"{checksum} {commit}\n")
    kgit.note("applying").unlink()


def recover():
    """Completes what a run has begun that was killed while it changed the tree, unless somebody has
    committed since."""
    state = kgit.note("applying")
    if not state.exists():
        return
    words = state.read_text().split()
    if (kgit.tip() or NOTHING) in words[1:]:
        (kgit.TREE / ".git/index.lock").unlink(missing_ok=True)
        show(*words[:2])
    else:
        state.unlink()


def applied():
    """Returns the checksum of the patches that were applied or exported last, and their commit."""
    state = kgit.note("applied")
    return state.read_text().split() if state.exists() else []


def own_work():
    """Returns what the tree holds that the patches do not, in words, or nothing."""
    recover()
    if not kgit.tip():
        return ""
    if kgit.git("status", "--porcelain"):
        return UNCOMMITTED
    if kgit.git("rev-parse", "--abbrev-ref", "HEAD") != kgit.BRANCH:
        return f"another branch than '{kgit.BRANCH}' checked out"
    return "" if applied()[1:] == [kgit.tip()] else UNEXPORTED


def keep_own_work(force=False, but=""):
    """Refuses to go on where the tree holds what the patches do not; returns it if forced."""
    work = own_work()
    if work and work != but and not force:
        raise LabError(
            f"{kgit.TREE} holds {work}. Commit to '{kgit.BRANCH}' there what is to stay and run"
            " 'scripts/series export', or throw it away with 'scripts/series apply --force'."
        )
    return work


def apply(force=False):
    """Makes the branch hold exactly the patches; keeps work of its own unless forced."""
    make_base(force)
    work = keep_own_work(force)
    if not work and applied() == [patches.digest(), kgit.tip()]:
        return
    say(f"applying {len(patches.patch_files())} patches to {kgit.TREE}")
    checksum = patches.digest()
    commit = kgit.am_aside(patches.patch_files(), "base", patches.touched_files())
    # Somebody may have worked meanwhile.
    if keep_own_work(force):
        # Nothing is lost for good: the reflog of the branch still names it.
        kgit.git("clean", "--quiet", "-d", "--force")
    write_if_changed(kgit.note("applying"), f"{checksum} {commit} {kgit.tip() or NOTHING}\n")
    show(checksum, commit)


@functools.cache
def users():
    """Returns the file that runs lock, together, for as long as they use what the tree holds."""
    CACHE.mkdir(parents=True, exist_ok=True)
    return open(CACHE / "linux-users.lock", "w", encoding="ascii")


@contextlib.contextmanager
def alone():
    """Waits until no other run uses the tree, and keeps it from others, who may change it then.
    That comes before the lock of the tree, for which those who use the tree ask for a moment."""
    wait_for(users())
    try:
        with lock("linux"):
            yield
    finally:
        fcntl.flock(users(), fcntl.LOCK_UN)


def is_ready():
    """Says whether the tree holds the patches, or the developer's own work on them."""
    with lock("linux"):
        work = own_work()
        if work:
            say(f"{kgit.TREE} holds {work}: using it as it is")
        return bool(work) or (have_base() and applied() == [patches.digest(), kgit.tip()])


@functools.cache
def ready():
    """Returns the tree to build, which stays as it is until this run ends."""
    wait_for(users(), fcntl.LOCK_SH)
    while not is_ready():
        try:
            fcntl.flock(users(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            with lock("linux"):
                apply()
        except BlockingIOError:
            # Nothing is locked now. Who uses it may have patches that are the same as these.
            time.sleep(1)
        wait_for(users(), fcntl.LOCK_SH)
    return kgit.TREE
