# SPDX-License-Identifier: GPL-2.0-only
"""Prepares the mails of the series, or of a part of it, with b4, and proves that they are that.

Nothing here sends mail. b4 works on a clone of its own, without network, and
with /bin/false where it would look for a mail server.
"""

import dataclasses
import email
import email.policy
import mailbox
import pathlib
import re
import textwrap

import base
import checkpatch
import kgit
import patches
import sign
import tree
from common import CACHE, PATCHES, LabError, output, say, step

CLONE = CACHE / "send" / "linux"
MAILS = CACHE / "send" / "mails"
HOME = CACHE / "send" / "home"
B4 = ["b4", "--no-interactive", "--offline-mode", "--no-stdin"]
# b4's own template, but for the base: that from a Debian package is no commit of anybody else.
COVER = """\
${{cover}}

---
${{shortlog}}

${{diffstat}}
---
{base}change-id: ${{change_id}}
${{prerequisites}}
Best regards,
--\N{SPACE}
${{signature}}
"""
BASE = "base-commit: ${base_commit}\n"


@dataclasses.dataclass(frozen=True)
class Series:
    """What is sent: all patches of a folder, or those of a part, which are on the ones before. It
    has a b4 branch of its own, and a branch that this is on."""

    cover: pathlib.Path
    before: list
    patches: list
    branch: str = "b4/kvm-userfault"
    base: str = "base"


def choose(folder, name):
    """Returns what is to be sent of a folder of patches."""
    files = patches.patch_files(folder)
    if not files:
        raise LabError(f"{folder} does not hold patches")
    if not name:
        return Series(patches.cover_file(folder), [], files)
    found = {part.name: part for part in patches.parts(patches.subjects(folder), folder)}
    if name not in found:
        raise LabError(f"there is no part '{name}'; the parts are {', '.join(found)}")
    part = found[name]
    before, own = files[: part.first], files[part.first : part.last]
    return Series(part.cover(folder), before, own, f"{Series.branch}-{name}", f"base-of-{name}")


def environment(identity):
    """Returns variables under which b4 does the same for every user."""
    config = {
        "user.name": identity[0],
        "user.email": identity[1],
        "sendemail.smtpserver": "/bin/false",
        "b4.prep-cover-strategy": "branch-description",
        # b4's own default has --mailback, under which a missing sign-off can go unnoticed.
        "b4.prep-perpatch-check-cmd": "scripts/checkpatch.pl -q --terse --no-summary --showfile",
        # Patches that a part needs are looked for nowhere: 'b4 send' itself will ask for them.
        "b4.searchmask": "",
        "b4.prep-pre-flight-checks": "disable-needs-checking-deps",
        "core.editor": f"cp {HOME / 'prerequisites'}",
    }
    env = kgit.environment(identity=identity) | {"GIT_CONFIG_COUNT": str(len(config))}
    for number, (key, value) in enumerate(config.items()):
        env |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    return env | dict.fromkeys(["HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME"], str(HOME))


def clone():
    """Makes b4's clone of the tree, or brings it up to date; its branches stay."""
    HOME.mkdir(parents=True, exist_ok=True)
    if not (CLONE / ".git").exists():
        kgit.clone("cloning the tree for b4", kgit.TREE, CLONE)
    # The clone's own setting, for the submitter's 'b4 send' to write the same mails.
    template = HOME / "cover"
    template.write_text(COVER.format(base=BASE if "commit" in base.pinned() else ""))
    kgit.git("config", "b4.prep-cover-template", template, tree=CLONE)
    kgit.abort_am(CLONE)
    kgit.git("fetch", "--quiet", "origin", "base", tree=CLONE)
    kgit.git("checkout", "--quiet", "--force", "--detach", "FETCH_HEAD", tree=CLONE)
    kgit.git("branch", "--force", "--no-track", "base", "HEAD", tree=CLONE)


def b4(what, env, *words):
    """Runs b4 as a step and returns its log."""
    log = f"b4-{words[1 if words[0] == 'prep' else 0].strip('-')}"
    return step(what, [*B4, *words], log, cwd=CLONE, env=env).read_text(errors="replace")


def prerequisites(series):
    """Returns the ids of the patches that are to be applied before, a line each, as b4 has them."""
    diffs = kgit.git("log", "--reverse", "--patch", f"base..{series.base}", tree=CLONE)
    ids = output(["git", "patch-id", "--stable"], input=diffs)
    return "".join(f"patch-id: {line.split()[0]}\n" for line in ids.splitlines())


