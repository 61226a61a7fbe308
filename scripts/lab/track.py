# SPDX-License-Identifier: GPL-2.0-only
"""Follows the base: tries the series on a newer one, and exports it there."""

import dataclasses
import os
import re
import subprocess

import base
import export
import kgit
import patches
import rebase
import tree
from common import LabError, read_fields, say, step

# The base that was found last, until the series is exported on it.
NEW = "refs/kvm-userfault/new-base"
# The branch that keeps the series as it was on the old base.
BEFORE = "before-track"
# How many lines of a change, or commits, a report shows.
SHOWN = 12


@dataclasses.dataclass
class Found:
    """A base that the series may move to, and what patches/base would say of it."""

    commit: str
    fields: dict

    @property
    def name(self):
        """Returns what to call it."""
        return self.fields["release"]

    @property
    def has_history(self):
        """Says whether it comes with commits that tell what changed."""
        return bool(kgit.git("log", "-1", "--format=%p", self.commit))


def pending_file():
    """Returns the file that says what patches/base is to become."""
    return kgit.TREE / ".git" / "kvm-userfault-new-base"


def remember(commit, fields):
    """Describes a base and keeps it for a run that follows a rebase by hand."""
    text = kgit.git("show", f"{commit}:Makefile")
    parts = dict(re.findall(r"^([A-Z]+) = *(\S*)$", text, re.MULTILINE))
    names = ("VERSION", "PATCHLEVEL", "SUBLEVEL", "EXTRAVERSION")
    version, patch, sub, extra = (parts.get(name, "") for name in names)
    fields = {key: value for key, value in fields.items() if value}
    fields["release"] = f"{version}.{patch}" + (f".{sub}" if sub != "0" else "") + extra
    fields["tree"] = kgit.git("rev-parse", f"{commit}^{{tree}}")
    base.pin(fields, pending_file())
    kgit.git("update-ref", NEW, commit)
    return Found(commit, fields)


def rebased_by_hand():
    """Returns the base found last if the user has put the series on it, or nothing."""
    if not pending_file().exists() or not kgit.is_ancestor(NEW, kgit.BRANCH):
        return None
    fields = read_fields(pending_file())
    if fields["tree"] == base.pinned()["tree"]:
        return None
    tree.keep_own_work(but=tree.UNEXPORTED)
    return Found(kgit.git("rev-parse", NEW), fields)


def on_another_base():
    """Says whether the series has left the base that patches/base names."""
    return bool(rebased_by_hand()) or not kgit.is_ancestor("base", kgit.BRANCH)


def listed(remote, *refs):
    """Returns which refs a remote has, or nothing where it cannot be reached."""
    command = ["git", "ls-remote", remote, *refs]
    env = kgit.environment() | {"GIT_TERMINAL_PROMPT": "0"}
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=60, env=env
        )
    except subprocess.TimeoutExpired:
        return None
    return re.findall(r"\S+$", result.stdout, re.MULTILINE) if result.returncode == 0 else None


def fetch(remote, branch, tag):
    """Fetches a branch, with its history since a tag if the remote has that, and returns it."""

    def git_fetch(*options):
        """Fetches the branch as far as the options say."""
        words = ["git", "-C", kgit.TREE, "fetch", "--quiet", "--no-tags", "--force", *options]
        words += ["--update-shallow", remote, f"refs/heads/{branch}:{NEW}"]
        step(f"fetching {branch} of {remote}", words, "fetch", env=kgit.environment())

    try:
        git_fetch(*([f"--shallow-exclude={tag}"] if tag else []))
        if tag:
            # The first commits after the tag are told apart from it only with their parents.
            git_fetch("--deepen=1")
    except LabError:
        if not tag:
            raise
        say(f"{branch} has nothing since {tag}, taking all of it")
        git_fetch()
    return kgit.git("rev-parse", NEW)


def from_remote(remote, branch):
    """Returns the branch of a remote as a base, or nothing where there is no network."""
    pin = base.pinned()
    where, branch = (remote or pin["remote"]).removeprefix("file://"), branch or pin["branch"]
    is_local = os.path.isdir(where)
    where = os.path.abspath(where) if is_local else where
    tag = "v" + re.sub(r"^(\d+\.\d+)\.\d+$", r"\1", pin["release"])
    refs = listed(where, f"refs/heads/{branch}", f"refs/tags/{tag}")
    if refs is None and remote:
        raise LabError(f"git cannot read {where}: is it a git repository, and the network there?")
    if refs is None:
        return None
    if f"refs/heads/{branch}" not in refs:
        raise LabError(f"{where} has no branch {branch}; name another with --branch")
    commit = fetch(where, branch, tag if f"refs/tags/{tag}" in refs else None)
    if not rebase.exists(commit, "virt/kvm/kvm_main.c"):
        raise LabError(f"branch {branch} of {where} is not a kernel source tree")
    if is_local:
        where, branch = pin["remote"], pin["branch"]
    return remember(commit, {"commit": commit, "remote": where, "branch": branch})


