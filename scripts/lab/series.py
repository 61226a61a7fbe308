# SPDX-License-Identifier: GPL-2.0-only
"""Moves the series between patches/ and a kernel git tree."""

import argparse
import sys

import steps
import tree
from common import add_common_options, lock, main


def build_each_patch():
    """Builds each patch in each way, shows a table and returns an exit code."""
    failed = 0
    for variant in ("4k", "4k-norust"):
        for subject, wrong in steps.build_each(variant):
            failed += bool(wrong)
            print(f"{'FAIL' if wrong else 'ok':5} {variant:10} {subject}", flush=True)
            if wrong:
                print(wrong)
    return 1 if failed else 0


def program():
    """Runs one command."""
    parser = argparse.ArgumentParser(prog="scripts/series", description=__doc__)
    add_common_options(parser)
    commands = parser.add_subparsers(dest="command", required=True)
    apply = commands.add_parser("apply", help="make the kernel git tree from patches/")
    apply.add_argument("--force", action="store_true", help="throw away work that is not exported")
    commands.add_parser("export", help="write patches/ and the mirrored folders from the tree")
    check = commands.add_parser("check", help="say whether patches, mirrored folders and tree agree")
    check.add_argument("--full", action="store_true", help="build each patch as well (30 minutes)")
    args = parser.parse_args()

    with lock("linux"):
        if args.command == "apply":
            tree.apply(args.force)
            print(f"{tree.TREE} is at branch {tree.BRANCH}, {len(tree.patch_files())} patches")
        elif args.command == "export":
            patches, files = tree.export()
            print(f"exported {patches} patches and {files} mirrored files")
        else:
            wrong = tree.check()
            for sentence in wrong:
                print(sentence, file=sys.stderr)
            if wrong:
                return 1
            print(f"{len(tree.patch_files())} patches apply; mirrored folders and tree agree")
            return build_each_patch() if args.full else 0
    return 0


if __name__ == "__main__":
    main(program)
