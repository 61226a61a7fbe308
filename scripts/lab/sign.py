# SPDX-License-Identifier: GPL-2.0-only
"""Signs the series: a copy of patches/ with a submitter in the place of the role."""

import email
import email.policy
import os
import pathlib
import re
import tempfile

import checkpatch
import export
import kgit
import patches
from common import CACHE, PATCHES, REPO, LabError, output

SIGNED = CACHE / "signed"
# Says which patches a folder is the signed copy of.
STATE = "signed"
# What is signed besides the patches.
MORE = ("*.txt", "parts")
# Those who share an address or have none cannot certify anything.
ROLES = {"admin", "administrator", "bot", "ci", "maintainer", "maintainers", "nobody", "root"}
NO_PERSON = re.compile(r"no-?reply|\[bot\]|[@.](invalid|localhost|localdomain|local)$|(^|@)[^.@]*$")
HOW = (
    "Say who you are with\n"
    "  git config --global user.name 'Your Name'\n"
    "  git config --global user.email you@your.domain\n"
    "and run this again."
)


def submitter():
    """Returns name and address of the user, who has to be a person."""
    # From scripts/lab/enter, as the toolchain's git does not know the host's configuration.
    match = re.match(r"(.+) <(.+)> ", os.environ.get("KVM_USERFAULT_SUBMITTER", ""))
    if not match:
        raise LabError(f"git does not know your name and address. {HOW}")
    name, address = match.groups()
    roles = ROLES & {name.lower(), address.lower().partition("@")[0]}
    if roles or name == kgit.ROLE[0] or NO_PERSON.search(address.lower()):
        raise LabError(
            f"{name} <{address}> is a role. A Signed-off-by certifies the Developer's Certificate"
            f" of Origin, and only a person with an address that takes mail can do that. {HOW}"
        )
    return name, address


def author(path):
    """Returns name and address in the From of a patch or cover letter."""
    message = email.message_from_string(path.read_text(), policy=email.policy.default)
    sender = message["From"].addresses[0]
    return sender.display_name, sender.addr_spec


def as_person(text, identity):
    """Returns a patch, a cover letter or an entry with a person in the place of the role."""
    name, address = identity
    # In MAINTAINERS a name with such characters is quoted.
    entry = '"{}"'.format(name.replace('"', "")) if re.search(r'[().,:;"@]', name) else name
    text = text.replace("M:\t{} <{}>".format(*kgit.ROLE), f"M:\t{entry} <{address}>")
    return text.replace(kgit.ROLE[1], address).replace(kgit.ROLE[0], name)


def sign():
    """Writes a signed copy of patches/ and returns (submitter, checkpatch's remarks)."""
    identity = submitter()
    wrong = export.check()
    if wrong:
        raise LabError("\n".join([*wrong, "nothing is signed: make these agree first"]))
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        new, old = (pathlib.Path(scratch) / name for name in ("new", "old"))
        new.mkdir()
        files = [*patches.patch_files(), *PATCHES.glob("*.txt"), REPO / export.SNIPPET]
        for path in [*files, PATCHES / "parts"]:
            (new / path.name).write_text(as_person(path.read_text(), identity))
        trailer = "Signed-off-by: {} <{}>".format(*identity)
        words = ["git", "interpret-trailers", "--in-place", "--trailer", trailer]
        output([*words, *patches.patch_files(new)], env=kgit.environment())
        (new / STATE).write_text(patches.digest(*MORE))
        remarks = checkpatch.remarks(kgit.TREE, patches.patch_files(new), signed=True)
        unsigned = [line for line in remarks if re.search(r"sign(ed)?-off", line, re.IGNORECASE)]
        if unsigned:
            raise LabError("checkpatch does not accept the signature:\n" + "\n".join(unsigned))
        # Half a copy would be sent as if it were all.
        if SIGNED.exists():
            SIGNED.rename(old)
        new.rename(SIGNED)
    return identity, remarks


def latest():
    """Returns the folder of the signed series, or nothing where there is none."""
    if not SIGNED.exists():
        return None
    if (SIGNED / STATE).read_text() != patches.digest(*MORE):
        raise LabError(
            f"{SIGNED} is the signed copy of other patches than patches/ holds now: run"
            " 'scripts/series sign' again, or name the folder to take with --from"
        )
    return SIGNED
