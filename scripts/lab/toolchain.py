# SPDX-License-Identifier: GPL-2.0-only
"""Makes the toolchain: a Debian 13 root file system with the packages of scripts/lab/packages."""

import fcntl
import os
import platform
import re
import shutil
import subprocess
import time

from common import CACHE, LAB, LOGS, LabError, say, tail, took

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
    return ["unshare", *user, "--mount", "--pid", "--fork", "--kill-child", "--", *words]


def need(program, package):
    """Installs what the host lacks, or says how to."""
    if shutil.which(program):
        return
    if IS_ROOT and shutil.which("apt-get"):
        say(f"installing {package}")
        install = ["apt-get", "-q", "install", "-y", "--no-install-recommends", package]
        for command in (["apt-get", "-q", "update"], install):
            subprocess.run(command, check=False, stdout=2)
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
    found = host_apt("apt-get", "indextargets", "--format", format_).splitlines()
    mirrors = dict(line.split(" ", 1) for line in reversed(found) if line.count(" ") == 1)
    main, security = mirrors.get("Debian/Debian"), mirrors.get("Debian/Debian-Security")
    if not main:
        return ""
    suites = [(main, "trixie"), (main, "trixie-updates")]
    suites += [(security, "trixie-security")] if security else []
    return "".join(f"deb {mirror} {suite} main\n" for mirror, suite in suites)


def mmdebstrap(target):
    """Makes the root file system."""
    machine = platform.machine()
    if machine not in ARCHITECTURES:
        raise LabError(f"the lab knows x86_64 and aarch64 machines only.\nThis one is {machine}.")
    lines = [line for line in PACKAGES.read_text().splitlines() if not line.startswith("#")]
    settings = host_apt("apt-config", "dump")
    kept = re.findall(r'^Acquire::(?:http|https|ftp|Check)\S* "[^"].*$', settings, re.MULTILINE)
    (CACHE / "apt.conf").write_text("".join(f"{line}\n" for line in kept))
    (CACHE / "sources.list").write_text(sources())
    command = [
        *("mmdebstrap", f"--mode={'root' if IS_ROOT else 'unshare'}", "--variant=minbase"),
        f"--architectures={ARCHITECTURES[machine]}",
        f"--include={','.join(' '.join(lines).split())}",
        f"--aptopt={CACHE / 'apt.conf'}",
        f"--setup-hook={BACKPORTS}",
        *("trixie", target),
        # Without a list mmdebstrap takes its default mirror.
        *([CACHE / "sources.list"] if (CACHE / "sources.list").stat().st_size else []),
    ]
    LOGS.mkdir(parents=True, exist_ok=True)
    log = LOGS / "toolchain.log"
    with open(log, "w", encoding="utf-8") as out:
        result = subprocess.run([str(word) for word in command], stdout=out, stderr=out, check=False)
    if result.returncode:
        raise LabError(
            f"mmdebstrap failed:\n{tail(log, 15)}\nIs the network there, and room in {CACHE}?"
            f" All of its log is in {log}. Run this again to start over."
        )


def make():
    """Makes the toolchain in the place of an old one."""
    need("mmdebstrap", "mmdebstrap")
    free = shutil.disk_usage(CACHE).free >> 30
    if free < GIGABYTES:
        raise LabError(
            f"the cache needs {GIGABYTES} GiB and {CACHE} has {free}.\nMake room, or name another"
            " place with --cache."
        )
    what = "making the toolchain, a Debian 13 root file system of 3 GB"
    say(f"{what} ({took(what)}log: {LOGS / 'toolchain.log'})")
    start = time.monotonic()
    new, packed = ROOT.with_name("toolchain.new"), ROOT.with_name("toolchain.tar")

    def inside(*words):
        """Runs a command that may change files of any owner."""
        subprocess.run([str(word) for word in namespace(*words)], check=True)

    inside("rm", "-rf", "--one-file-system", "--", ROOT, new, packed)
    # A home may be closed to the user ids that mmdebstrap works with: unpack its archive.
    mmdebstrap(new if IS_ROOT else packed)
    if not IS_ROOT:
        new.mkdir()
        inside("tar", "-C", new, "--exclude=./dev/*", "-xf", packed)
        packed.unlink()
    inside("cp", "--", PACKAGES, new / "etc/kvm-userfault-packages")
    new.rename(ROOT)
    took(what, time.monotonic() - start)


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
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say(f"waiting for other runs that use {CACHE}")
        fcntl.flock(file, fcntl.LOCK_EX)
    if not is_up_to_date():
        make()
    fcntl.flock(file, fcntl.LOCK_SH)
