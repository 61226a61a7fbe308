# SPDX-License-Identifier: GPL-2.0-only
"""The mails that b4 makes of the series, and that nothing is sent."""

import contextlib
import email
import io
import sys
import unittest
from unittest import mock

import common
import export
import kgit
import patches
import send
import series
import sign
import small
from common import LabError


def run(*words):
    """Runs scripts/series and returns (exit code, what it printed)."""
    out = io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["series", *map(str, words)]),
        contextlib.redirect_stdout(out),
    ):
        return series.program(), out.getvalue()


class Send(small.Small):
    """A dry run with b4 itself, and stand-ins for the kernel's scripts."""

    def setUp(self):
        super().setUp()
        folder = self.root / "send"
        self.mails = folder / "mails"
        self.replace(send, PATCHES=self.patches, CLONE=folder / "linux", HOME=folder / "home")
        self.replace(send, MAILS=self.mails, say=mock.Mock())
        self.replace(sign, SIGNED=self.root / "signed")
        self.steps = self.stack.enter_context(mock.patch.object(send, "step", wraps=send.step))

    def read(self):
        """Returns the mails in order."""
        paths = sorted(self.mails.glob("*.eml"))
        return [email.message_from_bytes(path.read_bytes()) for path in paths]

    def sign(self):
        """Signs the series."""
        words = "Ann Person <ann@kernel.org> 1767225600 +0000"
        self.replace(sign, CACHE=self.root, REPO=self.repo)
        with mock.patch.dict("os.environ", KVM_USERFAULT_SUBMITTER=words):
            run("sign")

    def test_again(self):
        """A second run, even if the first was killed, takes the patches as they are by then."""
        run("send", "--dry-run")
        first = self.read()[0]["X-Change-ID"]
        (send.CLONE / ".git/rebase-apply").mkdir()
        (send.CLONE / ".git/rebase-apply/applying").touch()
        (send.CLONE / "Makefile").write_text("half")
        self.git("commit", "--quiet", "--allow-empty", "--amend", "--message=MAINTAINERS: Another")
        export.write()
        (self.patches / "parts").write_text(small.PARTS.replace("Add an entry", "Another"))
        self.assertEqual(run("send", "--dry-run")[0], 0)
        self.assertEqual(len(self.read()), 3)
        self.assertIn("MAINTAINERS: Another", self.read()[2]["Subject"])
        self.assertEqual(self.read()[0]["X-Change-ID"], first)

    def test_signed(self):
        """The signed copy goes first, in the name of who signed it, as a whole and by parts."""
        self.sign()
        code, text = run("send", "--dry-run")
        self.assertEqual(code, 0)
        self.assertIn("'b4 send' is yours to run", text)
        for mail in self.read():
            self.assertEqual(mail["From"], "Ann Person <ann@kernel.org>")
        (self.patches / "cover-entry.txt").write_text("Subject: Another\n\nText\n")
        with self.assertRaisesRegex(LabError, "signed copy of other patches"):
            run("send", "--dry-run", "--part", "entry")

    def test_not_signed_by_one_patch(self):
        """A patch that is not signed, in a series that is, is remarked upon."""
        folder = self.root / "other"
        folder.mkdir()
        for path in self.patches.glob("0*"):
            text = path.read_text().replace("KVM userfault series <series@kvm-userfault.invalid>",
                                            "Ann Person <ann@kernel.org>")  # fmt: skip
            (folder / path.name).write_text(text)
        code, text = run("send", "--dry-run", "--from", folder)
        self.assertEqual((code, text.count("Missing Signed-off-by")), (1, 2), text)

    def test_part(self):
        """A part has its own cover letter, and names the patches that it needs by their ids."""
        code, text = run("send", "--dry-run", "--part", "entry")
        self.assertEqual((code, "1 mails from" in text), (0, True), text)
        self.mails = self.mails / "entry"
        (mail,) = self.read()
        self.assertEqual(mail["Subject"], "[PATCH] MAINTAINERS: Add an entry")
        self.assertIn("Why the entry.\n", mail.get_payload())
        first = (self.patches / "0001-KVM-Add-a-file.patch").read_text()
        needed = common.output(["git", "patch-id", "--stable"], input=first).split()[0]
        self.assertIn(f"\nprerequisite-patch-id: {needed}\n", mail.get_payload())
        self.assertEqual(mail.get_payload().count("prerequisite-patch-id"), 1)

    def test_refused(self):
        """A part or a series that is not there, and a send without --dry-run, are errors."""
        for words, text in (
            (["--dry-run", "--part", "rust"], "no part 'rust'; the parts are core, entry"),
            (["--dry-run", "--from", self.root], "does not hold patches"),
            ([], "nothing here sends mail"),
        ):
            with self.assertRaisesRegex(LabError, text):
                run("send", *words)
        self.assertEqual(self.steps.mock_calls, [])


