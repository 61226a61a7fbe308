# SPDX-License-Identifier: GPL-2.0-only
"""What scripts/lab/newcomer does of README.md and the pages on a new machine."""

import os
import re
import shutil

import common
import small


class Follow(small.Small):
    """The commands, in the place of which are scripts that say how they were called."""

    def test_readme(self):
        """Each is run, or left out for a reason, and the patches are applied to a tree."""
        cache, root = self.root / "home/.cache/kvm-userfault", common.LAB.parents[1]
        cache.mkdir(parents=True)
        (cache / "linux").symlink_to(self.tree)
        shutil.copytree(root / "Documentation", self.repo / "Documentation")
        shutil.copy(root / "README.md", self.repo)
        text = "".join(path.read_text() for path in self.repo.glob("**/*.md"))
        for name in re.findall(r"(?m)^    (scripts/[\w/-]*\w)(?![\w/-])", text):
            path = self.repo / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text('#!/bin/sh\necho "ran ${0##*/} $*"\ncat >&2\n')
            path.chmod(0o755)
        env = os.environ | {"HOME": str(self.root / "home")}
        text = common.output(["sh", common.LAB / "follow"], cwd=self.repo, env=env)
        lines = text.splitlines()
        tree = f"run --tree {self.root}/home/linux"
        track = f"series track --remote {self.root}/home/linux --branch my-base --dry-run"
        of_pages = track, "run --vmm restore -- vcpu", "mutants --list"
        for words in ("run ", "run --debug", tree, "series sign", *of_pages):
            self.assertIn(f"ran {words}", lines)
        self.assertIn("$ scripts/run --shell    # left out: it waits for somebody", lines)
        left_out = r"(?m)^ran (test|mutants|bench|config.*|.*--delete-cache|.*--here) ?$"
        self.assertNotRegex(text, left_out)
        self.assertNotIn("/path/to", text)
        self.assertRegex(lines[-1], "[0-9a-f]{7} MAINTAINERS: Add an entry")
