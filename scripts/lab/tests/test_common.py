# SPDX-License-Identifier: GPL-2.0-only
"""Whatever goes wrong, the user gets two lines: what it is, and what to do."""

import argparse
import contextlib
import errno
import io
import os
import pathlib
import signal
import subprocess
import sys
from unittest import mock

import bench
import common
import mutants
import oracle
import overlay
import run
import series
import small
import test


class Errors(small.Scratch):
    """What a program of the lab says when something is in its way, and what that may leave."""

    def setUp(self):
        super().setUp()
        self.replace(common, CACHE=self.folder)
        self.replace(overlay, CACHE=self.folder)

    def message(self, function):
        """Returns the two lines that a program ends with that does this."""
        with self.assertRaises(SystemExit) as caught:
            common.main(function)
        first, second = caught.exception.code.splitlines()
        return first, second

    def test_errors(self):
        """A full file system and any other error are named, with the file."""
        full = mock.Mock(side_effect=OSError(errno.ENOSPC, "No space", "/cache/log"))
        self.assertEqual(self.message(full)[0], "error: there is no room left in /cache/log.")
        nowhere = self.message(lambda: open("/proc/1/nowhere", encoding="ascii"))
        self.assertEqual(nowhere[0], "error: /proc/1/nowhere: No such file or directory.")
        failed = self.message(lambda: subprocess.run(["false"], check=True))
        self.assertEqual(failed[0], "error: Command '['false']' returned non-zero exit status 1.")

    def test_entering(self):
        """What is in the way of entering the toolchain is named as anywhere else."""
        words = [sys.executable, common.LAB / "inside.py", "/proc/1/nowhere", "/", "program"]
        env = os.environ | {"KVM_USERFAULT_CACHE": "/proc/1/nowhere"}
        done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
        self.assertEqual((done.returncode, len(done.stderr.splitlines())), (1, 2), done.stderr)

    def test_missing_tool(self):
        """A tool that is not there is named, by whatever way it was to be run."""
        for function in (common.output, common.succeeds, subprocess.run):
            first, second = self.message(lambda: function(["no-such-git", "status"]))
            self.assertEqual(first, "error: no-such-git is missing.")
            self.assertIn("scripts/lab/packages", second)

    def test_kill(self):
        """A program that is told to end, or interrupted, ends without a traceback."""
        for which, code in ((signal.SIGTERM, 143), (signal.SIGINT, 1)):
            # A shell's background job, like this one maybe, ignores SIGINT.
            body = (
                "import common, os, signal\n"
                "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
                f"common.main(lambda: os.kill(os.getpid(), {which:d}))"
            )
            words = [sys.executable, "-c", body]
            done = subprocess.run(
                words, cwd=common.LAB, capture_output=True, text=True, check=False
            )
            self.assertEqual((done.returncode, "Traceback" in done.stderr), (code, False))

    def test_times(self):
        """Nothing is said of a step that was never run, and of another the longest time."""
        for seconds in (3.9, 135.2, 4.1):
            common.took("building it", seconds)
        self.assertEqual(common.took("building it"), "so far up to 135 s, ")
        self.assertEqual(common.took("building that"), "")

    def test_file_is_old_or_new(self):
        """A write that fails in the middle leaves the file as it was."""
        path = self.folder / "file"
        common.write_if_changed(path, "old")
        with mock.patch.object(pathlib.Path, "replace", side_effect=KeyboardInterrupt):
            with contextlib.suppress(KeyboardInterrupt):
                common.write_if_changed(path, "new")
        self.assertEqual(path.read_text(), "old")
        self.assertEqual(list(self.folder.iterdir()), [path], "what was written is gone")
        common.write_if_changed(path, "new")
        self.assertEqual(path.read_text(), "new")

    def test_overlay_of_a_killed_run(self):
        """What a killed run has left goes, and what a living one uses stays."""
        living, in_use = overlay.new_folder()
        dead, mark = overlay.new_folder()
        os.close(mark)
        third, other = overlay.new_folder()
        self.assertEqual((living.exists(), dead.exists(), third.exists()), (True, False, True))
        os.close(in_use)
        os.close(other)


class Options(small.Scratch):
    """What a program takes as its options."""

    def test_abbreviations(self):
        """No program takes a part of an option's name, on which scripts/lab/enter would not act."""
        words, others = ["--delete", "--cach=x", "--forc"], ["--delete-cache", "--cache=x", "apply"]
        for module in (bench, mutants, oracle, run, series, test):
            parse = mock.Mock(side_effect=SystemExit)
            with mock.patch.object(argparse.ArgumentParser, "parse_args", lambda own: parse(own)):
                self.assertRaises(SystemExit, module.program)
            (parser,) = parse.call_args.args
            unknown = parser.parse_known_args([*words[:2], *others, words[2]])[1]
            self.assertLessEqual(set(words), set(unknown), parser.prog)
            self.assertTrue(set(others[:2]).isdisjoint(unknown), parser.prog)

    def test_commands(self):
        """Each command runs its own program, from any directory, and by a link from elsewhere."""
        for name in ("bench", "mutants", "run", "series", "test"):
            (self.folder / name).symlink_to(common.REPO / "scripts" / name)
            text = common.output([f"./{name}", "--help"], cwd=self.folder)
            self.assertTrue(text.startswith(f"usage: scripts/{name} "), text)

    def test_options_of_others(self):
        """What would be ignored without another option, or beside it, is an error."""
        self.replace(run, here=mock.Mock(), tree=mock.Mock(), run_one=mock.Mock())
        for words in (
            ["--pack=file"],
            ["--full"],
            ["--here", "--full", "--pack=file"],
            ["--native", "--machine=vhe"],
            ["--native", "--", "id"],
        ):
            with mock.patch.object(sys, "argv", ["run", *words]), self.subTest(words):
                with contextlib.redirect_stderr(io.StringIO()) as said:
                    self.assertRaises(SystemExit, run.program)
                self.assertIn("error: ", said.getvalue())
