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
import parts
from common import CACHE, LAB, LOGS, PATCHES, REPO, LabError
from common import lock, output, say, step, succeeds, tail

TREE = CACHE / "linux"
BRANCH = "series"
# A commit of the base has to have the same id wherever it is made.
BASE_DATE = "2026-01-01T00:00:00Z"
ROLE = ("KVM userfault series", "series@kvm-userfault.invalid")

# What the tree holds after work on the series.
UNCOMMITTED = "uncommitted changes"
UNEXPORTED = "commits that are not exported"

# Where the files that the series adds are shown in the repo.
MIRRORS = {
    "arch/arm64/kvm/": "arch-arm64-kvm/",
    "tools/testing/selftests/": "tools-testing-selftests/",
    "Documentation/": "Documentation/",
}
# What the series adds to MAINTAINERS.
SNIPPET = "MAINTAINERS.snippet"
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


def patch_files(folder=None):
    """Returns the patches of a folder in order."""
    return sorted((folder or PATCHES).glob("[0-9][0-9][0-9][0-9]-*.patch"))


def variants():
    """Returns patches in another form, which the base that their folder is named after needs."""
    return sorted(PATCHES.glob("*/[0-9][0-9][0-9][0-9]-*.patch"))


def series_for(folder):
    """Returns the patches, those of which a folder has a variant in that form."""
    names = {path.name: path for path in variants() if path.parent == folder}
    return [names.get(path.name, path) for path in patch_files()]


def cover_file(folder=None):
    """Returns the cover letter; by its name 'git am patches/*.patch' leaves it out."""
    return (folder or PATCHES) / "0000-cover-letter.txt"


def digest():
    """Returns a checksum of the patches and of the base they name."""
    state = hashlib.sha256()
    for path in [PATCHES / "base", *patch_files(), *variants()]:
        state.update(path.read_bytes())
    return state.hexdigest()


def made_for_file():
    """Returns the file that says which tree the base stands for, where that left the archive."""
    return TREE / ".git" / "kvm-userfault-base"


def have_base():
    """Says whether the tree has the base that patches/base names."""
    if not tip("base"):
        return False
    have = [git("rev-parse", "base^{tree}")]
    have += made_for_file().read_text().split() if made_for_file().exists() else []
    return base.pinned()["tree"] in have


def commit_source(package, name, version):
    """Commits a kernel source package and returns the commit, the same wherever it is made."""
    scratch, index = TREE.with_name("linux.new"), TREE.with_name("linux.index")
    base.unpack(package, scratch)
    say("committing the base (30 seconds)")
    index.unlink(missing_ok=True)
    repository = ["--git-dir", TREE / ".git", "--work-tree", "."]
    git(*repository, "add", "--all", "--force", tree=scratch, index=index)
    content = git("write-tree", index=index)
    index.unlink()
    shutil.rmtree(scratch)
    return git("commit-tree", content, "-m", f"{name} {version}", date=BASE_DATE)


def fetch_commit(remote, commit):
    """Fetches a commit of the remote, unless it is there."""
    if not succeeds(["git", "-C", TREE, "cat-file", "-e", commit], env=environment()):
        words = ["fetch", "--quiet", "--no-tags", "--depth=1", remote, commit]
        step(f"fetching {remote}", ["git", "-C", TREE, *words], "fetch", env=environment())
    return commit


def make_base(force=False):
    """Makes the base a commit of the tree, anew when patches/base names another."""
    if have_base():
        return
    keep_own_work(force)
    TREE.mkdir(parents=True, exist_ok=True)
    git("init", "--quiet", "--initial-branch=base")
    for key, value in zip(("user.name", "user.email"), ROLE):
        git("config", key, value)
    pin = base.pinned()
    if "commit" in pin:
        commit = fetch_commit(pin["remote"], pin["commit"])
    else:
        commit = commit_source(*base.fetch())
    have = git("rev-parse", f"{commit}^{{tree}}")
    if have != pin["tree"]:
        say(f"this base differs from the pinned one: its tree is {have}, not {pin['tree']}")
        made_for_file().write_text(f"{pin['tree']}\n")
    set_base(commit)


