# SPDX-License-Identifier: GPL-2.0-only
"""Makes the toolchain: a Debian 13 root file system with the packages of scripts/lab/packages."""

import fcntl
import os
import platform
import re
import shutil
import subprocess

from common import CACHE, LAB, LabError, say, step, wait_for

ROOT = CACHE / "toolchain"
PACKAGES = LAB / "packages"
IS_ROOT = os.geteuid() == 0
GIGABYTES = 15
ARCHITECTURES = {"x86_64": "amd64,arm64", "aarch64": "arm64"}
# Backports are where the list of sources has the release itself.
BACKPORTS = """\
cd "$1"/etc/apt && find . -name "*.list" -exec cat {} + |
sed -n "s/ trixie main/ trixie-backports main/p" >backports &&
mv backports sources.list.d/backports.list
"""


def namespace(*words):
    """Returns a command that runs another in a mount namespace, where an ordinary user is root."""
    user = [] if IS_ROOT else ["--map-root-user", "--map-auto"]
    command = ["unshare", *user, "--mount", "--pid", "--fork", "--kill-child", "--", *words]
    return [str(word) for word in command]


def need(program, package):
    """Installs what the host lacks, or says how to."""
    if not shutil.which(program) and IS_ROOT and shutil.which("apt-get"):
        say(f"installing {package}")
        install = ["install", "-y", "--no-install-recommends", package]
        for words in (["update"], install):
            subprocess.run(["apt-get", "-q", *words], check=False, stdout=2)
    if not shutil.which(program):
        raise LabError(
            f"{program} is missing.\nInstall it (as root, on Debian: apt-get install {package})"
            " and run this again."
        )


def host_apt(*words):
    """Returns what the host's apt says of itself, or nothing where there is none."""
    if not shutil.which(words[0]):
        return ""
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout


def sources():
    """Returns the sources of Debian 13 on the host's own mirror, or nothing."""
    format_ = "$(ORIGIN)/$(LABEL) $(REPO_URI)"
    found = host_apt("apt-get", "indextargets", "--format", format_)
    main, security = (
        re.search(rf"^Debian/{label} (\S+)$", found, re.MULTILINE)
        for label in ("Debian", "Debian-Security")
    )
    suites = [(main, "trixie"), (main, "trixie-updates"), (security, "trixie-security")]
    return "".join(f"deb {mirror[1]} {suite} main\n" for mirror, suite in suites if mirror and main)


def mmdebstrap(target):
    """Makes the root file system."""
    machine = platform.machine()
    if machine not in ARCHITECTURES:
        raise LabError(f"the lab knows x86_64 and aarch64 machines only.\nThis one is {machine}.")
    lines = [line for line in PACKAGES.read_text().splitlines() if not line.startswith("#")]
    settings = host_apt("apt-config", "dump")
    kept = re.findall(r'^Acquire::(?:http|https|ftp|Check)\S* "[^"].*\n', settings, re.MULTILINE)
    options, archives = CACHE / "apt.conf", CACHE / "sources.list"
    options.write_text("".join(kept))
    archives.write_text(sources())
    command = [
        *("mmdebstrap", f"--mode={'root' if IS_ROOT else 'unshare'}", "--variant=minbase"),
        f"--architectures={ARCHITECTURES[machine]}",
        f"--include={','.join(' '.join(lines).split())}",
        *(f"--aptopt={options}", f"--setup-hook={BACKPORTS}", "trixie", target),
        # Without a list mmdebstrap takes its default mirror.
        *([archives] if archives.stat().st_size else []),
    ]
    step("making the toolchain, a Debian 13 root file system of 3 GB", command, "toolchain")


def make():
    """Makes the toolchain in the place of an old one."""
    need("mmdebstrap", "mmdebstrap")
    free = shutil.disk_usage(CACHE).free >> 30
    if free < GIGABYTES:
        raise LabError(
            f"the cache needs {GIGABYTES} GiB and {CACHE} has {free}.\nMake room, or name another"
            " place with --cache."
        )
    new, packed, old = (ROOT.with_name(f"toolchain.{end}") for end in ("new", "tar", "old"))

    def inside(*words):
        """Runs a command that may change files of any owner."""
        subprocess.run(namespace(*words), check=True)

    remove = ["rm", "-rf", "--one-file-system", "--"]
    inside(*remove, new, packed, old)
    # A home may be closed to the user ids that mmdebstrap works with: unpack its archive.
    mmdebstrap(new if IS_ROOT else packed)
    if not IS_ROOT:
        new.mkdir()
        inside("tar", "-C", new, "--exclude=./dev/*", "-xf", packed)
        packed.unlink()
    inside("cp", "--", PACKAGES, new / "etc/kvm-userfault-packages")
    # The old one works until the new one is whole.
    if ROOT.exists():
        ROOT.rename(old)
    new.rename(ROOT)
    inside(*remove, old)


def is_up_to_date():
    """Says whether there is a toolchain with all packages."""
    made = ROOT / "etc/kvm-userfault-packages"
    return made.exists() and made.read_bytes() == PACKAGES.read_bytes()


def bring_up_to_date(file):
    """Makes the toolchain unless it is up to date, when no other run uses it. The file is locked by
    this run, for others to use the cache as well."""
    if not IS_ROOT:
        need("newuidmap", "uidmap")
    if is_up_to_date():
        return
    wait_for(file)
    if not is_up_to_date():
        make()
    fcntl.flock(file, fcntl.LOCK_SH)
