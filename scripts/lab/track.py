# SPDX-License-Identifier: GPL-2.0-only
"""Follows the base: tries the series on a newer one, and exports it there.

git does the work: merge-tree moves a patch by a three-way merge without a work tree,
range-diff shows what became of it, rebase with rerere is for what needs a hand.
"""

import os
import re
import subprocess

import base
import export
import kgit
import patches
import tree
from common import LabError, output, read_fields, say, step

# The base that was found last, until the series is exported on it; kgit.note("new-base") is what
# patches/base would say of it.
NEW = "refs/kvm-userfault/new-base"
# The branch that keeps the series as it was on the old base.
BEFORE = "before-track"


def remember(commit, fields):
    """Describes a base and keeps it, also for a run that follows a rebase by hand."""
    if not kgit.git("ls-tree", commit, "--", "virt/kvm/kvm_main.c"):
        raise LabError(f"{commit} is not a kernel source tree")
    text = kgit.git("show", f"{commit}:Makefile")
    value = dict(re.findall(r"^([A-Z]+) = *(\S*)$", text, re.MULTILINE))
    release = "{VERSION}.{PATCHLEVEL}.{SUBLEVEL}".format(**value).removesuffix(".0")
    fields["release"] = release + value.get("EXTRAVERSION", "")
    fields["tree"] = kgit.git("rev-parse", f"{commit}^{{tree}}")
    base.pin(fields, kgit.note("new-base"))
    kgit.git("update-ref", NEW, commit)


def rebased_by_hand():
    """Says whether the user has put the series on the base that was found last."""
    file = kgit.note("new-base")
    if not file.exists() or not kgit.is_ancestor(NEW, kgit.BRANCH):
        return False
    return read_fields(file)["tree"] != base.pinned()["tree"]


def on_another_base():
    """Says whether the series has left the base that patches/base names."""
    return rebased_by_hand() or not kgit.is_ancestor("base", kgit.BRANCH)


def from_remote(remote, branch):
    """Takes the branch of a remote, or of a repository on this machine, as a base."""
    pin = base.pinned()
    where, branch = remote or pin["remote"], branch or pin["branch"]
    words = ["git", "-C", kgit.TREE, "fetch", "--quiet", "--no-tags", "--update-shallow"]
    if os.path.isdir(where):
        # Where a user's own clone is is nobody else's business.
        where, named = os.path.abspath(where), (pin["remote"], pin["branch"])
    else:
        # Of a repository that is not here its newest commit is enough.
        words, named = [*words, "--depth=1"], (where, branch)
    env = kgit.environment() | {"GIT_TERMINAL_PROMPT": "0"}
    step(f"fetching {branch} of {where}", [*words, where, branch], "fetch", env=env)
    commit = kgit.git("rev-parse", "FETCH_HEAD")
    remember(commit, {"commit": commit, "remote": named[0], "branch": named[1]})


def from_debian(release):
    """Takes Debian's source package of a release as a base."""
    name, version, options = base.find(release)
    package = base.SOURCES / f"{name}_{version}.deb"
    base.download(name, version, package, *options)
    source = {"package": name, "version": version, "sha256": base.sha256(package)}
    source |= {key: base.pinned()[key] for key in ("remote", "branch")}
    remember(tree.commit_source(package, name, version), source)


def merge(commit, onto, *options):
    """Merges a commit's changes into another commit and returns (tree, conflicts in words)."""
    words = ["merge-tree", "--write-tree", "--name-only", f"--merge-base={commit}^", *options]
    command = ["git", "-C", str(kgit.TREE), *words, onto, commit]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=kgit.environment()
    )
    if done.returncode > 1:
        raise LabError(f"git merge-tree failed: {done.stderr.strip()}")
    return done.stdout.split("\n", 1)[0], re.findall(r"^CONFLICT.*", done.stdout, re.MULTILINE)


def variant(subject, onto):
    """Returns the first variant of a patch that applies, as (folder, tree), or nothing."""
    for path in patches.variants():
        if kgit.subject(path.read_text()) == subject:
            try:
                return path.parent.name, kgit.apply([path], onto, "--3way")
            except LabError:
                continue
    return None


def rebase(commits, onto):
    """Moves commits to another base and yields what became of each, as (commit, "ok", the folder of
    a variant or "CONFLICT", subject, conflicts). What conflicts is resolved in the patch's favour,
    so that the patches after it meet what it does."""
    for commit in commits:
        about = kgit.git("log", "-1", "--format=%an%n%ae%n%aI%n%s%n%B", commit)
        name, email, date, subject, message = about.split("\n", 4)
        content, conflicts = merge(commit, onto)
        state, other = "CONFLICT" if conflicts else "ok", conflicts and variant(subject, onto)
        if other:
            (state, content), conflicts = other, []
        elif conflicts:
            content, _ = merge(commit, onto, "-X", "theirs")
        words = ["commit-tree", content, "-p", onto, "-m", message]
        onto = kgit.git(*words, date=date, author=(name, email))
        yield onto, state, subject, conflicts


def move(new, fields, commit):
    """Puts the series and its base where they were tried, and exports them."""
    kgit.git("checkout", "--quiet", "--force", "-B", kgit.BRANCH, commit)
    tree.set_base(new)
    old = base.pinned()["release"]
    base.pin(fields)
    count, _ = export.write()
    kgit.note("new-base").unlink()
    print(
        f"exported {count} patches on {fields['release']}; branch {BEFORE} of {kgit.TREE} is the"
        f" series as it was on {old}"
    )
    if old != fields["release"] and old in patches.cover_file().read_text():
        say(f"the cover letter speaks of {old}: see what of it is still so")


def track(remote=None, branch=None, debian=None, dry_run=False):
    """Tries the series on its base of today; returns (exit code, whether it was exported)."""
    if rebased_by_hand():
        tree.keep_own_work(but=tree.UNEXPORTED)
    else:
        tree.apply()
        wrong = export.check()
        if wrong:
            raise LabError("\n".join([*wrong, "nothing was tried: make these agree first"]))
        from_debian(debian) if debian else from_remote(remote, branch)

    new, fields = kgit.git("rev-parse", NEW), read_fields(kgit.note("new-base"))
    first, name = new, fields["release"]
    if not kgit.is_ancestor(new, kgit.BRANCH):
        first = "base"
        kgit.git("branch", "--force", BEFORE, kgit.BRANCH)
    commits = kgit.git("rev-list", "--reverse", f"{first}..{kgit.BRANCH}").split()
    print(f"base {base.pinned()['release']} -> {name} ({new[:12]})", flush=True)
    moved = list(rebase(commits, new))
    for number, (_, state, subject, conflicts) in enumerate(moved, 1):
        print("\n             ".join([f"{state:9} {number:2} {subject}", *conflicts]))
    if any(conflicts for *_, conflicts in moved):
        print(
            f"Resolve these with 'git -C {kgit.TREE} rebase --onto {NEW} base {kgit.BRANCH}',"
            " then run this again."
        )
        return 1, False
    tip = moved[-1][0]
    ranges = [f"{first}..{kgit.BRANCH}", f"{new}..{tip}"]
    print(output(["git", "-C", kgit.TREE, "range-diff", *ranges], env=kgit.environment()))
    if fields["tree"] == base.pinned()["tree"]:
        print(f"{len(moved)} patches apply to {name}, the base that patches/base names")
        return 0, False
    if dry_run:
        print(f"{len(moved)} patches can be exported on {name}")
        return 0, False
    move(new, fields, tip)
    return 0, True
