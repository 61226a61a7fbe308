# SPDX-License-Identifier: GPL-2.0-only
"""The series on three real kernels: it fits two, and of the third the hunks are named.

Not among the quick tests, as it makes git remotes of three source packages of
Debian: scripts/lab/enter scripts/lab/tests/real_sources.py
"""

import contextlib
import io
import pathlib
import re
import sys
import unittest
from unittest import mock

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import base
import kgit
import patches
import track
import tree
from common import CACHE, lock


def find(release):
    """Returns the source package of a release as (name, version, apt's options), or nothing."""
    wanted = release.replace("-rc", "~rc")
    for options in ((), base.development_archive()):
        base.apt_update(*options)
        for name, version in base.candidates(*options):
            if version.split("-")[0] == wanted:
                return name, version, options
    return None


def make_remote(release):
    """Returns a git repository whose branch 'next' is a release, made once."""
    remote = CACHE / "releases" / release
    with mock.patch.object(kgit, "TREE", remote):
        if kgit.tip("next"):
            return remote
    package = find(release)
    if not package:
        raise unittest.SkipTest(f"{release} has left the archive")
    name, version, options = package
    path = base.SOURCES / f"{name}_{version}.deb"
    base.download(name, version, path, *options)
    remote.mkdir(parents=True, exist_ok=True)
    kgit.git("init", "--quiet", tree=remote)
    kgit.borrow_objects(remote)
    with mock.patch.object(kgit, "TREE", remote):
        kgit.git("branch", "--force", "next", tree.commit_source(path, name, version))
    return remote


class RealSources(unittest.TestCase):
    """What scripts/series track says of a release."""

    def track(self, release):
        """Tracks a release and returns (exit code, what was printed)."""
        out = io.StringIO()
        with lock("linux"):
            remote = make_remote(release)
            with contextlib.redirect_stdout(out):
                code, _ = track.track(str(remote), "next", dry_run=True)
        print(f"\n$ scripts/series track --remote {remote} --branch next --dry-run")
        print(out.getvalue())
        return code, out.getvalue()

    def states(self, text):
        """Returns what became of the patches, as a set."""
        found = re.findall(r"^(ok|3-way|7.3-rc7|CONFLICT) +\d+ ", text, re.MULTILINE)
        self.assertEqual(len(found), len(patches.patch_files()))
        return set(found)

    def test_7_3_4(self):
        """Each patch applies to 7.3.4 as it is."""
        code, text = self.track("7.3.4")
        self.assertEqual((code, self.states(text)), (0, {"ok"}))

    def named(self, text):
        """Returns the hunks that are named, as (file, function)."""
        return re.findall(r"^ {13}(\S.*?)(?: @@ .*? @@ (.*))?$", text, re.MULTILINE)

    def test_7_3_rc7(self):
        """On 7.3-rc7 the series fits with the variant of the patch that binds guest_memfd."""
        code, text = self.track("7.3-rc7")
        self.assertEqual((code, self.states(text)), (0, {"ok", "3-way", "7.3-rc7"}))
        self.assertRegex(text, "(?m)^7.3-rc7 +4 KVM: guest_memfd: Keep the binding")

    def test_7_2_12(self):
        """On 7.2.12 the hunks that need a hand are named, and no other."""
        code, text = self.track("7.2.12")
        self.assertEqual((code, self.states(text)), (1, {"ok", "CONFLICT"}))
        named = self.named(text)
        expected = {
            ("include/uapi/linux/kvm.h", "struct kvm_enable_cap {"),
            ("virt/kvm/guest_memfd.h", ""),
            ("virt/kvm/kvm_main.c", "static void kvm_commit_memory_region(struct kvm *kvm,"),
            ("virt/kvm/kvm_main.c", "static int kvm_set_memory_region(struct kvm *kvm,"),
            ("arch/arm64/kvm/mmu.c",
             "static int user_mem_abort(const struct kvm_s2_fault_desc *s2fd)"),
            ("arch/arm64/kvm/nested.c", "int kvm_handle_vncr_abort(struct kvm_vcpu *vcpu)"),
        }  # fmt: skip
        self.assertEqual(set(named), expected)
        self.assertEqual(len(named), len(expected))
        for why in (
            "-#define KVM_CAP_ARM_PMU_V3_STRICT 251",
            "7.2.12 does not have this file",
            "kvm_is_write_fault(s2fd->vcpu)",
            "atomic_inc(&vcpu->kvm->arch.vncr_tlb_count);",
        ):
            self.assertIn(why, text)


if __name__ == "__main__":
    unittest.main()
