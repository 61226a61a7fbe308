# SPDX-License-Identifier: GPL-2.0-only
"""Moves the series between patches/ and a kernel git tree, follows its base, and
prepares it for the mailing lists."""

import itertools
import subprocess
import sys

import checkpatch
import ends
import export
import kgit
import patches
import send
import sign
import steps
import track
import tree
from common import LAB, LabError, lock, main, new_parser


@tree.alone()
def apply_patches(args):
    """Makes the tree from patches/."""
    tree.apply(args.force)
    print(f"{kgit.TREE} is at branch {kgit.BRANCH}, {len(patches.patch_files())} patches")
    return 0


@lock("linux")
def export_patches(_):
    """Writes patches/ and what mirrors them from the tree."""
    if not kgit.tip():
        raise LabError(f"{kgit.TREE} has no series.\n'scripts/series apply' puts it there.")
    if track.on_another_base():
        raise LabError("the series is on another base: 'scripts/series track' exports it there")
    count, files = export.write()
    print(f"exported {count} patches and {files} mirrored files")
    for sentence in patches.wrong_parts():
        print(f"now bring patches/ in order: {sentence}", file=sys.stderr)
    return 0


def check_each_patch():
    """Checks each patch and each part's end in each way and shows it; returns an exit code."""
    remarks = checkpatch.remarks(kgit.TREE, patches.patch_files())
    ends_found = (
        (variant, f"end of part {name}", steps.attempt(look))
        for name, variant, look in ends.check_each(whole=True)
    )
    bad = 0
    for how, what, wrong in itertools.chain(
        [("checkpatch", "all patches", remarks)], steps.check_each(), ends_found
    ):
        bad += bool(wrong)
        print("\n".join([f"{'FAIL' if wrong else 'ok':4}  {how:10}  {what}", *wrong]), flush=True)
    print(f"{bad} failed")
    return 1 if bad else 0


def check_patches(args):
    """Says whether all agree."""
    if args.full:
        tree.ready()
    with lock("linux"):
        wrong = export.check()
    for sentence in wrong:
        print(sentence, file=sys.stderr)
    if wrong:
        return 1
    subjects = patches.subjects()
    count = f"{len(subjects)} patches in {len(patches.parts(subjects))} parts"
    print(f"{count} apply; mirrored folders and tree agree")
    # What is built of it is built under a cover, so that others can use the tree meanwhile.
    return check_each_patch() if args.full else 0


@lock("linux")
def sign_patches(_):
    """Writes the signed copy."""
    (name, address), remarks = sign.sign()
    print(
        *remarks,
        f"{sign.SIGNED} holds the series as {name} <{address}> would send it. The Signed-off-by"
        " under each patch certifies the Developer's Certificate of Origin"
        " (the kernel's Documentation/process/submitting-patches.rst): read what you send.",
        sep="\n",
    )
    return 0


@lock("linux")
def send_patches(args):
    """Prepares the mails; nothing here sends them."""
    if not args.dry_run:
        raise LabError(
            "nothing here sends mail. Add --dry-run to have the mails written to a folder;"
            " README.md says how you send them yourself."
        )
    return send.dry_run(args.source, args.part)


def follow_base(args):
    """Tries the series on what its base has become."""
    with tree.alone():
        code, exported = track.track(args.remote, args.branch, args.debian, args.dry_run)
    if not exported or args.no_test:
        return code
    return subprocess.run([sys.executable, LAB / "test.py"], check=False).returncode


def program():
    """Runs one command."""
    parser = new_parser("scripts/series", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(function, name, text):
        """Adds a command."""
        about = f"{text[0].upper()}{text[1:]}."
        one = commands.add_parser(name, help=text, description=about, allow_abbrev=False)
        one.set_defaults(function=function)
        return one.add_argument

    add = command(apply_patches, "apply", "make the kernel git tree from patches/")
    add("--force", action="store_true", help="throw away work that is not exported")
    command(export_patches, "export", "write patches/ and the mirrored folders from the tree")
    add = command(check_patches, "check", "say whether patches, mirrored folders and tree agree")
    add("--full", action="store_true", help="build each patch, run each part (hours)")
    add = command(follow_base, "track", "try the series on the newest base, and export it there")
    add("--remote", metavar="URL", help="default: what patches/base names")
    add("--branch", help="default: what patches/base names")
    add("--debian", metavar="RELEASE", help="a source package of Debian, as 7.3-rc7")
    add("--dry-run", action="store_true", help="only say what would become of it")
    add("--no-test", action="store_true", help="leave out scripts/test afterwards")
    command(sign_patches, "sign", "copy the series with you as its author, signed off by you")
    add = command(send_patches, "send", "write the mails that b4 would send, and prove them")
    add("--dry-run", action="store_true", help="required: the mails are only written")
    add("--part", metavar="NAME", help="only this part, with its own cover letter")
    add("--from", metavar="DIR", dest="source", help="default: the signed series, else patches/")
    args = parser.parse_args()
    return args.function(args)


if __name__ == "__main__":
    main(program)
