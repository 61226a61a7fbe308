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
    parser.add_argument("--cache", nargs="?")
    parser.add_argument("--pack", nargs="?")
    for name in ("--delete-cache", "--host-tools", "--here"):
        parser.add_argument(name, action="store_true")
    parser.add_argument("-h", "--help", action="store_true")
    ours = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return parser.parse_known_args(ours)[0]


def remember_user():
    """Keeps who the user is: the host's git knows, the toolchain's does not."""
    if not os.environ.get("KVM_USERFAULT_SUBMITTER"):
        words = ["git", "-C", LAB, "-c", "user.useConfigOnly=true", "var", "GIT_COMMITTER_IDENT"]
        try:
            found = subprocess.run(words, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            return
        os.environ["KVM_USERFAULT_SUBMITTER"] = found.stdout.strip()


def find_cache(asked):
    """Finds the cache and tells the programs where it is."""
    default = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    cache = asked.cache or os.environ.get("KVM_USERFAULT_CACHE")
    cache = os.path.abspath(cache or os.path.join(default, "kvm-userfault"))
    os.environ["KVM_USERFAULT_CACHE"] = cache
    return cache


def use_cache(cache):
    """Makes the cache and returns a file that is locked as long as this run uses it."""
    pathlib.Path(cache).mkdir(parents=True, exist_ok=True)
    file = os.open(f"{cache}/.kvm-userfault-cache", os.O_RDWR | os.O_CREAT, 0o644)
    fcntl.flock(file, fcntl.LOCK_SH)
    os.set_inheritable(file, True)
    return file


def delete_cache(cache, toolchain):
    """Deletes the cache, unless a run uses it or it is none."""
    if not os.path.exists(cache):
        return
    mark = f"{cache}/.kvm-userfault-cache"
    if not os.path.exists(mark):
        raise toolchain.LabError(f"{cache} is not a cache of this lab; nothing deleted")
    with open(mark, encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise toolchain.LabError(
                f"another run uses {cache}; nothing deleted.\nEnd it and run this again."
            ) from None
        toolchain.say(f"deleting {cache}")
        subprocess.run(toolchain.namespace("rm", "-rf", "--one-file-system", "--", cache), check=True)


def program():
    """Runs a program of the lab."""
    arguments = sys.argv[1:]
    asked = options(arguments)
    cache = find_cache(asked)
    remember_user()
    # To see what this machine does, nothing of it is replaced.
    host_tools = asked.host_tools or asked.help or (asked.here and not asked.pack)
    inside = os.environ.get("KVM_USERFAULT_INSIDE") or os.environ.get("KVM_USERFAULT_HOST_TOOLS")
    import toolchain  # Not before the cache is known.

    if re.search(r"[\s:]", cache):
        raise toolchain.LabError(
            f"a kernel cannot be built in '{cache}'.\nName a cache without spaces and colons."
        )
    if asked.delete_cache:
        return delete_cache(cache, toolchain)
    if host_tools or inside:
        os.execvp("python3", ["python3", "--", *arguments])
    file = use_cache(cache)
    toolchain.bring_up_to_date(file)
    certificates = os.environ.get("SSL_CERT_FILE") or "/etc/ssl/certs/ca-certificates.crt"
    for source, name in (("/etc/resolv.conf", "resolv.conf"), (certificates, "certificates.crt")):
        if os.path.exists(source):
            shutil.copyfile(source, f"{cache}/{name}")
    words = ["python3", "-B", "--", LAB / "inside.py", toolchain.ROOT, os.getcwd(), *arguments]
    command = [str(word) for word in toolchain.namespace(*words)]
    return os.execvp(command[0], command)


if __name__ == "__main__":
    # Python's own folder for compiled files is the user's.
    sys.dont_write_bytecode = True
    find_cache(options(sys.argv[1:]))
    from common import main

    main(program)
