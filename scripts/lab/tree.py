# SPDX-License-Identifier: GPL-2.0-only
"""The kernel git tree: the base as its first commit, then one commit a patch."""

import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import tempfile

import base
from common import CACHE, LOGS, PATCHES, REPO, LabError, lock, output, say, step, succeeds, tail

TREE = CACHE / "linux"
BRANCH = "series"
# A commit of the base has to have the same id wherever it is made.
BASE_DATE = "2026-01-01T00:00:00Z"
ROLE = ("KVM userfault series", "series@kvm-userfault.invalid")

# Where the files that the series adds are shown in the repo.
MIRRORS = {
    "arch/arm64/kvm/": "arch-arm64-kvm/",
    "tools/testing/selftests/": "tools-testing-selftests/",
    "Documentation/": "Documentation/",
}
FORMAT = [
    "--no-signature",
    "--zero-commit",
    "--abbrev=12",
    "--diff-algorithm=histogram",
    "--no-renames",
    "--rfc",
    "--cover-letter",
    "--cover-from-description=subject",
    "--quiet",
]


def environment(date=None):
    """Returns variables under which git does the same for every user."""
    env = {
        **os.environ,
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_COUNT": "2",
        "GIT_CONFIG_KEY_0": "safe.directory",
        "GIT_CONFIG_VALUE_0": "*",
        "GIT_CONFIG_KEY_1": "gc.auto",
        "GIT_CONFIG_VALUE_1": "0",
        "GIT_COMMITTER_NAME": ROLE[0],
        "GIT_COMMITTER_EMAIL": ROLE[1],
        "GIT_AUTHOR_NAME": ROLE[0],
        "GIT_AUTHOR_EMAIL": ROLE[1],
    }
    if date:
        env["GIT_COMMITTER_DATE"] = env["GIT_AUTHOR_DATE"] = date
    return env


def git(*words, tree=None, date=None):
    """Runs git in a tree, the series' own by default, and returns what it printed."""
    return output(["git", "-C", tree or TREE, *words], env=environment(date)).rstrip("\n")


def patch_files():
    """Returns the patches in order."""
    return sorted(PATCHES.glob("[0-9][0-9][0-9][0-9]-*.patch"))


def cover_file():
    """Returns the cover letter; by its name 'git am patches/*.patch' leaves it out."""
    return PATCHES / "0000-cover-letter.txt"


def digest():
    """Returns a checksum of the patches."""
    state = hashlib.sha256()
    for path in patch_files():
        state.update(path.read_bytes())
    return state.hexdigest()


def have_base():
    """Says whether the tree with its base commit is complete."""
    return succeeds(
        ["git", "-C", TREE, "rev-parse", "--verify", "--quiet", "refs/heads/base"],
        env=environment(),
    )


def make_base():
    """Makes the tree with the base as its first commit, once."""
    if have_base():
        return
    package, name, version = base.fetch()
    scratch = TREE.with_name("linux.new")
    base.unpack(package, scratch)
    git("init", "--quiet", "--initial-branch=base", tree=scratch)
    say("committing the base (30 seconds)")
    git("add", "--all", "--force", tree=scratch)
    git("commit", "--quiet", f"--message={name} {version}", tree=scratch, date=BASE_DATE)
    have, want = git("rev-parse", "HEAD^{tree}", tree=scratch), base.pinned()["tree"]
    if have != want:
        say(f"this base differs from the pinned one: its tree is {have}, not {want}")
    for key, value in zip(("user.name", "user.email"), ROLE):
        git("config", key, value, tree=scratch)
    shutil.rmtree(TREE, ignore_errors=True)
    scratch.replace(TREE)


def applied_file():
    """Returns the file that says which patches the branch was made from."""
    return TREE / ".git" / "kvm-userfault-applied"


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


def applying_file():
    """Returns the file that is there while patches are being applied."""
    return TREE / ".git" / "kvm-userfault-applying"


def recover():
    """Undoes what a run has left that was killed while it applied patches."""
    if not applying_file().exists():
        return
    (TREE / ".git" / "index.lock").unlink(missing_ok=True)
    if (TREE / ".git" / "rebase-apply").exists():
        git("am", "--abort")
    git("checkout", "--quiet", "--force", BRANCH if tip() else "base")
    applying_file().unlink()


def own_work():
    """Returns what the tree holds that the patches do not, in words, or nothing."""
    if not have_base() or not tip():
        return ""
    recover()
    if git("status", "--porcelain"):
        return "uncommitted changes"
    if git("rev-parse", "--abbrev-ref", "HEAD") != BRANCH:
        return f"another branch than '{BRANCH}' checked out"
    state = applied_file()
    if state.exists() and state.read_text().split()[1:] == [tip()]:
        return ""
    return "commits that are not exported"


