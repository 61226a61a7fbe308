# SPDX-License-Identifier: GPL-2.0-only
"""Whatever goes wrong, the user gets two lines: what it is, and what to do."""

import contextlib
import errno
import os
import pathlib
import signal
import subprocess
import sys
import unittest
from unittest import mock

import common
import overlay
import small


class Errors(unittest.TestCase):
    """What a program of the lab says when something is in its way."""

    def message(self, function):
        """Returns what a program ends with that does this."""
        with self.assertRaises(SystemExit) as caught:
            common.main(function)
        return caught.exception.code

    def failing(self, error):
        """Returns a function that fails so."""
        return mock.Mock(side_effect=error)

    def test_full_file_system(self):
        """A full file system is named, wherever it was noticed."""
        text = self.message(self.failing(OSError(errno.ENOSPC, "No space", "/cache/log")))
        self.assertEqual(text.splitlines()[0], "error: there is no room left in /cache/log.")
        self.assertEqual(len(text.splitlines()), 2)

    def test_missing_tool(self):
        """A tool that is not there is named, by whatever way it was to be run."""
        for function in (
            lambda: common.output(["no-such-git", "status"]),
            lambda: common.succeeds(["no-such-git", "status"]),
            lambda: subprocess.run(["no-such-git"], check=False),
        ):
            text = self.message(function)
            self.assertEqual(text.splitlines()[0], "error: no-such-git is missing.")
            self.assertIn("scripts/lab/packages", text.splitlines()[1])

    def test_other_errors(self):
        """Any other error of the system has its file and its words."""
        text = self.message(lambda: open("/proc/1/nowhere", encoding="ascii"))
        self.assertEqual(text.splitlines()[0], "error: /proc/1/nowhere: No such file or directory.")
        self.assertEqual(len(text.splitlines()), 2)

    def test_kill(self):
        """A program that is told to end, or interrupted, ends without a traceback."""
        for which, code in ((signal.SIGTERM, 143), (signal.SIGINT, 1)):
            body = "import os; os.kill(os.getpid(), %d)" % which
            # A shell's background job, like this one maybe, ignores SIGINT.
            heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
            body = f"import common\n{heed}\ndef f():\n {body}\ncommon.main(f)"
            words = [sys.executable, "-c", body]
            done = subprocess.run(
                words, cwd=common.LAB, capture_output=True, text=True, check=False
            )
            self.assertEqual((done.returncode, "Traceback" in done.stderr), (code, False))


class Times(unittest.TestCase):
    """What a step is said to take is what it took."""

    def test_times(self):
        """Nothing is said of a step that was never run, and of another the last time."""
        with small.scratch() as name, mock.patch.object(common, "CACHE", pathlib.Path(name)):
            self.assertEqual(common.took("building it"), "")
            common.took("building it", 135.2)
            self.assertEqual(common.took("building it"), "2 min 15 s the last time, ")
            self.assertEqual(common.took("building that"), "")


class Writing(unittest.TestCase):
    """What an interruption may leave."""

    def setUp(self):
        scratch = small.scratch()
        self.addCleanup(scratch.cleanup)
        self.folder = pathlib.Path(scratch.name)

    def test_file_is_old_or_new(self):
        """A write that fails in the middle leaves the file as it was."""
        path = self.folder / "file"
        common.write_if_changed(path, "old")
        with mock.patch.object(pathlib.Path, "replace", side_effect=KeyboardInterrupt):
            with contextlib.suppress(KeyboardInterrupt):
                common.write_if_changed(path, "new")
        self.assertEqual(path.read_text(), "old")
        common.write_if_changed(path, "new")
        self.assertEqual(path.read_text(), "new")

    def test_overlay_of_a_killed_run(self):
        """What a killed run has left goes, and what a living one uses stays."""
        for module in (overlay, common):
            patcher = mock.patch.object(module, "CACHE", self.folder)
            patcher.start()
            self.addCleanup(patcher.stop)
        living, in_use = overlay.new_folder()
        dead, mark = overlay.new_folder()
        os.close(mark)
        third, other = overlay.new_folder()
        self.assertEqual((living.exists(), dead.exists(), third.exists()), (True, False, True))
        os.close(in_use)
        os.close(other)
