# SPDX-License-Identifier: GPL-2.0-only
"""Enters the toolchain, in a mount namespace: inside.py ROOT DIRECTORY PROGRAM [ARGUMENT...].

What the program changes of the toolchain, and what it has in /tmp, is its own and
gone with it. It sees the user's files under their own paths.
"""

import os
import pathlib
import shutil
import sys

from common import CACHE, REPO, LabError, main, say, succeeds

# What of the host is its operating system, which the toolchain has for itself.
SYSTEM = set("bin boot dev etc lost+found proc run sbin sys tmp usr var".split())
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def mount(*words):
    """Mounts something, and says whether that was possible."""
    return succeeds(["mount", *words])


def own_view(toolchain):
    """Returns a view of the toolchain that is this run's own."""
    scratch = CACHE / "run"
    scratch.mkdir(exist_ok=True)
    if mount("-t", "tmpfs", "tmpfs", scratch):
        root, upper, work = (scratch / name for name in ("root", "upper", "work"))
        for path in (root, upper, work):
            path.mkdir()
        options = f"lowerdir={toolchain},upperdir={upper},workdir={work}"
        for more in ("", ",userxattr"):
            if mount("-t", "overlay", "overlay", "-o", options + more, root):
                return root
    say("no overlay here: this run shares the toolchain with others")
    return toolchain


def is_of_the_user(path):
    """Says whether a directory of the host's root is not its operating system."""
    is_system = path.name in SYSTEM or path.name.startswith("lib")
    return path.is_dir() and not path.is_symlink() and not is_system


def given(words):
    """Yields directories of arguments, or of files that they name, that a user has in a place of
    the system's. /tmp may be one, as a whole."""
    for word in words:
        if word == "--":
            break
        path = pathlib.Path(word.partition("=")[2] if word.startswith("--") else word)
        path = path if path.is_dir() else path.parent
        if path.is_absolute() and path.is_dir() and (path.parts[2:] or path.name == "tmp"):
            if path.parts[1] in ("run", "sys", "tmp", "usr", "var"):
                yield path


def show(root, path):
    """Shows a directory of the host under its own path."""
    target = root / path.relative_to("/")
    target.mkdir(parents=True, exist_ok=True)
    if not mount("--rbind", "--", path, target):
        raise LabError(f"{path} cannot be shown in the toolchain.\nIs it readable by you?")


def program():
    """Enters the toolchain and becomes the program."""
    toolchain, cwd, *words = sys.argv[1:]
    root = own_view(pathlib.Path(toolchain))
    show(root, pathlib.Path("/dev"))
    if not mount("-t", "proc", "proc", root / "proc"):
        show(root, pathlib.Path("/proc"))
    if (CACHE / "resolv.conf").exists():
        shutil.copyfile(CACHE / "resolv.conf", root / "etc/resolv.conf")
    users = filter(is_of_the_user, sorted(pathlib.Path("/").iterdir()))
    for path in [*users, *given([str(REPO), str(CACHE), cwd, *words])]:
        show(root, path)
    os.environ.update(KVM_USERFAULT_INSIDE="1", LC_ALL="C.UTF-8", PATH=PATH)
    os.environ.pop("TMPDIR", None)
    os.chroot(root)
    os.chdir(cwd)
    os.execvp("python3", ["python3", "--", *words])


if __name__ == "__main__":
    main(program)