def set_base(commit):
    """Makes a commit the base, and shows it where there is no series yet."""
    git("update-ref", "refs/heads/base", commit)
    if not tip():
        git("checkout", "--quiet", "--force", "base")


def is_ancestor(one, other):
    """Says whether a commit has another as its descendant."""
    words = ["merge-base", "--is-ancestor", one, other]
    return succeeds(["git", "-C", TREE, *words], env=environment())


def subject(mail):
    """Returns the subject of a patch or cover letter, without what is in brackets, or nothing."""
    head = mail.partition("\n\n")[0]
    match = re.search(r"^Subject: (?:\[.*?\] )?(.*(?:\n .*)*)", head, re.MULTILINE)
    return re.sub(r"\n ", " ", match[1]) if match else ""


def subjects(folder=None):
    """Returns the subjects of the patches of a folder in order."""
    return [subject(path.read_text()) for path in patch_files(folder)]


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


def abort_am(tree):
    """Ends what is left of a 'git am' that was killed."""
    (tree / ".git" / "index.lock").unlink(missing_ok=True)
    if (tree / ".git" / "rebase-apply").exists():
        git("am", "--abort", tree=tree)


def recover():
    """Undoes what a run has left that was killed while it applied patches."""
    if not applying_file().exists():
        return
    abort_am(TREE)
    git("checkout", "--quiet", "--force", BRANCH if tip() else "base")
    applying_file().unlink()


def own_work():
    """Returns what the tree holds that the patches do not, in words, or nothing."""
    if not tip():
        return ""
    recover()
    if git("status", "--porcelain"):
        return UNCOMMITTED
    if git("rev-parse", "--abbrev-ref", "HEAD") != BRANCH:
        return f"another branch than '{BRANCH}' checked out"
    state = applied_file()
    if state.exists() and state.read_text().split()[1:] == [tip()]:
        return ""
    return UNEXPORTED


def keep_own_work(force=False, but=""):
    """Refuses to go on where the tree holds what the patches do not; returns it if forced."""
    work = own_work()
    if work and work != but and not force:
        save = {
            UNCOMMITTED: "Commit them there and run 'scripts/series export'",
            UNEXPORTED: "Save them with 'scripts/series export'",
        }.get(work, f"Check out '{BRANCH}' there")
        raise LabError(
            f"{TREE} holds {work}. {save}, or throw it away with 'scripts/series apply --force'."
        )
    return work


def am(tree, patches, *options, identity=ROLE):
    """Applies patches with git am and commits that have the same ids everywhere."""
    command = ["git", "-C", tree, "am", "--quiet", "--committer-date-is-author-date", *options]
    LOGS.mkdir(parents=True, exist_ok=True)
    log = LOGS / "am.log"
    with open(log, "w", encoding="utf-8") as out:
        result = subprocess.run(
            [str(word) for word in [*command, *patches]],
            stdout=out,
            stderr=subprocess.STDOUT,
            check=False,
            env=environment(identity=identity),
        )
    if result.returncode:
        failed = git("am", "--show-current-patch=raw", tree=tree)
        git("am", "--abort", tree=tree)
        raise LabError(
            f"the patch '{subject(failed) or '?'}' does not apply to {tree}:\n"
            f"{tail(log, 8)}\nThe tree is as it was before."
        )


def apply(force=False):
    """Makes the branch hold exactly the patches; keeps work of its own unless forced."""
    make_base(force)
    recover()
    state = applied_file()
    if state.exists() and tip() and state.read_text().split() == [digest(), tip()]:
        if not own_work():
            return
    work = keep_own_work(force)
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


def borrow_objects(repository):
    """Lets a git repository of the lab use the objects of the series' tree."""
    with open(repository / ".git/objects/info/alternates", "a", encoding="utf-8") as alternates:
        alternates.write(f"{TREE / '.git/objects'}\n")


