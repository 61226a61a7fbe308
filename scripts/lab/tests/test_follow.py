# SPDX-License-Identifier: GPL-2.0-only
"""What scripts/lab/newcomer does of README.md on a new machine."""

import os
import re
import shutil

import common
import small


class Follow(small.Small):
    """The commands, in the place of which are scripts that say how they were called."""

    def test_readme(self):
        """Each is run, or left out for a reason, and the patches are applied to a tree."""
        cache, readme = self.root / "home/.cache/kvm-userfault", common.LAB.parents[1] / "README.md"
        cache.mkdir(parents=True)
        (cache / "linux").symlink_to(self.tree)
        shutil.copy(readme, self.repo)
        for name in re.findall(r"(?m)^    (scripts/[\w/-]*\w)(?![\w/-])", readme.read_text()):
            path = self.repo / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text('#!/bin/sh\necho "ran ${0##*/} $*"\ncat >&2\n')
            path.chmod(0o755)
        env = os.environ | {"HOME": str(self.root / "home")}
        text = common.output(["sh", common.LAB / "follow"], cwd=self.repo, env=env)
        lines = text.splitlines()
        tree = f"run --tree {self.root}/home/linux"
        for words in ("run ", "run --debug", tree, "series sign", "series send --dry-run"):
            self.assertIn(f"ran {words}", lines)
        self.assertIn("$ scripts/run --shell    # left out: it waits for somebody", lines)
        self.assertNotRegex(text, r"ran (test|mutants|bench|config|.*--delete-cache|.*--here$)")
        self.assertNotIn("/path/to", text)
        self.assertRegex(lines[-1], "[0-9a-f]{7} MAINTAINERS: Add an entry")
