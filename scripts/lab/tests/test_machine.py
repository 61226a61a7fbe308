# SPDX-License-Identifier: GPL-2.0-only
"""How a machine comes to its end."""

import contextlib
import io
from unittest import mock

import machine
import small


class Boot(small.Scratch):
    """Shell scripts stand for machines."""

    def boot(self, script, **limits):
        """Boots such a machine and returns what the command's code is, and what was said."""
        (self.folder / "initrd").touch()
        self.replace(machine, LOGS=self.folder, say=mock.Mock())
        self.replace(machine, qemu=mock.Mock(return_value=["sh", "-c", script]))
        with contextlib.redirect_stderr(io.StringIO()):
            place = "vhe", self.folder, self.folder / "initrd"
            return machine.boot(*place, "command", show=False, **limits)

    def test_end(self):
        """The code is that of the command, and its line is not part of what was said."""
        self.assertEqual(self.boot("echo hello; echo lab: ended with 3"), (3, ["hello"]))

    def test_limits(self):
        """A machine that reaches a limit, or dies, is ended, and what it said is kept."""
        for script, limits, words in (
            ("exec sleep 60", {"timeout": 0.5}, "did not finish in 0.5 seconds"),
            ("exec sleep 60", {"silence": 0.5}, "said nothing for 0.5 seconds"),
            ("exec sleep 60", {"stop": "hel+o"}, "was stopped for what it said"),
            ("exit 1", {}, "stopped before its command ended"),
        ):
            with self.assertRaisesRegex(machine.Unfinished, words) as caught:
                self.boot(f"echo hello; {script}", **limits)
            self.assertEqual(caught.exception.lines, ["hello"])

    def test_talking(self):
        """A machine that is ended while it talks makes no trouble for the thread that listens."""
        with mock.patch("threading.excepthook") as trouble:
            for _ in range(5):
                with self.assertRaises(machine.Unfinished):
                    self.boot("exec yes", stop="y")
        trouble.assert_not_called()