def from_debian():
    """Returns Debian's newest kernel source as a base if it is newer, or nothing."""
    pin = base.pinned()
    name, version, options = base.newest()
    if base.release_key(version) <= base.release_key(pin["release"]):
        return None
    package = base.SOURCES / f"{name}_{version}.deb"
    base.download(name, version, package, *options)
    source = {"package": name, "version": version, "sha256": base.sha256(package)}
    commit = tree.commit_source(package, name, version)
    return remember(commit, source | {key: pin[key] for key in ("remote", "branch")})


def shown(lines):
    """Returns the first of some lines, and how many there are more."""
    more = [f"... {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return [*lines[:SHOWN], *more]


def describe(collision, found):
    """Returns lines that say which hunk needs a hand, and why."""
    lines = [f"{collision.path} {collision.hunk}".rstrip()]
    if collision.why:
        return [*lines, f"  {collision.why}"]
    lines += ["  the patch:", *(f"    {line}" for line in shown(collision.ours))]
    lines.append(f"  {found.name}, against {base.pinned()['release']}:")
    lines += [f"    {line}" for line in shown(collision.theirs)]
    lines.append("  commits that did that:")
    commits = collision.commits if found.has_history else ["not known, this source has no history"]
    return [*lines, *(f"    {line}" for line in shown(commits))]


def report(results, found):
    """Shows what becomes of each patch, and returns the collisions with the patch's number."""
    collisions = []
    for number, result in enumerate(results, 1):
        print(f"{result.state:9} {number:2} {result.subject}")
        for collision in result.collisions:
            collisions.append((number, collision))
            print("\n".join(f"             {line}" for line in describe(collision, found)))
    return collisions


def move(found, commit):
    """Puts the series and its base where they were tried, and exports them."""
    kgit.git("checkout", "--quiet", "--force", "-B", kgit.BRANCH, commit)
    tree.set_base(found.commit)
    old = base.pinned()["release"]
    base.pin(found.fields)
    count, _ = export.write()
    pending_file().unlink()
    print(
        f"exported {count} patches on {found.name}; branch {BEFORE} of {kgit.TREE} is the series"
        f" as it was on {old}"
    )
    if "commit" in found.fields:
        say(f"others can make this base as long as {found.fields['remote']} has {found.commit}")
    if old != found.name and old in patches.cover_file().read_text():
        say(f"the cover letter speaks of {old}: see what of it is still so")


def track(remote=None, branch=None, dry_run=False):
    """Tries the series on its base of today; returns (exit code, whether it was exported)."""
    found = rebased_by_hand()
    if not found:
        tree.apply()
        wrong = export.check()
        if wrong:
            raise LabError("\n".join([*wrong, "nothing was tried: make these agree first"]))
        found = from_remote(remote, branch)
    if not found:
        say(f"no network to {base.pinned()['remote']}: looking for a kernel source of Debian")
        found = from_debian()
    if not found:
        print(f"Debian has no kernel source newer than {base.pinned()['release']}")
        return 0, False

    first = found.commit
    if not kgit.is_ancestor(found.commit, kgit.BRANCH):
        first = "base"
        kgit.git("branch", "--force", BEFORE, kgit.BRANCH)
    commits = kgit.git("rev-list", "--reverse", f"{first}..{kgit.BRANCH}").split()
    print(f"base {base.pinned()['release']} -> {found.name} ({found.commit[:12]})", flush=True)
    moved = list(rebase.rebase(commits, rebase.Bases("base", found.commit, found.name)))
    collisions = report([result for _, result in moved], found)
    if collisions:
        number, collision = collisions[0]
        print(
            f"hunks that need a hand on {found.name}: {len(collisions)}\n"
            f"the first conflict: patch {number}, {collision.path} {collision.hunk}\n"
            f"Resolve them with 'git -C {kgit.TREE} rebase --onto {NEW} base {kgit.BRANCH}',"
            " then run this again."
        )
        return 1, False
    if found.fields["tree"] == base.pinned()["tree"]:
        print(f"{len(moved)} patches apply to {found.name}, the base that patches/base names")
        return 0, False
    if dry_run:
        print(f"{len(moved)} patches can be exported on {found.name}")
        return 0, False
    move(found, moved[-1][0])
    return 0, True
