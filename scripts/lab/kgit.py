# SPDX-License-Identifier: GPL-2.0-only
"""git on the kernel tree of the series, with the same result for every user."""

import os
import re
import shutil
import tempfile

from common import CACHE, LAB, LabError, output, step, succeeds

TREE = CACHE / "linux"
BRANCH = "series"
# A commit of the base has to have the same id wherever it is made.
BASE_DATE = "2026-01-01T00:00:00Z"
ROLE = ("KVM userfault series", "series@kvm-userfault.invalid")


def environment(date=None, identity=ROLE, author=None, index=None):
    """Returns variables under which git does the same for every user."""
    author = author or identity
    env = {
        **os.environ,
        "GIT_CONFIG_GLOBAL": str(LAB / "gitconfig"),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_COMMITTER_NAME": identity[0],
        "GIT_COMMITTER_EMAIL": identity[1],
        "GIT_AUTHOR_NAME": author[0],
        "GIT_AUTHOR_EMAIL": author[1],
    }
    if index:
        env["GIT_INDEX_FILE"] = str(index)
    if date:
        env["GIT_COMMITTER_DATE"] = env["GIT_AUTHOR_DATE"] = date
    return env


def git(*words, tree=None, **context):
    """Runs git in a tree, the series' own by default, and returns what it printed."""
    return output(["git", "-C", tree or TREE, *words], env=environment(**context)).rstrip("\n")


def asks(*words, tree=None):
    """Says whether a git command succeeds in a tree."""
    return succeeds(["git", "-C", tree or TREE, *words], env=environment())


def is_ancestor(one, other):
    """Says whether a commit has another as its descendant."""
    return asks("merge-base", "--is-ancestor", one, other)


def tip(branch=BRANCH):
    """Returns the commit of a branch, or nothing."""
    ref = f"refs/heads/{branch}"
    return git("rev-parse", ref) if asks("rev-parse", "--verify", ref) else ""


def note(name):
    """Returns the file in the tree's git directory by which the lab remembers something."""
    return TREE / ".git" / f"kvm-userfault-{name}"


def subject(mail):
    """Returns the subject of a patch or cover letter, without what is in brackets, or nothing."""
    head = mail.partition("\n\n")[0]
    match = re.search(r"^Subject: (?:\[.*?\] )?(.*(?:\n .*)*)", head, re.MULTILINE)
    return re.sub(r"\n ", " ", match[1]) if match else ""


def is_applying(tree):
    """Says whether a 'git am' has begun in a tree and has not ended."""
    return (tree / git("rev-parse", "--git-path", "rebase-apply", tree=tree)).exists()


def am(tree, files, *options):
    """Applies patches with git am and commits that have the same ids everywhere."""
    words = ["am", "--quiet", "--committer-date-is-author-date", *options, *files]
    try:
        git(*words, tree=tree)
    except LabError as error:
        if not is_applying(tree):
            # It has not begun.
            raise
        failed = subject(git("am", "--show-current-patch=raw", tree=tree))
        git("am", "--abort", tree=tree)
        said = str(error).partition("' failed: ")[2]
        raise LabError(
            f"the patch '{failed}' does not apply:\n{said}\nThe tree is as it was before."
        ) from None


def am_aside(files, onto, touched):
    """Returns the commit that patches make of another. The tree's own files stay as they are, so
    that make sees no change where there is none."""
    scratch = TREE.with_name("linux.am")
    shutil.rmtree(scratch, ignore_errors=True)
    # Twice: what a run has left that was killed while it added this is locked.
    forced = ["--force", "--force"]
    git("worktree", "add", "--quiet", *forced, "--no-checkout", "--detach", scratch, onto)
    git("read-tree", "HEAD", tree=scratch)
    names = git("ls-tree", "--name-only", "HEAD", "--", *touched, tree=scratch).splitlines()
    git("checkout-index", "--", *names, tree=scratch)
    am(scratch, files)
    commit = git("rev-parse", "HEAD", tree=scratch)
    git("worktree", "remove", "--force", scratch)
    return commit


def apply(files, onto, *options):
    """Returns the git tree that patches make of a commit, without a work tree."""
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        index = f"{scratch}/index"
        git("read-tree", onto, index=index)
        for path in files:
            git("apply", "--cached", *options, path, index=index)
        return git("write-tree", index=index)


def abort_am(tree):
    """Ends what is left of a 'git am' that was killed."""
    (tree / ".git" / "index.lock").unlink(missing_ok=True)
    if is_applying(tree):
        git("am", "--abort", tree=tree)


def clone(what, source, target):
    """Makes a clone without a work tree in a step, as a whole or not at all."""
    new = target.with_name(f"{target.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    words = ["git", "clone", "--quiet", "--shared", "--no-checkout", source, new]
    step(what, words, "clone", env=environment())
    new.rename(target)


def borrow_objects(repository):
    """Lets a git repository of the lab use the objects of the series' tree."""
    with open(repository / ".git/objects/info/alternates", "a", encoding="utf-8") as alternates:
        alternates.write(f"{TREE / '.git/objects'}\n")
