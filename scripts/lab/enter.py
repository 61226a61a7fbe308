# SPDX-License-Identifier: GPL-2.0-only
"""Runs a program of the lab with the lab's toolchain, which it makes on first use.

The toolchain is a Debian 13 root file system in the cache. Root enters it by
chroot, an ordinary user through a user namespace. Each run has a view of it that
is its own, with the user's files under their own paths. With --host-tools the
program runs on the host as it is; with --cache DIR, or in $KVM_USERFAULT_CACHE,
the cache is DIR.
"""

import argparse
import fcntl
import os
import pathlib
import re
import shutil
import subprocess
import sys

LAB = pathlib.Path(__file__).resolve().parent


def options(arguments):
    """Returns the options that matter before a program runs; what comes after '--' is not ours."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("--cache", "--pack"):
        parser.add_argument(name, nargs="?")
    for name in ("--delete-cache", "--host-tools", "--here", "--help", "-h"):
        parser.add_argument(name, action="store_true")
    ours = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return parser.parse_known_args(ours)[0]


def remember_user():
    """Keeps who the user is: the host's git knows, the toolchain's does not."""
    if not os.environ.get("KVM_USERFAULT_SUBMITTER") and shutil.which("git"):
        words = ["git", "-C", LAB, "-c", "user.useConfigOnly=true", "var", "GIT_COMMITTER_IDENT"]
        found = subprocess.run(words, capture_output=True, text=True, check=False)
        os.environ["KVM_USERFAULT_SUBMITTER"] = found.stdout.strip()


def use(cache, how):
    """Opens the file that marks a cache, and locks it for as long as this run lives."""
    file = os.open(cache / ".kvm-userfault-cache", os.O_RDWR | os.O_CREAT, 0o644)
    fcntl.flock(file, how)
    os.set_inheritable(file, True)
    return file


def delete(cache, toolchain):
    """Deletes the cache, unless a run uses it or it is none."""
    cache = cache.resolve()
    if not cache.exists():
        return
    if not (cache / ".kvm-userfault-cache").exists():
        raise toolchain.LabError(f"{cache} is not a cache of this lab; nothing deleted")
    try:
        use(cache, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise toolchain.LabError(
            f"another run uses {cache}; nothing deleted.\nEnd it and run this again."
        ) from None
    toolchain.say(f"deleting {cache}")
    # What says that it is a cache goes last, so that this can be run again where it was stopped.
    mark = cache / ".kvm-userfault-cache"
    find = ["find", cache, "-xdev", "-mindepth", "1", "!", "-path", mark, "-delete"]
    subprocess.run(toolchain.namespace(*find), check=True)
    shutil.rmtree(cache)


def program():
    """Runs a program of the lab."""
    # Not before the cache is known.
    import toolchain
    from common import write_if_changed

    arguments, cache = sys.argv[1:], toolchain.CACHE
    asked = options(arguments)
    remember_user()
    if re.search(r"[\s:]", str(cache)):
        raise toolchain.LabError(
            f"a kernel cannot be built in '{cache}'.\nName a cache without spaces and colons."
        )
    if asked.delete_cache:
        return delete(cache, toolchain)
    # To see what this machine does, nothing of it is replaced.
    as_it_is = asked.help or asked.h or (asked.here and not asked.pack)
    command = ["python3", "--", *arguments]
    if as_it_is or os.environ.get("KVM_USERFAULT_INSIDE"):
        os.execvp(command[0], command)
    if asked.host_tools:
        # What it mounts is for this run.
        command = toolchain.namespace(*command) if toolchain.IS_ROOT else command
        os.execvp(command[0], command)
    cache.mkdir(parents=True, exist_ok=True)
    toolchain.bring_up_to_date(use(cache, fcntl.LOCK_SH))
    certificates = os.environ.get("SSL_CERT_FILE") or "/etc/ssl/certs/ca-certificates.crt"
    for source, name in (("/etc/resolv.conf", "resolv.conf"), (certificates, "certificates.crt")):
        if os.path.exists(source):
            write_if_changed(cache / name, pathlib.Path(source).read_text())
    words = ["python3", "-B", "--", LAB / "inside.py", toolchain.ROOT, os.getcwd(), *arguments]
    command = toolchain.namespace(*words)
    return os.execvp(command[0], command)


if __name__ == "__main__":
    if asked_for := options(sys.argv[1:]).cache:
        os.environ["KVM_USERFAULT_CACHE"] = asked_for
    from common import CACHE, main

    os.environ["KVM_USERFAULT_CACHE"] = str(CACHE)
    main(program)