def am(tree, patches, three_way=False):
    """Applies patches with git am and commits that have the same ids everywhere."""
    command = ["git", "-C", tree, "am", "--quiet", "--committer-date-is-author-date"]
    command += ["--3way"] if three_way else []
    LOGS.mkdir(parents=True, exist_ok=True)
    log = LOGS / "am.log"
    with open(log, "w", encoding="utf-8") as out:
        result = subprocess.run(
            [str(word) for word in [*command, *patches]],
            stdout=out,
            stderr=subprocess.STDOUT,
            check=False,
            env=environment(),
        )
    if result.returncode:
        failed = git("am", "--show-current-patch=raw", tree=tree)
        subject = re.search(r"^Subject: (?:\[.*?\] )?(.*)$", failed, re.MULTILINE)
        git("am", "--abort", tree=tree)
        raise LabError(
            f"the patch '{subject[1] if subject else '?'}' does not apply to {tree}:\n"
            f"{tail(log, 8)}\nThe tree is as it was before."
        )


def apply(force=False):
    """Makes the branch hold exactly the patches; keeps work of its own unless forced."""
    make_base()
    recover()
    state = applied_file()
    if state.exists() and tip() and state.read_text().split() == [digest(), tip()]:
        if not own_work():
            return
    work = own_work()
    if work and not force:
        raise LabError(
            f"{TREE} holds {work}. Save it with 'scripts/series export', or throw it away"
            " with 'scripts/series apply --force'."
        )
    say(f"applying {len(patch_files())} patches to {TREE}")
    if work:
        # Nothing is lost for good: the reflog of the branch still names it.
        git("clean", "--quiet", "-d", "--force")
    applying_file().touch()
    git("checkout", "--quiet", "--force", "--detach", "base")
    try:
        am(TREE, patch_files())
    except LabError:
        recover()
        raise
    git("checkout", "--quiet", "-B", BRANCH)
    state.write_text(f"{digest()} {tip()}\n")
    applying_file().unlink()


def ready():
    """Returns the tree to build: the patches, or the developer's own work on them."""
    with lock("linux"):
        work = own_work()
        if work:
            say(f"{TREE} holds {work}: using it as it is")
        else:
            apply()
    return TREE


def user_tree(path):
    """Returns a clone of the user's own kernel tree, with the series on a branch of its own."""
    source = pathlib.Path(path).resolve()
    if not (source / "virt/kvm/kvm_main.c").exists():
        raise LabError(f"{source} is not a kernel source tree")
    if not (source / ".git").exists():
        raise LabError(f"{source} is not a git checkout: run 'git init' and commit it first")
    if git("status", "--porcelain", "--untracked-files=no", tree=source):
        raise LabError(f"{source} has uncommitted changes: commit or stash them first")
    head = git("rev-parse", "HEAD", tree=source)
    name = hashlib.sha256(str(source).encode()).hexdigest()[:8]
    clone = CACHE / "trees" / name
    state = clone / ".git" / "kvm-userfault-applied"
    with lock(f"tree-{name}"):
        if state.exists() and state.read_text() == f"{digest()} {head}\n":
            return clone
        if not succeeds(["git", "-C", clone, "rev-parse", "--git-dir"], env=environment()):
            shutil.rmtree(clone, ignore_errors=True)
            clone.parent.mkdir(parents=True, exist_ok=True)
            step(
                f"cloning {source} (its own branches are not touched)",
                ["git", "clone", "--quiet", "--shared", "--no-checkout", source, clone],
                "clone",
                env=environment(),
            )
        git("fetch", "--quiet", "origin", "HEAD", tree=clone)
        state.unlink(missing_ok=True)
        say(f"applying {len(patch_files())} patches to {head[:12]}")
        git("checkout", "--quiet", "--force", "-B", "kvm-userfault", head, tree=clone)
        am(clone, patch_files(), three_way=True)
        state.write_text(f"{digest()} {head}\n")
    return clone


def mirror_of(path):
    """Returns where the repo shows a file that the series adds, or nothing."""
    for prefix, folder in MIRRORS.items():
        if path.startswith(prefix):
            return folder + path.removeprefix(prefix)
    return None


def added_files(tree, first="base", last="HEAD"):
    """Returns the files that the series adds."""
    names = git("diff", "--name-only", "--no-renames", "--diff-filter=A", first, last, tree=tree)
    return names.splitlines()


