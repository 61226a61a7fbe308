# SPDX-License-Identifier: GPL-2.0-only
"""A small kernel tree with a series of two patches, and a small repo, for tests to work on."""

import contextlib
import pathlib
import tempfile
import unittest
from unittest import mock

import base
import common
import export
import kgit
import passed
import patches
import send
import sign
import track
import tree
import user_tree

PACKAGE = {"release": "7.3", "package": "linux-source", "version": "7.3-1", "sha256": "0"}
COVER = """\
From 0000000000000000000000000000000000000000 Mon Sep 17 00:00:00 2001
From: KVM userfault series <series@kvm-userfault.invalid>
Date: Thu, 1 Jan 2026 00:00:00 +0000
Subject: [RFC PATCH 0/1] A cover letter whose subject is so long that it has to
 be continued

Its text.
"""
PARTS = "core: KVM: Add a file\nentry: MAINTAINERS: Add an entry\n"
MAKEFILE = "VERSION = 7\nPATCHLEVEL = 3\nSUBLEVEL = 0\nEXTRAVERSION =\n"
MAIN = "".join(f"line {number};\n" for number in range(1, 31))
MAINTAINERS = (
    "Maintainers List\n================\n\nA FIRST ENTRY\nL:\tlist@kernel.org\nS:\tMaintained\n\n"
    "THE REST\nM:\tSomebody <somebody@kernel.org>\nS:\tMaintained\nF:\t*\n"
)
ENTRY = (
    "KVM IN RUST\nM:\tKVM userfault series <series@kvm-userfault.invalid>\n"
    "L:\tkvm@vger.kernel.org\nS:\tMaintained\n\n"
)
# Stand-ins for the kernel's scripts, with the one property that a test needs.
CHECKPATCH = """\
#!/bin/sh
for last; do :; done
[ -f "$last" ] || last=/dev/stdin
grep -q ^Signed-off-by: "$last" || echo "1: ERROR: Missing Signed-off-by: line(s)"
"""
GET_MAINTAINER = """\
#!/bin/sh
case " $* " in
*" --nol "*) echo "Somebody <somebody@kernel.org>" ;;
*) echo "kvm@vger.kernel.org" ;;
esac
"""


def scratch():
    """Returns a folder for the time of a test."""
    return tempfile.TemporaryDirectory()


def half_am(tree):
    """Leaves what a 'git am' leaves that is killed."""
    folder = tree / ".git/rebase-apply"
    folder.mkdir()
    for name in ("applying", "abort-safety"):
        (folder / name).touch()


class Scratch(unittest.TestCase):
    """A folder for the time of a test."""

    def setUp(self):
        self.stack = contextlib.ExitStack()
        self.addCleanup(self.stack.close)
        self.folder = pathlib.Path(self.stack.enter_context(scratch()))

    def replace(self, module, **values):
        """Gives names of a module other values during a test."""
        self.stack.enter_context(mock.patch.multiple(module, **values))


class Small(Scratch):
    """One patch changes a file and adds another, one adds an entry to MAINTAINERS."""

    def setUp(self):
        super().setUp()
        self.root = self.folder
        self.repo, self.tree = self.root / "a repo", self.root / "linux"
        self.patches = self.repo / "patches"
        places = {
            "CACHE": self.root,
            "LOGS": self.root / "log",
            "REPO": self.repo,
            "PATCHES": self.patches,
            "TREE": self.tree,
            "SIGNED": self.root / "signed",
            "say": mock.Mock(),
        }
        modules = base, common, export, kgit, passed, patches, send, sign, track, tree, user_tree
        for module in modules:
            have = {name: value for name, value in places.items() if hasattr(module, name)}
            self.replace(module, **have)
        # Another test's file is no lock of this one's tree.
        tree.users.cache_clear()
        self.addCleanup(tree.users.cache_clear)

        self.patches.mkdir(parents=True)
        (self.patches / "0000-cover-letter.txt").write_text(COVER)
        (self.patches / "parts").write_text(PARTS)
        for name in ("core", "entry"):
            cover = f"Subject: [PATCH] The {name} alone\n\nWhy the {name}.\n"
            (self.patches / f"cover-{name}.txt").write_text(cover)
        self.write("Makefile", MAKEFILE)
        self.write("MAINTAINERS", MAINTAINERS)
        self.write("virt/kvm/kvm_main.c", MAIN)
        for name, text in (("checkpatch", CHECKPATCH), ("get_maintainer", GET_MAINTAINER)):
            self.write(f"scripts/{name}.pl", text).chmod(0o755)
        self.git("init", "--quiet", "--initial-branch=base")
        self.commit("base")
        self.pin("base")
        self.git("checkout", "--quiet", "-b", kgit.BRANCH)
        self.write("arch/arm64/kvm/new.rs", "// New.\n")
        self.write("virt/kvm/kvm_main.c", MAIN.replace("line 15;", "line 15, with userfault;"))
        self.commit("KVM: Add a file\n\nAssisted-by: LLM")
        self.write("MAINTAINERS", MAINTAINERS.replace("THE REST", f"{ENTRY}THE REST"))
        self.commit("MAINTAINERS: Add an entry\n\nAssisted-by: LLM")
        export.write()

    def git(self, *words, **context):
        """Runs git with a date that is always the same."""
        return kgit.git(*words, date=kgit.BASE_DATE, **context)

    def pin(self, ref, **fields):
        """Makes patches/base name a commit of the tree."""
        content = self.git("rev-parse", f"{ref}^{{tree}}")
        remote = {"remote": str(self.root / "nowhere"), "branch": "next"}
        base.pin(PACKAGE | remote | {"tree": content} | fields)

    def add_variant(self):
        """Adds a variant of the first patch, for a base on which line 15 is another."""
        original = self.patches / "0001-KVM-Add-a-file.patch"
        variant = self.patches / "7.2" / original.name
        variant.parent.mkdir()
        variant.write_text(original.read_text().replace("-line 15;", "-line fifteen;"))
        return variant

    def write(self, name, text):
        """Writes a file of the tree."""
        path = self.tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def commit(self, message):
        """Commits all that is in the tree."""
        self.git("add", "--all")
        self.git("commit", "--quiet", f"--message={message}")
