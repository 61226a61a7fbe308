# SPDX-License-Identifier: GPL-2.0-only
"""Running on a machine as it is: what it says where something is missing, and its report."""

import os
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
# selftests: kvm: userfault_exits
# ok 1 load_exits
# ok 2 sve_exits # SKIP KVM has no SVE here
ok 1 selftests: kvm: userfault_exits
# # Totals: pass:9 fail:0
## figures
# bench: name=fault value=1.0
## counts
# bench: unmap is not counted: no file
""".splitlines()


class Here(small.Scratch):
    """The script that is run on the machine, with a machine that stands in, and its archive."""

    def said(self, machine="aarch64", user=0):
        """Returns what it says on a machine of a kind, as a user."""
        for name, text in (
            ("here", (common.LAB / "here").read_text()),
            ("uname", f"#!/bin/sh\necho {machine}\n"),
            ("id", f"#!/bin/sh\necho {user}\n"),
            ("kvm/userfault_bench", "#!/bin/sh\necho ok\n"),
        ):
            path = self.folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
            path.chmod(0o755)
        env = {**os.environ, "PATH": f"{self.folder}:{os.environ['PATH']}"}
        command = [self.folder / "here"]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        self.assertEqual((done.returncode, len(done.stderr.splitlines())), (1, 2), done.stderr)
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

    def test_program_that_was_not_built(self):
        """What stands in for a program that could not be built is not packed."""
        installed, folder = self.folder / "installed", self.folder / "folder"
        for path in (installed / "kselftest", installed / "kvm", folder):
            path.mkdir(parents=True)
        (installed / "run_kselftest.sh").touch()
        (installed / "kvm/userfault_bench").write_text("#!/bin/sh\n")
        with self.assertRaisesRegex(common.LabError, "userfault_bench could not be built"):
            here.fill(folder, installed)

    def test_report(self):
        """A report with all parts is fine; a part that is missing, empty or fails is named."""
        self.assertEqual(here.wrong(REPORT, "nofwb", "4k"), [])
        lines = [line for line in REPORT if line not in ("## CPU", "# bench: name=fault value=1.0")]
        lines.append("not ok 2 selftests: kvm: userfault_rearm")
        wrong = ["no part 'CPU'", "nothing like 'value=' in part 'figures'", lines[-1]]
        self.assertEqual(here.wrong(lines, "nofwb", "4k"), wrong)

    def test_skip(self):
        """So is a test that was skipped where it may not."""
        wrong = "userfault_exits sve_exits was skipped, and may not be: KVM has no SVE here"
        self.assertEqual(here.wrong(REPORT, "vhe", "4k"), [wrong])
