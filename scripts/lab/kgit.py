# SPDX-License-Identifier: GPL-2.0-only
"""git on the kernel tree of the series, with the same result for every user."""

import os
import re
import subprocess

from common import CACHE, LAB, LabError, output, succeeds

TREE = CACHE / "linux"
BRANCH = "series"
# A commit of the base has to have the same id wherever it is made.
BASE_DATE = "2026-01-01T00:00:00Z"
ROLE = ("KVM userfault series", "series@kvm-userfault.invalid")


def environment(date=None, identity=ROLE, author=None, index=None, config=None):
    """Returns variables under which git does the same for every user."""
    author, config = author or identity, config or {}
    env = {
        **os.environ,
        "GIT_CONFIG_GLOBAL": str(LAB / "gitconfig"),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_COUNT": str(len(config)),
        "GIT_COMMITTER_NAME": identity[0],
        "GIT_COMMITTER_EMAIL": identity[1],
        "GIT_AUTHOR_NAME": author[0],
        "GIT_AUTHOR_EMAIL": author[1],
    }
    for number, (key, value) in enumerate(config.items()):
        env[f"GIT_CONFIG_KEY_{number}"], env[f"GIT_CONFIG_VALUE_{number}"] = key, value
    if index:
        env["GIT_INDEX_FILE"] = str(index)
    if date:
        env["GIT_COMMITTER_DATE"] = env["GIT_AUTHOR_DATE"] = date
    return env


def git(*words, tree=None, **context):
    """Runs git in a tree, the series' own by default, and returns what it printed."""
    return output(["git", "-C", tree or TREE, *words], env=environment(**context)).rstrip("\n")


def is_ancestor(one, other):
    """Says whether a commit has another as its descendant."""
    words = ["merge-base", "--is-ancestor", one, other]
    return succeeds(["git", "-C", TREE, *words], env=environment())


def tip(branch=BRANCH):
    """Returns the commit of a branch, or nothing."""
    result = subprocess.run(
        ["git", "-C", str(TREE), "rev-parse", "--verify", "--quiet", f"refs/heads/{branch}"],
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
    )
    return result.stdout.strip()


def subject(mail):
    """Returns the subject of a patch or cover letter, without what is in brackets, or nothing."""
    head = mail.partition("\n\n")[0]
    match = re.search(r"^Subject: (?:\[.*?\] )?(.*(?:\n .*)*)", head, re.MULTILINE)
    return re.sub(r"\n ", " ", match[1]) if match else ""


def am(tree, files, *options, identity=ROLE):
    """Applies patches with git am and commits that have the same ids everywhere."""
    command = ["git", "-C", tree, "am", "--quiet", "--committer-date-is-author-date", *options]
    result = subprocess.run(
        [str(word) for word in [*command, *files]],
        capture_output=True,
        text=True,
        check=False,
        env=environment(identity=identity),
    )
    if result.returncode:
        lines = (result.stdout + result.stderr).splitlines()
        said = [line for line in lines if not line.startswith("hint:")][-8:]
        failed = git("am", "--show-current-patch=raw", tree=tree)
        git("am", "--abort", tree=tree)
        raise LabError(
            "\n".join([f"the patch '{subject(failed) or '?'}' does not apply to {tree}:", *said])
            + "\nThe tree is as it was before."
        )


def abort_am(tree):
    """Ends what is left of a 'git am' that was killed."""
    (tree / ".git" / "index.lock").unlink(missing_ok=True)
    if (tree / ".git" / "rebase-apply").exists():
        git("am", "--abort", tree=tree)


def borrow_objects(repository):
    """Lets a git repository of the lab use the objects of the series' tree."""
    with open(repository / ".git/objects/info/alternates", "a", encoding="utf-8") as alternates:
        alternates.write(f"{TREE / '.git/objects'}\n")
