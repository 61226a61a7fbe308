# SPDX-License-Identifier: GPL-2.0-only
"""Who may sign the series, and what the signed copy is."""

import os
import subprocess
from unittest import mock

import export
import kgit
import patches
import sign
import small
from common import LAB, LabError

PERSON = ("Ann O. Nymous-Ünal", "ann@kernel.org")


def known_as(name, address):
    """Makes the user somebody, as scripts/lab/enter does."""
    words = f"{name} <{address}> 1767225600 +0000" if name or address else ""
    return mock.patch.dict(os.environ, KVM_USERFAULT_SUBMITTER=words)


class Signed(small.Small):
    """The signed copy of a series, by a person, and nobody else, as the host's git knows."""

    def setUp(self):
        super().setUp()
        self.stack.enter_context(known_as(*PERSON))

    def test_who(self):
        """A person is taken as git has them; roles, addresses that take no mail, and a user whom
        git does not know are refused."""
        self.assertEqual(sign.submitter(), PERSON)
        for name, address, words in (
            (*kgit.ROLE, "is a role"),
            (kgit.ROLE[0], "ann@kernel.org", "is a role"),
            ("root", "ann@kernel.org", "is a role"),
            ("Some maintainers", "maintainers@kernel.org", "is a role"),
            ("Ann", "1234+ann@users.noreply.forge.org", "is a role"),
            ("A bot", "1234+helper[bot]@forge.org", "is a role"),
            ("Ann", "ann@host", "is a role"),
            ("Ann", "ann@host.localdomain", "is a role"),
            ("", "", "git config --global user.name"),
            ("Ann", "", "git config --global user.name"),
            ("", "ann@kernel.org", "git config --global user.name"),
        ):
            with self.subTest(name + address), known_as(name, address):
                self.assertRaisesRegex(LabError, words, sign.submitter)

    def test_host(self):
        """What the user has configured arrives at a program of the lab; what git would guess from
        the machine does not."""
        config, program = self.root / "gitconfig", self.root / "program.py"
        program.write_text("import os; print(os.environ['KVM_USERFAULT_SUBMITTER'])")
        env = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
        env |= {"GIT_CONFIG_GLOBAL": str(config), "KVM_USERFAULT_SUBMITTER": ""}
        command = [str(LAB / "enter"), str(program), "--host-tools"]
        for text, start in (
            ("[user]\nname = Ann\nemail = ann@kernel.org\n", "Ann <ann@kernel.org> "),
            ("[user]\nname = Ann\n", "\n"),
        ):
            config.write_text(text)
            done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
            self.assertTrue(done.stdout.startswith(start), done.stdout)

    def test_signature(self):
        """Each patch is the submitter's, but for those of others; a Signed-off-by is the last line
        of its message. Cover letter and entry in MAINTAINERS name the submitter; patches/ stays."""
        other, role = "Bo Other <bo@kernel.org>", "{} <{}>".format(*kgit.ROLE)
        path = self.patches / "0001-KVM-Add-a-file.patch"
        path.write_text(path.read_text().replace(role, other))
        before = patches.digest()
        folder = sign.SIGNED
        self.assertEqual(sign.sign(), (PERSON, []))
        self.assertEqual((patches.digest(), export.check()), (before, []))
        cover = patches.cover_file(folder)
        self.assertEqual(sign.author(cover), PERSON)
        self.assertIn(f"\n{PERSON[0]} (2):\n", cover.read_text())
        # As in MAINTAINERS, a name with a dot is quoted.
        entry = small.ENTRY.replace(role, f'"{PERSON[0]}" <{PERSON[1]}>')
        self.assertEqual((folder / "MAINTAINERS.snippet").read_text(), entry)
        added = "".join(f"+{line}\n" for line in entry.splitlines())
        self.assertIn(added, (folder / "0002-MAINTAINERS-Add-an-entry.patch").read_text())
        self.git("checkout", "--quiet", "--detach", "base")
        kgit.am(self.tree, patches.patch_files(folder))
        form = "--format=%an <%ae>|%(trailers:only,unfold,separator=%x7C)"
        name = f"{PERSON[0]} <{PERSON[1]}>"
        self.assertEqual(
            self.git("log", "--reverse", form, "base..HEAD").splitlines(),
            [f"{author}|Assisted-by: LLM|Signed-off-by: {name}" for author in (other, name)],
        )

    def test_refused(self):
        """A signature that checkpatch does not accept is none, and nothing is signed where repo and
        patches disagree."""
        (self.repo / "MAINTAINERS.snippet").write_text("ANOTHER ENTRY\nS:\tMaintained\n\n")
        self.assertRaisesRegex(LabError, "MAINTAINERS.snippet differs", sign.sign)
        (self.repo / "MAINTAINERS.snippet").write_text(small.ENTRY)
        text = "#!/bin/sh\necho '1: WARNING: From:/Signed-off-by: email address mismatch'\n"
        self.write("scripts/checkpatch.pl", text)
        self.git("update-index", "--assume-unchanged", "scripts/checkpatch.pl")
        self.assertRaisesRegex(LabError, "does not accept", sign.sign)
        self.assertFalse(sign.SIGNED.exists())

    def test_signed_again(self):
        """A second copy takes the place of the first, and one of other patches is not taken."""
        self.assertIsNone(sign.latest())
        sign.sign()
        old = sign.SIGNED / "0003-KVM-Gone.patch"
        old.touch()
        sign.sign()
        self.assertEqual((old.exists(), sign.latest()), (False, sign.SIGNED))
        (self.patches / "cover-entry.txt").write_text("Subject: Another\n\nText\n")
        self.assertRaisesRegex(LabError, "of other patches", sign.latest)
