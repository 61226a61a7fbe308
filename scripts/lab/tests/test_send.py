# SPDX-License-Identifier: GPL-2.0-only
"""The mails that b4 makes of the series, and that nothing is sent."""

import contextlib
import email
import io
import sys
from unittest import mock

import common
import export
import kgit
import patches
import send
import series
import small
from common import LabError
from test_sign import known_as


def run(*words):
    """Runs scripts/series and returns (exit code, what it printed)."""
    out = io.StringIO()
    argv = mock.patch.object(sys, "argv", ["series", *map(str, words)])
    with argv, contextlib.redirect_stdout(out):
        return series.program(), out.getvalue()


class Send(small.Small):
    """A dry run with b4 itself, and stand-ins for the kernel's scripts."""

    def setUp(self):
        super().setUp()
        folder = self.root / "send"
        self.mails = folder / "mails"
        self.replace(send, CLONE=folder / "linux", HOME=folder / "home", MAILS=self.mails)
        self.steps = self.stack.enter_context(mock.patch.object(send, "step", wraps=send.step))

    def read(self):
        """Returns the mails in order."""
        paths = sorted(self.mails.glob("*.eml"))
        return [email.message_from_bytes(path.read_bytes()) for path in paths]

    def state(self):
        """Returns what a dry run leaves alone: the tree's branches and settings, the patches."""
        config = (self.tree / ".git/config").read_text()
        return self.git("for-each-ref"), config, patches.digest()

    def test_whole(self):
        """A mail a patch and one for the cover letter, a thread, to whom get_maintainer says; b4
        send writes them and has no server to send them to; what is lost or changed is noticed. A
        second run, even if the first was killed, takes the patches as they are by then."""
        before, whole = self.state(), send.choose(self.patches, None)
        code, text = run("send", "--dry-run")
        self.assertEqual((code, "3 mails from" in text, self.state()), (0, True, before), text)
        cover, *others = self.read()
        self.assertIn("[PATCH RFC 0/2] A cover letter whose", cover["Subject"].replace("\n", ""))
        self.assertIn("Its text.\n\n---\n", cover.get_payload())
        for mail in (cover, *others):
            self.assertEqual(mail["To"], "Somebody <somebody@kernel.org>")
            self.assertEqual(mail["Cc"], "kvm@vger.kernel.org")
        self.assertEqual({mail["In-Reply-To"] for mail in others}, {cover["Message-Id"]})
        # The base is no commit that anybody else has.
        self.assertNotIn("base-commit", cover.get_payload())

        (call,) = [call for call in self.steps.mock_calls if "send" in call.args[1]]
        self.assertIn("--output-dir", call.args[1])
        words = ["git", "config", "sendemail.smtpserver"]
        server = common.output(words, cwd=self.root, env=call.kwargs["env"])
        self.assertEqual(server, "/bin/false\n")

        env, mails = send.environment(kgit.ROLE), sorted(self.mails.glob("*.eml"))
        with self.assertRaisesRegex(LabError, "are not the series"):
            send.prove(whole, mails[:2], env)
        text = mails[1].read_text()
        mails[1].write_text(text.replace("Assisted-by: LLM\n", "Assisted-by: Somebody\n"))
        with self.assertRaisesRegex(LabError, "are not the series"):
            send.prove(whole, mails, env)

        small.half_am(send.CLONE)
        (send.CLONE / "Makefile").write_text("half")
        self.git("commit", "--quiet", "--allow-empty", "--amend", "--message=MAINTAINERS: Another")
        export.write()
        (self.patches / "parts").write_text(small.PARTS.replace("Add an entry", "Another"))
        self.assertEqual(run("send", "--dry-run")[0], 0)
        again = self.read()
        self.assertEqual((len(again), again[0]["X-Change-ID"]), (3, cover["X-Change-ID"]))
        self.assertIn("MAINTAINERS: Another", again[2]["Subject"])

    def test_signed(self):
        """The signed copy goes first, in the name of who signed it; a patch that is not signed, in
        a series that is, is remarked upon."""
        with known_as("Ann Person", "ann@kernel.org"):
            folder = self.root / "signed"
            run("sign")
        code, text = run("send", "--dry-run")
        self.assertEqual(code, 0)
        self.assertIn("'b4 send' is yours to run", text)
        for mail in self.read():
            self.assertEqual(mail["From"], "Ann Person <ann@kernel.org>")
        path = folder / "0002-MAINTAINERS-Add-an-entry.patch"
        path.write_text(path.read_text().replace("Signed-off-by", "Seen-by"))
        code, text = run("send", "--dry-run", "--from", folder)
        self.assertEqual((code, text.count("Missing Signed-off-by")), (1, 1), text)

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