def expected_mirrors(tree, first="base", last="HEAD"):
    """Returns what the mirrored folders must hold, as {path in the repo: bytes}."""
    expected = {}
    for name in added_files(tree, first, last):
        mirror = mirror_of(name)
        if mirror:
            blob = subprocess.run(
                ["git", "-C", str(tree), "show", f"{last}:{name}"],
                capture_output=True,
                check=True,
                env=environment(),
            )
            expected[mirror] = blob.stdout
    return expected


def actual_mirrors():
    """Returns what the mirrored folders hold; pages of our own are directly in Documentation."""
    actual = {}
    for folder in MIRRORS.values():
        for path in sorted((REPO / folder).rglob("*")):
            name = str(path.relative_to(REPO))
            if path.is_file() and not (folder == "Documentation/" and name.count("/") == 1):
                actual[name] = path.read_bytes()
    return actual


def cover_text():
    """Returns the cover letter's subject and text, without what format-patch adds."""
    text = cover_file().read_text()
    head, _, body = text.partition("\n\n")
    subject = re.search(r"^Subject: (?:\[.*?\] )?(.*(?:\n .*)*)", head, re.MULTILINE)
    if not subject:
        raise LabError(f"{cover_file()} has no Subject")
    body = re.split(rf"^{re.escape(ROLE[0])} \(\d+\):$", body, maxsplit=1, flags=re.MULTILINE)[0]
    return re.sub(r"\n ", " ", subject[1]) + "\n\n" + body.rstrip() + "\n"


def format_patches(directory):
    """Writes the branch as patches into a directory."""
    date = git("log", "-1", "--format=%aI", BRANCH)
    git("config", f"branch.{BRANCH}.description", cover_text())
    git("format-patch", *FORMAT, "--output-directory", directory, f"base..{BRANCH}", date=date)
    cover = pathlib.Path(directory) / "0000-cover-letter.patch"
    cover.rename(cover.with_name(cover_file().name))


def export():
    """Writes patches/ and the mirrored folders from the branch."""
    if not tip():
        raise LabError("there is no tree yet: run 'scripts/series apply' first")
    if git("status", "--porcelain"):
        raise LabError(f"{TREE} has uncommitted changes: commit them first")
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        format_patches(scratch)
        new = {path.name: path.read_bytes() for path in pathlib.Path(scratch).iterdir()}
    for path in PATCHES.glob("*.patch"):
        if path.name not in new:
            path.unlink()
    for name, content in new.items():
        (PATCHES / name).write_bytes(content)
    expected = expected_mirrors(TREE, "base", BRANCH)
    for name in actual_mirrors():
        if name not in expected:
            (REPO / name).unlink()
    for name, content in expected.items():
        path = REPO / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    for folder in MIRRORS.values():
        for path in sorted((REPO / folder).rglob("*"), reverse=True):
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
    applied_file().write_text(f"{digest()} {tip()}\n")
    return len(new) - 1, len(expected)


def touched_files():
    """Returns the files that the patches touch."""
    names = set()
    for path in patch_files():
        names.update(re.findall(r"^diff --git a/(\S+) b/", path.read_text(), re.MULTILINE))
    return sorted(names)


def apply_to_scratch(scratch):
    """Applies the patches to a copy of just the base's files that they touch."""
    git("init", "--quiet", "--initial-branch=base", tree=scratch)
    there = set(git("ls-tree", "-r", "--name-only", "base", "--", *touched_files()).splitlines())
    for name in there:
        path = pathlib.Path(scratch) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        blob = subprocess.run(
            ["git", "-C", str(TREE), "show", f"base:{name}"],
            capture_output=True,
            check=True,
            env=environment(),
        )
        path.write_bytes(blob.stdout)
    git("add", "--all", "--force", tree=scratch)
    git("commit", "--quiet", "--message=base", tree=scratch, date=BASE_DATE)
    git("checkout", "--quiet", "-b", "check", tree=scratch)
    am(scratch, patch_files())


def check():
    """Returns what is wrong with patches, mirrored folders and tree, as a list of sentences."""
    make_base()
    wrong = []
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        try:
            apply_to_scratch(scratch)
        except LabError as error:
            return [str(error).replace(f" to {scratch}", " to the base")]
        expected, actual = expected_mirrors(scratch), actual_mirrors()
    for name in sorted(expected.keys() | actual.keys()):
        if name not in actual:
            wrong.append(f"{name} is missing: the patches add it")
        elif name not in expected:
            wrong.append(f"{name} is not in the patches")
        elif actual[name] != expected[name]:
            wrong.append(f"{name} differs from what the patches produce")
    work = own_work()
    if work:
        wrong.append(f"{TREE} holds {work}")
    return wrong
