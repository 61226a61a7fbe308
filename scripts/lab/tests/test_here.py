# SPDX-License-Identifier: GPL-2.0-only
"""Running on a machine as it is: what it says where something is missing, and its report."""

import os
import pathlib
import stat
import subprocess
import unittest
from unittest import mock

import common
import here
import small

REPORT = """\
## kernel
## command line
## mode of KVM
## CPU
## configuration
## tests
ok 1 selftests: kvm: userfault_exits
# # Totals: pass:9 fail:0
## figures
# bench: name=fault value=1.0
## counts
# bench: unmap is not counted: no file
""".splitlines()


class Missing(unittest.TestCase):
    """The script that is run on the machine, with a machine that stands in."""

    def setUp(self):
        scratch = small.scratch()
        self.addCleanup(scratch.cleanup)
        self.bin = pathlib.Path(scratch.name)
        (self.bin / "kvm").mkdir()
        self.program("here", (common.LAB / "here").read_text())

    def program(self, name, text):
        """Writes a program."""
        path = self.bin / name
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def said(self, machine="aarch64", user=0, bench="echo ok"):
        """Returns what it says on a machine of a kind, as a user."""
        self.program("uname", f"#!/bin/sh\necho {machine}\n")
        self.program("id", f"#!/bin/sh\necho {user}\n")
        self.program("kvm/userfault_bench", f"#!/bin/sh\n{bench}\n")
        env = {**os.environ, "PATH": f"{self.bin}:{os.environ['PATH']}"}
        done = subprocess.run(
            [self.bin / "here"], cwd=self.bin, env=env, capture_output=True, text=True, check=False
        )
        self.assertEqual(done.returncode, 1)
        self.assertEqual(len(done.stderr.splitlines()), 2, done.stderr)
        return done.stderr

    def test_machine_and_user(self):
        """Another machine, and another user than root, are told so."""
        self.assertIn("no arm64 machine but x86_64", self.said(machine="x86_64"))
        self.assertIn("run by root", self.said(user=1000))

    @unittest.skipIf(os.path.exists("/dev/kvm"), "here is a /dev/kvm")
    def test_no_kvm(self):
        """A machine without KVM is told so."""
        self.assertIn("no /dev/kvm", self.said())

    def test_other_machine(self):
        """scripts/run --here says what to do on a machine of another kind."""
        with mock.patch.object(here.os, "uname") as uname:
            uname.return_value.machine = "x86_64"
            with self.assertRaisesRegex(common.LabError, "(?s)x86_64.*--pack FILE"):
                here.run([])


class Archive(unittest.TestCase):
    """What is packed."""

    def test_program_that_was_not_built(self):
        """What stands in for a program that could not be built is not packed."""
        with small.scratch() as name:
            installed, folder = pathlib.Path(name, "installed"), pathlib.Path(name, "folder")
            for path in (installed / "kselftest", installed / "kvm", folder):
                path.mkdir(parents=True)
            (installed / "run_kselftest.sh").touch()
            (installed / "kvm/userfault_bench").write_text("#!/bin/sh\n")
            with self.assertRaisesRegex(common.LabError, "userfault_bench could not be built"):
                here.fill(folder, installed)


class Report(unittest.TestCase):
    """What is sent back."""

    def test_complete(self):
        """A report with all parts is fine."""
        self.assertEqual(here.wrong(REPORT), [])

    def test_incomplete(self):
        """A part that is missing, empty or fails is named."""
        lines = [line for line in REPORT if line not in ("## CPU", "# bench: name=fault value=1.0")]
        lines.append("not ok 2 selftests: kvm: userfault_rearm")
        self.assertEqual(
            here.wrong(lines),
            ["no part 'CPU'", "nothing like 'value=' in part 'figures'", lines[-1]],
        )
