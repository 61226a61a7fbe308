# SPDX-License-Identifier: GPL-2.0-only
"""Who may sign the series, and what the signed copy is."""

import os
import subprocess
import unittest
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


class Submitter(unittest.TestCase):
    """A person signs, and nobody else."""

    def test_person(self):
        """A person's name and address are taken as git has them."""
        with known_as(*PERSON):
            self.assertEqual(sign.submitter(), PERSON)

    def test_roles(self):
        """Roles and addresses that take no mail are refused."""
        for name, address in (
            kgit.ROLE,
            (kgit.ROLE[0], "ann@kernel.org"),
            ("root", "ann@kernel.org"),
            ("Ann", "root@kernel.org"),
            ("Some maintainers", "maintainers@kernel.org"),
            ("Ann", "1234+ann@users.noreply.forge.org"),
            ("Ann", "no-reply@kernel.org"),
            ("A bot", "1234+helper[bot]@forge.org"),
            ("Ann", "ann@host"),
            ("Ann", "ann@host.localdomain"),
            ("Ann", "ann@series.invalid"),
        ):
            with self.subTest(address), known_as(name, address):
                self.assertRaisesRegex(LabError, "is a role", sign.submitter)

    def test_nobody(self):
        """A user whom git does not know is told what to do."""
        for name, address in (("", ""), ("Ann", ""), ("", "ann@kernel.org")):
            with self.subTest(name + address), known_as(name, address):
                self.assertRaisesRegex(LabError, "git config --global user.name", sign.submitter)


class Host(small.Small):
    """The identity is that of the host's git."""

    def known_to_a_program(self, text):
        """Returns what a program of the lab gets where git's configuration is a text."""
        config, program = self.root / "gitconfig", self.root / "program.py"
        config.write_text(text)
        program.write_text("import os; print(os.environ['KVM_USERFAULT_SUBMITTER'])")
        env = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
        env |= {"GIT_CONFIG_GLOBAL": str(config), "KVM_USERFAULT_SUBMITTER": ""}
        command = [str(LAB / "enter"), str(program), "--host-tools"]
        return subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout

    def test_configured(self):
        """What the user has configured arrives."""
        known = self.known_to_a_program("[user]\nname = Ann\nemail = ann@kernel.org\n")
        self.assertTrue(known.startswith("Ann <ann@kernel.org> "), known)

    def test_not_configured(self):
        """What git would guess from the machine does not."""
        self.assertEqual(self.known_to_a_program(""), "\n")
        self.assertEqual(self.known_to_a_program("[user]\nname = Ann\n"), "\n")


class Signed(small.Small):
    """The signed copy of a series."""

    def setUp(self):
        super().setUp()
        self.replace(sign, CACHE=self.root, REPO=self.repo, SIGNED=self.root / "signed")
        self.stack.enter_context(known_as(*PERSON))

    def messages(self, *options):
        """Returns what the commits of the signed copy say of their authors."""
        folder = self.stack.enter_context(small.scratch())
        export.copy_base(folder)
        kgit.am(folder, patches.patch_files(sign.SIGNED))
        return self.git("log", "--reverse", *options, "base..", tree=folder)

    def test_signature(self):
        """Each patch is the submitter's, whose Signed-off-by is the last line of its message."""
        folder, identity, remarks = sign.sign()
        self.assertEqual((folder, identity, remarks), (sign.SIGNED, PERSON, []))
        line = "%an <%ae>|%(trailers:only,unfold,separator=%x7C)"
        name = f"{PERSON[0]} <{PERSON[1]}>"
        self.assertEqual(
            self.messages(f"--format={line}").splitlines(),
            [f"{name}|Assisted-by: LLM|Signed-off-by: {name}"] * 2,
        )
        self.assertEqual(sign.author(patches.cover_file(folder)), PERSON)
        self.assertIn(f"\n{PERSON[0]} (2):\n", patches.cover_file(folder).read_text())

    def test_entry(self):
        """The entry in MAINTAINERS names the submitter, in patch and snippet alike."""
        folder, _, _ = sign.sign()
        title, rest = small.ENTRY.split("\n", 1)
        # As in MAINTAINERS, a name with a dot is quoted.
        entry = f'{title}\nM:\t"{PERSON[0]}" <{PERSON[1]}>\n{rest}'
        self.assertEqual((folder / "MAINTAINERS.snippet").read_text(), entry)
        added = "".join(f"+{line}\n" for line in entry.splitlines())
        self.assertIn(added, (folder / "0002-MAINTAINERS-Add-an-entry.patch").read_text())

    def test_what_the_repo_holds_stays(self):
        """patches/ has no Signed-off-by afterwards, and nothing but the entry differs."""
        before = patches.digest()
        sign.sign()
        self.assertEqual(patches.digest(), before)
        self.assertEqual(export.check(), [])
        changed = self.messages("--format=", "--name-only").split()
        self.assertEqual(changed, ["arch/arm64/kvm/new.rs", "virt/kvm/kvm_main.c", "MAINTAINERS"])

    def test_patch_of_another_person(self):
        """What another person wrote stays that person's, and is signed by the submitter too."""
        other = "Bo Other <bo@kernel.org>"
        path = self.patches / "0001-KVM-Add-a-file.patch"
        path.write_text(path.read_text().replace("KVM userfault series <series@", f"{other} <x@"))
        path.write_text(path.read_text().replace(" <x@kvm-userfault.invalid>", ""))
        sign.sign()
        authors = self.messages("--format=%an <%ae>").splitlines()
        self.assertEqual(authors, [other, f"{PERSON[0]} <{PERSON[1]}>"])

    def test_checkpatch_objects(self):
        """A signature that checkpatch does not accept is no signature."""
        text = "#!/bin/sh\necho '1: WARNING: From:/Signed-off-by: email address mismatch'\n"
        self.write("scripts/checkpatch.pl", text)
        self.git("update-index", "--assume-unchanged", "scripts/checkpatch.pl")
        self.assertRaisesRegex(LabError, "does not accept", sign.sign)
        self.assertFalse(sign.SIGNED.exists())

    def test_folder_of_something_else(self):
        """A folder that holds other things is refused, and they stay."""
        mine = self.root / "mine/thesis"
        mine.parent.mkdir()
        mine.touch()
        with self.assertRaisesRegex(LabError, "name another folder"):
            sign.sign(mine.parent)
        self.assertEqual(list(mine.parent.iterdir()), [mine])

    def test_signed_again(self):
        """A second copy takes the place of the first, whose patches may have had other names."""
        sign.sign()
        old = sign.SIGNED / "0003-KVM-Gone.patch"
        old.touch()
        sign.sign()
        self.assertFalse(old.exists())
        self.assertEqual(sign.latest(), sign.SIGNED)

    def test_snippet_of_something_else(self):
        """Nothing is signed where MAINTAINERS.snippet and the patch disagree."""
        (self.repo / "MAINTAINERS.snippet").write_text("ANOTHER ENTRY\nS:\tMaintained\n\n")
        self.assertRaisesRegex(LabError, "MAINTAINERS.snippet differs", sign.sign)
        self.assertFalse(sign.SIGNED.exists())

    def test_out_of_date(self):
        """A signed copy of other patches is not taken for these."""
        self.assertIsNone(sign.latest())
        sign.sign()
        (self.patches / "0002-MAINTAINERS-Add-an-entry.patch").unlink()
        self.assertRaisesRegex(LabError, "of other patches", sign.latest)


if __name__ == "__main__":
    unittest.main()
