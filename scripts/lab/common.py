# SPDX-License-Identifier: GPL-2.0-only
"""What every program of the lab shares: its places, its errors, its steps."""

import argparse
import contextlib
import errno
import fcntl
import os
import pathlib
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time

REPO = pathlib.Path(__file__).resolve().parents[2]
LAB = REPO / "scripts" / "lab"
PATCHES = REPO / "patches"
CACHES = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
CACHE = pathlib.Path(
    os.path.abspath(os.environ.get("KVM_USERFAULT_CACHE") or CACHES / "kvm-userfault")
)
LOGS = CACHE / "log"


class LabError(Exception):
    """Something the user has to know, in words the user can act on."""


# What may go wrong in any step.
ERRORS = (LabError, OSError, subprocess.SubprocessError)


def new_parser(name, text):
    """Returns a program's parser with the options that every program has. scripts/lab/enter acts on
    some of them first, and knows them by their whole names only."""
    parser = argparse.ArgumentParser(
        prog=name,
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--cache", metavar="DIR", help="where the lab keeps what it makes")
    parser.add_argument("--delete-cache", action="store_true", help="delete the cache and stop")
    parser.add_argument(
        "--host-tools",
        action="store_true",
        help="use the host's own tools instead of a Debian 13 root file system",
    )
    return parser


def main(function):
    """Runs a program, turning its errors into a message and an exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        sys.exit(function())
    except KeyboardInterrupt:
        sys.exit("interrupted; run it again to go on")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except ERRORS as error:
        sys.exit(f"error: {in_words(error)}")


def in_words(error):
    """Returns what the lab or the system says, in two lines: what is wrong, and what to do."""
    if isinstance(error, LabError):
        return str(error)
    if isinstance(error, subprocess.SubprocessError):
        return str(error) + (no_space(CACHE) or "\nSee what it said above, and run this again.")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"there is no room left in {error.filename or CACHE}.\nMake room and run this again."
    if isinstance(error, FileNotFoundError) and error.filename and "/" not in str(error.filename):
        return (
            f"{error.filename} is missing.\nRun without --host-tools, or install the packages that"
            " scripts/lab/packages names."
        )
    what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    return f"{what}.\nSee that this is as it should be and run this again."


def say(text):
    """Shows a step to the user."""
    print(f"==> {text}", file=sys.stderr, flush=True)


def wait_for(file, how=fcntl.LOCK_EX):
    """Locks a file of the cache, which others may have locked."""
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        say(f"waiting for another run that uses {CACHE}")
        fcntl.flock(file, how)


@contextlib.contextmanager
def lock(name):
    """Keeps other runs of the lab from changing the same part of the cache."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / f"{name}.lock", "w", encoding="ascii") as file:
        wait_for(file)
        yield


def no_space(path):
    """Returns a hint when the file system of a path is full, else nothing."""
    if shutil.disk_usage(path).free > 64 << 20:
        return ""
    return f"\nThe file system of {path} is full: make room and run this again."


@contextlib.contextmanager
def ticker(what, log):
    """Shows that a long step is alive: a line every 30 seconds."""
    done, start = threading.Event(), time.monotonic()

    def tick():
        """Shows the line."""
        while not done.wait(30):
            lines = log.read_bytes().count(b"\n")
            elapsed = int(time.monotonic() - start)
            print(f"    {what}: {elapsed} s, {lines} lines of log", file=sys.stderr, flush=True)

    threading.Thread(target=tick, daemon=True).start()
    try:
        yield
    finally:
        done.set()


def took(what, seconds=None):
    """Remembers how long a step took on this machine, or returns the longest in words, if it is
    known: a build that had nothing to do says little of the next one."""
    path = CACHE / "took" / re.sub(r"\W+", "-", what)
    longest = int(path.read_text().split()[0]) if path.exists() else 0
    if seconds is not None:
        write_if_changed(path, f"{max(longest, round(seconds))} s")
    return f"so far up to {longest} s, " if longest else ""


def step(what, command, log, *, cwd=None, env=None, stdin=None):
    """Runs a command of a named step with its output in a log."""
    LOGS.mkdir(parents=True, exist_ok=True)
    path = LOGS / f"{log}.log"
    say(f"{what} ({took(what)}log: {path})")
    start = time.monotonic()
    command = [str(word) for word in command]
    with open(path, "w", encoding="utf-8") as out, ticker(what, path):
        print("$", shlex.join(command), file=out, flush=True)
        result = subprocess.run(
            command,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            stdin=stdin or subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if result.returncode:
        lines = path.read_text(errors="replace").splitlines()
        print("\n".join(lines[-20:]), file=sys.stderr)
        raise LabError(
            f"the step '{what}' failed with code {result.returncode}; the end of its log is"
            f" above, all of it in {path}.{no_space(CACHE)}"
        )
    took(what, time.monotonic() - start)
    return path


def output(command, **kwargs):
    """Runs a short command and returns what it printed."""
    command = [str(word) for word in command]
    result = subprocess.run(command, capture_output=True, text=True, check=False, **kwargs)
    if result.returncode:
        raise LabError(
            f"'{shlex.join(command)}' failed: {(result.stdout + result.stderr).strip()}"
            f"{no_space(CACHE)}"
        )
    return result.stdout


def succeeds(command, **kwargs):
    """Says whether a short command succeeds, without its output."""
    command = [str(word) for word in command]
    return subprocess.run(command, capture_output=True, check=False, **kwargs).returncode == 0


def write_if_changed(path, text):
    """Writes a file only when its content differs, so that make sees no change."""
    path = pathlib.Path(path)
    if path.exists() and path.read_text() == text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # Of this run alone: another may write the same file, and have the same process id.
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_fields(path):
    """Reads a file of 'key: value' lines."""
    fields = {}
    for line in pathlib.Path(path).read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            match = re.fullmatch(r"([a-z0-9-]+): *(.*)", line)
            if not match:
                raise LabError(f"{path}: '{line}' is not of the form 'key: value'")
            fields[match[1]] = match[2]
    return fields