def prepare(series, env):
    """Makes the b4 branch from patches and cover letter, with To and Cc; returns checkpatch's
    remarks."""
    branch, on = series.branch, series.base
    kgit.git("checkout", "--quiet", "-B", on, "base", tree=CLONE)
    if series.before:
        kgit.am(CLONE, series.before)
    if not kgit.asks("config", f"branch.{branch}.b4-tracking", tree=CLONE):
        kgit.git("update-ref", "-d", f"refs/heads/{branch}", tree=CLONE)
        b4("making the b4 branch", env, "prep", "--new", branch.removeprefix("b4/"), "-f", on)
    kgit.git("checkout", "--quiet", "-B", branch, on, tree=CLONE)
    kgit.am(CLONE, series.patches)
    text = patches.cover_text(series.cover)
    kgit.git("config", f"branch.{branch}.description", text, tree=CLONE)
    if series.before:
        (HOME / "prerequisites").write_text(prerequisites(series))
        b4("naming the patches that it needs", env, "prep", "--edit-deps")
    prefixes = re.search(r"^Subject: (?:\[(.*?)PATCH)?", series.cover.read_text(), re.M)[1] or ""
    b4("setting its prefixes", env, "prep", "--set-prefixes", *(prefixes.split() or [""]))
    b4("asking get_maintainer for To and Cc", env, "prep", "--auto-to-cc")
    log = b4("running b4 prep --check", env, "prep", "--check", "--no-cache")
    return re.findall(r"checkpatch\.pl: (.*)", re.sub(r"\x1b\[[0-9;]*m", "", log))


def write_mails(folder, env):
    """Writes the mails to a folder and returns them in order."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("[0-9][0-9][0-9][0-9]-*.eml"):
        path.unlink()
    b4("writing the mails", env, "send", "--no-sign", "--output-dir", folder)
    return sorted(folder.glob("[0-9][0-9][0-9][0-9]-*.eml"))


def content(series, commit):
    """Returns a branch of the clone as (tree, authors and messages)."""
    log = kgit.git("log", "--format=%an <%ae>%n%B", f"{series.base}..{commit}", tree=CLONE)
    return kgit.git("rev-parse", f"{commit}^{{tree}}", tree=CLONE), log


def prove(series, mails, env):
    """Applies the mails with b4 shazam, which has to give the branch."""
    thread = HOME / "thread"
    thread.unlink(missing_ok=True)
    box = mailbox.mbox(thread)
    for path in mails:
        box.add(path.read_bytes())
    box.close()
    kgit.git("checkout", "--quiet", "--detach", series.base, tree=CLONE)
    b4("applying the mails with b4 shazam", env, "shazam", "--use-local-mbox", thread)
    if content(series, "HEAD") != content(series, series.branch):
        raise LabError("the mails, applied with b4 shazam, are not the series they came from")
    kgit.git("checkout", "--quiet", series.branch, tree=CLONE)


def dry_run(source=None, part=None):
    """Writes the mails, proves them, and returns 1 where checkpatch has a remark."""
    if not source:
        tree.keep_own_work()
    source = pathlib.Path(source) if source else sign.latest() or PATCHES
    series = choose(source, part)
    identity = sign.author(patches.cover_file(source))
    if identity == kgit.ROLE:
        say("these patches are not signed: 'scripts/series sign' makes them yours")
    tree.make_base()
    env = environment(identity)
    clone()
    remarks = prepare(series, env)
    mails = write_mails(MAILS / (part or ""), env)
    prove(series, mails, env)
    remarks = checkpatch.unexpected(remarks, signed=identity != kgit.ROLE)
    report(source, mails, remarks, identity)
    return 1 if remarks else 0


def report(source, mails, remarks, identity):
    """Shows what would be sent."""
    first = email.message_from_bytes(mails[0].read_bytes(), policy=email.policy.default)
    for name in ("To", "Cc"):
        print(textwrap.fill(f"{name}: {first[name] or ''}", 96, subsequent_indent="    "))
    for line in remarks:
        print(f"checkpatch: {line}")
    print(f"{len(mails)} mails from {source} are in {mails[0].parent}.")
    print("b4 shazam makes of them what the patches make. Nothing was sent.")
    if identity != kgit.ROLE:
        print(f"In {CLONE}, 'b4 prep --edit-cover' trims To and Cc,")
        print("and 'b4 send' is yours to run.")
