# SPDX-License-Identifier: GPL-2.0-only
"""Runs cases that fail, hang, skip and crash on purpose, to see what the crate's own runner makes
of them. That needs no kernel and no other machine: it is compiled for this one."""

import contextlib
import pathlib
import re
import shutil
import signal
import subprocess
import tempfile
import time

from common import LAB, output

CASES = LAB / "ktap-cases"
RUNNER = "tools/testing/selftests/kvm/lib/rust/ktap.rs"
# What of the report is always the same.
RESULT = re.compile(r"(?:not )?ok .*|# Totals: .*|Bail out!.*|# (?:not|#|to|half) .*")
# The case that changes this file, and what is there then and afterwards.
CHANGES = "is_killed_before_it_undoes"
FILE = pathlib.Path("/tmp/ktap_on_purpose")
SECONDS = 10


@contextlib.contextmanager
def built(source):
    """Compiles the runner of a kernel tree with the cases, and gives the program."""
    with tempfile.TemporaryDirectory() as name:
        scratch = pathlib.Path(name)
        shutil.copytree(CASES, scratch, dirs_exist_ok=True)
        shutil.copy(source / RUNNER, scratch)
        words = ["rustc", "--edition=2021"]
        output([*words, "--crate-type=rlib", "libkvm.rs"], cwd=scratch)
        output([*words, "--extern=libkvm=liblibkvm.rlib", "on_purpose.rs"], cwd=scratch)
        yield scratch / "on_purpose"


def wait_until(is_so):
    """Waits until something is so, but not for ever, and returns whether it is."""
    end = time.monotonic() + SECONDS
    while not is_so() and time.monotonic() < end:
        time.sleep(0.01)
    return is_so()


def is_gone(pid):
    """Says whether a process is not there, or just waited for."""
    try:
        return "State:\tZ" in pathlib.Path("/proc", pid, "status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


def left_behind(text):
    """Returns what is wrong with the processes that cases have started and left behind."""
    left = re.findall(r"left behind: (\d+)", text)
    if left and wait_until(lambda: all(map(is_gone, left))):
        return []
    return [f"the process {' '.join(left) or '?'} is still there, or never was"]


def compare(text, expected):
    """Returns how the results in a report differ from what is expected."""
    found = [line for line in text.splitlines() if RESULT.fullmatch(line)]
    return [] if found == expected else ["expected:", *expected, "found:", *found]


def run(*words):
    """Runs a program and returns its code and what it prints."""
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    return result.returncode, result.stdout


def told_to_end(program, number):
    """Ends the runner by a signal while a case runs that has to be undone."""
    FILE.write_text("before")
    # Under nohup, or in the background of a script, signals are ignored.
    words = ["env", "--default-signal", program, "-t", "100", CHANGES, "passes"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        text = "".join(process.stdout.readline() for _ in range(3))
        wait_until(lambda: FILE.read_text() == "done")
        process.send_signal(number)
        text += process.communicate()[0]
    is_undone = FILE.read_text() == "undone"
    FILE.unlink()
    if number == signal.SIGKILL:
        return left_behind(text)
    expected = [f"not ok 1 {CHANGES}", "Bail out! told to end"]
    wrong = [] if is_undone and process.returncode == 1 else ["not undone, or another code"]
    return wrong + compare(text, expected) + left_behind(text)


def other_ways(program):
    """Runs cases in other ways: without the runner, with too many words, and by somebody who does
    not want to hear of processes."""
    totals = "# Totals: pass:1 fail:1 xfail:0 xpass:0 skip:0 error:0"
    remarks = []
    for words, code, results in (
        ("-c passes", 0, ["ok 1 passes"]),
        ("-c fails", 1, ["not ok 1 fails"]),
        ("-c passes fails", 1, []),
        ("-t 1 -t 2 passes", 1, []),
        ("-t soon passes", 1, []),
        ("-x", 1, []),
        ("is_not_there", 1, []),
        ("-h", 0, []),
        ("-l", 0, []),
        ("passes fails", 1, ["ok 1 passes", "not ok 2 fails", totals]),
    ):
        heed = ["env", "--ignore-signal=CHLD"] if totals in results else []
        found, text = run(*heed, program, *words.split())
        plan = len(results) - (totals in results)
        good = found == code and (not results or text.startswith(f"TAP version 13\n1..{plan}\n"))
        remarks += [] if good else [f"{words}: {found}", text]
        remarks += compare(text, results)
    return remarks


def wrong(source):
    """Returns what the runner of a kernel tree makes of the cases that it should not."""
    signals = [signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGKILL]
    with built(source) as program:
        _, text = run(program, "-t", "2")
        remarks = compare(text, (CASES / "expected").read_text().splitlines()) + left_behind(text)
        for number in signals:
            remarks += told_to_end(program, number)
        return remarks + other_ways(program)