class DryRun(unittest.TestCase):
    """What one dry run has left."""

    @classmethod
    def setUpClass(cls):
        cls.setup = Send()
        cls.addClassCleanup(cls.setup.doCleanups)
        cls.setup.setUp()
        cls.before = cls.state()
        cls.whole = send.choose(cls.setup.patches, None)
        cls.code, cls.text = run("send", "--dry-run")

    @classmethod
    def state(cls):
        """Returns what a dry run leaves alone: the tree's branches and settings, the patches."""
        config = (cls.setup.tree / ".git/config").read_text()
        return cls.setup.git("for-each-ref"), config, patches.digest()

    def test_mails(self):
        """A mail a patch and one for the cover letter, a thread, to whom get_maintainer says."""
        self.assertEqual((self.code, "3 mails from" in self.text), (0, True), self.text)
        cover, *patches = self.setup.read()
        self.assertIn("[PATCH RFC 0/2] A cover letter whose", cover["Subject"].replace("\n", ""))
        self.assertIn("Its text.\n\n---\n", cover.get_payload())
        for mail in (cover, *patches):
            self.assertEqual(mail["To"], "Somebody <somebody@kernel.org>")
            self.assertEqual(mail["Cc"], "kvm@vger.kernel.org")
        self.assertEqual({mail["In-Reply-To"] for mail in patches}, {cover["Message-Id"]})
        # The base is no commit that anybody else has.
        self.assertNotIn("base-commit", cover.get_payload())

    def test_nothing_is_sent(self):
        """b4 send writes the mails and has no server to send them to; tree and patches stay."""
        self.assertEqual((self.state(), export.check()), (self.before, []))
        calls = [call for call in self.setup.steps.mock_calls if "send" in call.args[1]]
        self.assertEqual(len(calls), 1)
        self.assertIn("--output-dir", calls[0].args[1])
        environment = calls[0].kwargs["env"]
        config = {
            environment[f"GIT_CONFIG_KEY_{number}"]: environment[f"GIT_CONFIG_VALUE_{number}"]
            for number in range(int(environment["GIT_CONFIG_COUNT"]))
        }
        self.assertEqual(config["sendemail.smtpserver"], "/bin/false")

    def test_mail_that_is_lost_or_changed(self):
        """Mails that are not the series are noticed, whatever b4 am makes of them."""
        env = send.environment(kgit.ROLE)
        mails = sorted(self.setup.mails.glob("*.eml"))
        with self.assertRaisesRegex(LabError, "are not the series"):
            send.prove(self.whole, mails[:2], env)
        text = mails[1].read_text()
        mails[1].write_text(text.replace("Assisted-by: LLM\n", "Assisted-by: Somebody\n"))
        with self.assertRaisesRegex(LabError, "are not the series"):
            send.prove(self.whole, mails, env)
        mails[1].write_text(text)
        send.prove(self.whole, mails, env)
