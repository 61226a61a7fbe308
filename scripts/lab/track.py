# SPDX-License-Identifier: GPL-2.0-only
"""Follows the base: tries the series on a newer one, and exports it there.

git does the work: merge-tree moves a patch by a three-way merge without a work tree,
range-diff shows what became of it, rebase with rerere is for what needs a hand.
"""

import dataclasses
import os
import re
import subprocess
import tempfile

import base
import export
import kgit
import patches
import tree
from common import LabError, output, read_fields, say, step

# The base that was found last, until the series is exported on it.
NEW = "refs/kvm-userfault/new-base"
# The branch that keeps the series as it was on the old base.
BEFORE = "before-track"


@dataclasses.dataclass
class Found:
    """A base that the series may move to, and what patches/base would say of it."""

    commit: str
    fields: dict

    @property
    def name(self):
        """Returns what to call it."""
        return self.fields["release"]


@dataclasses.dataclass
class Moved:
    """What became of a patch."""

    commit: str
    subject: str
    state: str  # "ok", the folder of the variant that was taken, or "CONFLICT"
    conflicts: list


def pending_file():
    """Returns the file that says what patches/base is to become."""
    return kgit.TREE / ".git" / "kvm-userfault-new-base"


def remember(commit, fields):
    """Describes a base and keeps it for a run that follows a rebase by hand."""
    if not kgit.git("ls-tree", commit, "--", "virt/kvm/kvm_main.c"):
        raise LabError(f"{commit} is not a kernel source tree")
    text = kgit.git("show", f"{commit}:Makefile")
    parts = dict(re.findall(r"^([A-Z]+) = *(\S*)$", text, re.MULTILINE))
    names = ("VERSION", "PATCHLEVEL", "SUBLEVEL", "EXTRAVERSION")
    version, patch, sub, extra = (parts.get(name, "") for name in names)
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


def from_remote(remote, branch):
    """Returns the branch of a remote, or of a repository on this machine, as a base."""
    pin = base.pinned()
    where, branch = remote or pin["remote"], branch or pin["branch"]
    is_local = os.path.isdir(where)
    # The objects of a clone that is here cost nothing; of others its newest commit is enough.
    words = ["fetch", "--quiet", "--no-tags", *([] if is_local else ["--depth=1"])]
    words += ["--update-shallow", os.path.abspath(where) if is_local else where, branch]
    env = kgit.environment() | {"GIT_TERMINAL_PROMPT": "0"}
    try:
        step(f"fetching {branch} of {where}", ["git", "-C", kgit.TREE, *words], "fetch", env=env)
    except LabError as error:
        raise LabError(
            f"git cannot fetch {branch} of {where}: {str(error).splitlines()[-1]}\nName a repository"
            " that can be read with --remote, or a source package of Debian with --debian."
        ) from None
    commit = kgit.git("rev-parse", "FETCH_HEAD")
    # Where a user's own clone is is nobody else's business.
    named = (pin["remote"], pin["branch"]) if is_local else (where, branch)
    return remember(commit, {"commit": commit, "remote": named[0], "branch": named[1]})


def from_debian(release):
    """Returns Debian's source package of a release as a base."""
    pin = base.pinned()
    name, version, options = base.find(release)
    package = base.SOURCES / f"{name}_{version}.deb"
    base.download(name, version, package, *options)
    source = {"package": name, "version": version, "sha256": base.sha256(package)}
    commit = tree.commit_source(package, name, version)
    return remember(commit, source | {key: pin[key] for key in ("remote", "branch")})


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
        if kgit.subject(path.read_text()) != subject:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            index = f"{scratch}/index"
            kgit.git("read-tree", onto, index=index)
            try:
                kgit.git("apply", "--cached", "--3way", path, index=index)
            except LabError:
                continue
            return path.parent.name, kgit.git("write-tree", index=index)
    return None


def rebase(commits, onto):
    """Moves commits to another base and yields what became of each. What conflicts is resolved in
    the patch's favour, so that the patches after it meet what it does."""
    for commit in commits:
        about = kgit.git("log", "-1", "--format=%an%n%ae%n%aI%n%s", commit)
        name, email, date, subject = about.split("\n")
        content, conflicts = merge(commit, onto)
        state, other = "CONFLICT" if conflicts else "ok", conflicts and variant(subject, onto)
        if other:
            (state, content), conflicts = other, []
        elif conflicts:
            content, _ = merge(commit, onto, "-X", "theirs")
        message = kgit.git("log", "-1", "--format=%B", commit)
        words = ["commit-tree", content, "-p", onto, "-m", message]
        onto = kgit.git(*words, date=date, author=(name, email))
        yield Moved(onto, subject, state, conflicts)


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
    if old != found.name and old in patches.cover_file().read_text():
        say(f"the cover letter speaks of {old}: see what of it is still so")


def track(remote=None, branch=None, debian=None, dry_run=False):
    """Tries the series on its base of today; returns (exit code, whether it was exported)."""
    found = rebased_by_hand()
    if not found:
        tree.apply()
        wrong = export.check()
        if wrong:
            raise LabError("\n".join([*wrong, "nothing was tried: make these agree first"]))
        found = from_debian(debian) if debian else from_remote(remote, branch)

    first = found.commit
    if not kgit.is_ancestor(found.commit, kgit.BRANCH):
        first = "base"
        kgit.git("branch", "--force", BEFORE, kgit.BRANCH)
    commits = kgit.git("rev-list", "--reverse", f"{first}..{kgit.BRANCH}").split()
    print(f"base {base.pinned()['release']} -> {found.name} ({found.commit[:12]})", flush=True)
    moved = list(rebase(commits, found.commit))
    for number, patch in enumerate(moved, 1):
        lines = [f"{patch.state:9} {number:2} {patch.subject}", *patch.conflicts]
        print("\n             ".join(lines))
    if any(patch.conflicts for patch in moved):
        print(
            f"Resolve these with 'git -C {kgit.TREE} rebase --onto {NEW} base {kgit.BRANCH}',"
            " then run this again."
        )
        return 1, False
    ranges = [f"{first}..{kgit.BRANCH}", f"{found.commit}..{moved[-1].commit}"]
    print(output(["git", "-C", kgit.TREE, "range-diff", *ranges], env=kgit.environment()))
    if found.fields["tree"] == base.pinned()["tree"]:
        print(f"{len(moved)} patches apply to {found.name}, the base that patches/base names")
        return 0, False
    if dry_run:
        print(f"{len(moved)} patches can be exported on {found.name}")
        return 0, False
    move(found, moved[-1].commit)
    return 0, True
