# SPDX-License-Identifier: GPL-2.0-only
"""Moves commits to another base by git's three-way merge, without a work tree.

A hunk that collides with what upstream did is named and resolved in the patch's
favour, so that the patches after it meet upstream's changes and not a hole.
"""

import dataclasses
import os
import re
import subprocess
import tempfile

import kgit
import patches
from common import LabError

# As git merges, and as the patches are written.
DIFF = ["diff", "--no-color", "--no-ext-diff", "--no-renames", "--diff-algorithm=histogram"]
HUNK = re.compile(r"^@@ -(\d+)(?:,(\d+))? \+\d+(?:,\d+)? @@")


@dataclasses.dataclass
class Bases:
    """The base that the commits are on, the one they move to, and what to call that."""

    old: str
    new: str
    name: str


@dataclasses.dataclass
class Collision:
    """A hunk of a patch that needs a hand, and why."""

    path: str
    hunk: str  # its first line in the patch, empty for a file as a whole
    why: str  # in words, empty where the lines say it
    ours: list  # what the patch does there, as lines of a diff
    theirs: list  # what upstream did there
    commits: list  # the upstream commits that did it


@dataclasses.dataclass
class Result:
    """What became of a patch."""

    subject: str
    state: str  # "ok", "3-way", the folder of the variant that was taken, or "CONFLICT"
    collisions: list


@dataclasses.dataclass
class Hunk:
    """A hunk of a diff, with the lines [first, last) of the old file that it replaces."""

    header: str
    first: int
    last: int
    lines: list

    def touches(self, other):
        """Says whether two changes of the same file overlap or have no line between them."""
        return self.first <= other.last and other.first <= self.last


def run(*words, **context):
    """Runs git in the series' tree and returns (exit code, output)."""
    result = subprocess.run(
        ["git", "-C", str(kgit.TREE), *words],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        env=kgit.environment(**context),
    )
    if result.returncode > 1:
        raise LabError(f"git {words[0]} failed: {result.stderr.strip()}")
    return result.returncode, result.stdout


def hunks(old, new, path, context):
    """Returns the hunks between two versions of a file."""
    options = [f"--unified={context}", "--no-indent-heuristic"]
    found = []
    for line in run(*DIFF, *options, old, new, "--", path)[1].splitlines():
        match = HUNK.match(line)
        if match:
            start, count = int(match[1]), int(match[2] or 1)
            # An insertion names the line before it.
            first = start - 1 if count else start
            found.append(Hunk(line, first, first + count, []))
        elif found:
            found[-1].lines.append(line)
    return found


def exists(commit, path):
    """Says whether a commit has a file."""
    return bool(run("ls-tree", commit, "--", path)[1])


def blob(commit, path):
    """Returns the id of a file's content, or nothing."""
    return run("rev-parse", "--verify", "--quiet", f"{commit}:{path}")[1].strip()


def history(bases, path, changes):
    """Returns the upstream commits that made some changes to a file, newest first, or nothing.

    Content tells where the old base's version of the file was left, as the two
    bases need not have a common history.
    """
    want = blob(bases.old, path)
    log = run(
        "log", "--no-merges", "--raw", "--no-abbrev", "--no-renames", "--format=commit %H %p%x00%s",
        "--max-count=500", bases.new, "--", path,
    )[1]  # fmt: skip
    wanted = {line for line in changes if line[1:].strip()}
    all_of_them, matching = [], []
    for entry in re.split(r"^commit ", log, flags=re.MULTILINE)[1:]:
        head, _, raw = entry.partition("\n")
        ids, _, subject = head.partition("\0")
        one, *parents = ids.split()
        change = re.search(r"^:\S+ \S+ (\S+) (\S+) ", raw, re.MULTILINE)
        if not parents or not change or change[2] == want:
            break
        all_of_them.append(f"{one[:12]} {subject}")
        diff = run(*DIFF, "--unified=0", f"{one}^", one, "--", path)[1].splitlines()
        if wanted.intersection(diff):
            matching.append(all_of_them[-1])
        if change[1] == want:
            break
    return matching or all_of_them


def collisions(commit, onto, path, bases):
    """Returns the hunks of a commit that collide with what another base has in a file."""
    if not exists(f"{commit}^", path):
        return [Collision(path, "", f"{bases.name} has this file already", [], [], [])]
    if not exists(onto, path):
        return [Collision(path, "", f"{bases.name} does not have this file", [], [], [])]
    upstream = hunks(f"{commit}^", onto, path, 0)
    lines = hunks(f"{commit}^", commit, path, 0)
    found = []
    for hunk in hunks(f"{commit}^", commit, path, 3):
        inner = [one for one in lines if hunk.first <= one.first and one.last <= hunk.last]
        theirs = [one for one in upstream if any(one.touches(line) for line in inner)]
        ours = [one for one in inner if any(one.touches(other) for other in theirs)]
        if theirs:
            ours, theirs = ([line for one in side for line in one.lines] for side in (ours, theirs))
            commits = history(bases, path, theirs)
            found.append(Collision(path, hunk.header, "", ours, theirs, commits))
    return found or [Collision(path, "", "git finds a conflict in this file", [], [], [])]


def merge(commit, onto, *options):
    """Merges a commit's changes into another commit and returns (tree, files in conflict)."""
    words = ["--write-tree", "--name-only", "--no-messages", f"--merge-base={commit}^", *options]
    first, *files = run("merge-tree", *words, onto, commit)[1].splitlines()
    return first, files


def applied(patch, onto, *options):
    """Returns the tree that a patch makes of a commit, or nothing where it does not apply."""
    with tempfile.TemporaryDirectory() as scratch:
        index = os.path.join(scratch, "index")
        kgit.git("read-tree", onto, index=index)
        if run("apply", "--cached", *options, patch, index=index)[0]:
            return None
        return kgit.git("write-tree", index=index)


def applies_alone(commit, onto):
    """Says whether a commit's patch applies without a three-way merge."""
    with tempfile.NamedTemporaryFile() as patch:
        kgit.git(*DIFF, "--binary", f"--output={patch.name}", f"{commit}^", commit)
        return bool(applied(patch.name, onto))


def variant(subject, onto):
    """Returns the first variant of a patch that applies, as (folder, tree), or nothing."""
    for path in patches.variants():
        if kgit.subject(path.read_text()) == subject:
            content = applied(path, onto, "--3way")
            if content:
                return path.parent, content
    return None


def copy(commit, content, parent):
    """Commits a tree with a commit's message, author and date."""
    name, email, date = kgit.git("log", "-1", "--format=%an%n%ae%n%aI", commit).split("\n")
    message = kgit.git("log", "-1", "--format=%B", commit)
    words = ["commit-tree", content, "-p", parent, "-m", message]
    return kgit.git(*words, date=date, author=(name, email))


def rebase(commits, bases):
    """Moves commits to another base and yields (the new commit, what became of the old one)."""
    onto = bases.new
    for commit in commits:
        subject = kgit.git("log", "-1", "--format=%s", commit)
        content, files = merge(commit, onto)
        found, other = [], files and variant(subject, onto)
        if other:
            state, content = other[0].name, other[1]
        elif files:
            state = "CONFLICT"
            found = [one for path in files for one in collisions(commit, onto, path, bases)]
            content, _ = merge(commit, onto, "-X", "theirs")
        else:
            state = "ok" if applies_alone(commit, onto) else "3-way"
        onto = copy(commit, content, onto)
        yield onto, Result(subject, state, found)