def am_near(clone):
    """Applies the patches to a tree that is near to their base or to that of a variant."""
    errors = []
    for folder in [PATCHES, *sorted({path.parent for path in variants()})]:
        try:
            return am(clone, series_for(folder), "--3way")
        except LabError as error:
            errors.append(error)
    raise errors[0]


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
        try:
            am_near(clone)
        except LabError as error:
            if "sha1 information is lacking" not in str(error):
                raise
            # A shallow clone may not have what the patches were made on, but the lab does.
            make_base()
            borrow_objects(clone)
            am_near(clone)
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


def added_lines(name, tree, first="base", last="HEAD"):
    """Returns the lines that the series adds to a file."""
    diff = git("diff", "--unified=0", "--no-renames", first, last, "--", name, tree=tree)
    return "".join(f"{line}\n" for line in re.findall(r"^\+(?!\+\+ )(.*)", diff, re.MULTILINE))


def expected_mirrors(tree, first="base", last="HEAD"):
    """Returns what the repo must show of the patches, as {path in the repo: bytes}."""
    expected = {}
    entry = added_lines("MAINTAINERS", tree, first, last)
    if entry:
        expected[SNIPPET] = entry.encode()
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
    """Returns what the repo shows of the patches, but not its own pages in Documentation."""
    actual = {}
    if (REPO / SNIPPET).exists():
        actual[SNIPPET] = (REPO / SNIPPET).read_bytes()
    for folder in MIRRORS.values():
        for path in sorted((REPO / folder).rglob("*")):
            name = str(path.relative_to(REPO))
            if path.is_file() and not (folder == "Documentation/" and name.count("/") == 1):
                actual[name] = path.read_bytes()
    return actual


def cover_text(path):
    """Returns a cover letter's subject and text, without what format-patch adds."""
    text = path.read_text()
    title = subject(text)
    if not title:
        raise LabError(f"{path} has no Subject")
    # What format-patch adds begins with the authors and their patches.
    body = text.partition("\n\n")[2]
    body = re.split(r"^\S.* \(\d+\):\n(?=  )", body, maxsplit=1, flags=re.MULTILINE)[0]
    return f"{title}\n\n{body.rstrip()}\n"


def format_patches(directory, tree=None, identity=ROLE):
    """Writes the branch of a tree as patches into a directory."""
    date = git("log", "-1", "--format=%aI", BRANCH, tree=tree)
    git("config", f"branch.{BRANCH}.description", cover_text(cover_file()), tree=tree)
    words = [*FORMAT, "--output-directory", directory, f"base..{BRANCH}"]
    git("format-patch", *words, tree=tree, date=date, identity=identity)
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


def copy_base(scratch):
    """Makes a tree of just the base's files that the patches touch."""
    git("init", "--quiet", "--initial-branch=base", tree=scratch)
    borrow_objects(pathlib.Path(scratch))
    files = git("ls-tree", "-r", "base", "--", *touched_files())
    index = ["git", "-C", scratch, "update-index", "--index-info"]
    output(index, input=files + "\n", env=environment())
    git("checkout-index", "--all", tree=scratch)
    git("commit", "--quiet", "--message=base", tree=scratch, date=BASE_DATE)
    git("checkout", "--quiet", "-b", BRANCH, tree=scratch)


def check():
    """Returns what is wrong with patches, mirrored folders and tree, as a list of sentences."""
    make_base()
    wrong = []
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        try:
            copy_base(scratch)
            am(scratch, patch_files())
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
    for path in variants():
        original = PATCHES / path.name
        if not original.exists() or message(original) != message(path):
            name = path.relative_to(REPO)
            wrong.append(f"{name} is not a patch of the series with the same message")
    wrong += parts.wrong(subjects())
    work = own_work()
    if work:
        wrong.append(f"{TREE} holds {work}")
    return wrong


def message(patch):
    """Returns a patch without its diff."""
    return patch.read_text().partition("\n---\n")[0]
