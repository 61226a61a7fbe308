# SPDX-License-Identifier: GPL-2.0-only
"""Writes what scripts/bench has measured: a Markdown page, a JSON file, a picture.

A figure is named by a word, and by what else it has to have: 'enable marked=1 kernel=core
event=tlb-*'. It is the helper's kernel, one vCPU and no event unless others are named. ' + ' is
between what is added, and ' / ' between what is divided: so in the rows of the tables here, and
in braces in bench-page.md.
"""

import csv
import dataclasses
import fnmatch
import functools
import json
import operator
import pathlib
import re
import tempfile

from common import LAB, output

KERNELS = ("base", "core", "helper")
SHARES = (0, 1, 10, 25, 50, 100)
VCPUS = (1, 2, 4, 8)
DEMAND = {
    "userfault": "demand-userfault",
    "userfault, UFFDIO_COPY": "demand-userfault-copy",
    "userfault, handler thread": "demand-userfault-handler",
    "userfaultfd MISSING": "demand-missing",
    "userfault, file": "demand-userfault-file",
    "userfaultfd MINOR, file": "demand-minor",
}
FLUSH, ENABLE = "flush + flush-touch", "enable marked={0} + touch marked={0}"
# The targets of setting the flag and touching all, by how many percent are marked.
TARGETS = {0: "0.01", 1: "0.03", 25: "0.5"}

# The rows of the table of instructions: what it is, which figure, its target.
ROWS = [
    ("fault, flag never used, a page", "fault", "base + 4"),
    ("the same in blocks, a page", "fault-block", "base"),
    ("KVM_RUN that exits by MMIO", "mmio-exit", ""),
    ("KVM_RUN that exits by userfault", "userfault-exit", ""),
    ("- ÷ MMIO exit", "userfault-exit / mmio-exit", "0.95"),
    ("a marked page: exit, clear, run, map", "userfault-page", ""),
    ("- ÷ exit and fault", "userfault-page / userfault-exit + fault", "1.00"),
    ("flush: KVM forgets the slot", "flush", ""),
    ("touch all after a flush", "flush-touch", ""),
]
for share in SHARES:
    whole = f"{ENABLE} / {FLUSH}".format(share)
    ROWS += [
        (f"enable, {share} % marked", f"enable marked={share}", ""),
        ("- ÷ flush", f"enable marked={share} / flush", "1.01" if share == 100 else ""),
        ("- and touch all, ÷ the same of a flush", whole, TARGETS.get(share, "")),
    ]
for what, name in (("enable, 1 % marked", "enable-by-size"), ("disable", "disable-by-size")):
    for mebibytes in (16, 64, 256):
        size = f"slot_pages={mebibytes << 8}"
        ROWS += [(f"{what}, slot of {mebibytes} MiB", f"{name} {size}", "")]
ROWS += [
    ("fault, flag set, none marked, a page", "unmarked-block", "in blocks + 3"),
    ("all marked, VMM supplies blocks, a page", "prefetched-block", ""),
    ("re-arm a page in a block", "rearm-block", ""),
    ("- touch the block again", "rearm-block-touch", ""),
    ("re-arm a page among pages", "rearm-page", ""),
    ("- touch the same again", "rearm-page-touch", ""),
    ("others' longest wait for the CPU: flush", "latency-flush", ""),
    ("- enable, none marked", "latency-enable marked=0", ""),
    ("- enable, 1 % marked", "latency-enable marked=1", ""),
    ("paging by userfault, a page", "demand-userfault", ""),
    ("- by one handler thread", "demand-userfault-handler", ""),
    ("- with UFFDIO_COPY", "demand-userfault-copy", ""),
    ("paging by userfaultfd MISSING, a page", "demand-missing", ""),
    ("- ÷ userfault with UFFDIO_COPY", "demand-missing / demand-userfault-copy", "1.6"),
    ("paging of a file by userfault, a page", "demand-userfault-file", ""),
    ("paging of a file by userfaultfd MINOR, a page", "demand-minor", ""),
    ("- ÷ userfault", "demand-minor / demand-userfault-file", "1.6"),
]
# What is counted: those that are no ratios, and paging by several vCPUs.
EVENT_ROWS = [(text, of) for text, of, _ in ROWS if not re.search("/|demand|latency", of)] + [
    (f"{how}, {vcpus} vCPUs, a page", f"{name} vcpus={vcpus}")
    for how, name in DEMAND.items()
    for vcpus in VCPUS
]
# Who waits for whom shows with several CPUs only, and userfaultfd has a table of its own.
LEFT_OUT = {"events": "-wait|userfaultfd-lock", "scaling": "tlb|longest|cleaned|icache"}
# Events of these are counted for all pages of the slot, or for so many runs.
OF_PAGES = ("fault", "fault-block", "userfault-page", "unmarked-block", "prefetched-block")
OF_RUNS, RUNS = ("mmio-exit", "userfault-exit"), 1000
TOGGLE_ROWS = [
    (f"{verb}, slots: {slots}{after}", f"toggle-{verb}{end} slots={slots}")
    for slots in (1, 8, 64)
    for after, end in (("", ""), (", after KVM_IOEVENTFD", "-ioeventfd"))
    for verb in ("set", "clear")
]


def each(figure):
    """Returns the value of a figure, for one page or run also where events are counted."""
    if not figure.event or figure.event.endswith("-us"):
        # The longest of many is not the longest of one.
        return figure.value
    if figure.name in (*OF_PAGES, *DEMAND.values()):
        return figure.value / figure.slot_pages
    return figure.value / RUNS if figure.name in OF_RUNS else figure.value


def term(figures, text, **wanted):
    """Returns the sum of the figures that a name means, or nothing; a number is itself."""
    if text.isdigit():
        return int(text)
    words = (word if "=" in word else f"name={word}" for word in text.split())
    said = dict(word.split("=") for word in words)
    wanted = {"kernel": "helper", "vcpus": 1, "event": "", **wanted, **said}
    found = figures.get(wanted.pop("kernel"), [])
    for key, want in wanted.items():
        found = [one for one in found if fnmatch.fnmatch(str(getattr(one, key)), str(want))]
    return sum(map(each, found)) if found else None


def amount(figures, text, **wanted):
    """Returns what a text means, of the figures of each kernel, or nothing where one is missing."""
    sums = []
    for part in text.split(" / "):
        terms = [term(figures, one, **wanted) for one in part.split(" + ")]
        if None in terms:
            return None
        sums.append(sum(terms))
    return functools.reduce(operator.truediv, sums)


def number(value):
    """Returns a number as a table shows it."""
    if value >= 1e6:
        return f"{value / 1e6:.2f} M"
    if value >= 10000:
        return f"{value:,.0f}".replace(",", " ")
    if value >= 100:
        return f"{value:.1f}".removesuffix(".0")
    return f"{value:.3g}"


def count(figures, text, **wanted):
    """Returns an amount as a table shows it."""
    found = amount(figures, text, **wanted)
    return "" if found is None else number(found)


def compare(figures, text, **wanted):
    """Returns what the kernels have, as one number where it is the same, or nothing."""
    found = [count(figures, text, kernel=kernel, **wanted) or "–" for kernel in figures]
    return " · ".join(found) if len(set(found)) > 1 else found[0].strip("–")


def times(figures, text, **wanted):
    """Returns the middle and the long end of some times in milliseconds."""
    found = [amount(figures, text, event=event, **wanted) for event in ("p50", "p99")]
    return "" if None in found else " / ".join(f"{time / 1e6:.2f}" for time in found)


def table(figures, show, head, rows, columns, *right):
    """Returns a table in Markdown, or nothing where there are no figures. A row is a text, which
    figure, and what is to the right of it; a column is what else the figure has to have."""
    head = [head, *columns, *right]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for text, of, *rest in rows:
        cells = [show(figures, of, **wanted) for wanted in columns.values()]
        if any(cells):
            lines.append([text, *cells, *rest])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) if lines[2:] else ""


def tables(kind, figures):
    """Returns the tables that there are of a kind of figures."""
    make = functools.partial(table, figures)
    events = {
        one.event: {"event": one.event}
        for found in figures.values()
        for one in found
        if one.event and not re.search(LEFT_OUT.get(kind, "."), one.event)
    }
    vcpus = [(str(number), f"vcpus={number}") for number in VCPUS]
    slots = [(str(number), f"fault-meanwhile slots={number}") for number in (0, 1, 64)]
    kernels = {kernel: {"kernel": kernel} for kernel in KERNELS}
    paging = {f"{text}, a page": {"name": name} for text, name in DEMAND.items()}
    running = {f"{number} vCPUs run": {"vcpus": number} for number in (0, 1, 8)}
    meanwhile = {"a fault: p50 / p99 in ms": {}}
    return {
        "instructions": make(count, "instructions", ROWS, kernels, "target"),
        "paging": make(count, "vCPUs", vcpus, paging),
        "events": make(compare, "times", EVENT_ROWS, events),
        "toggles": make(times, "p50 / p99 in ms", TOGGLE_ROWS, running),
        "faults": make(times, "slots that are toggled meanwhile", slots, meanwhile),
    }


def waits(kinds):
    """Returns how long a toggle takes where no vCPU runs, by how often the kernel's clock ticks."""
    found = []
    for kind, figures in kinds.items():
        ends = ("", "-ioeventfd")
        both = [times(figures, f"toggle-set{end} slots=1 vcpus=0") for end in ends]
        if all(both):
            found.append(f"{', '.join(both)} with HZ={kind.partition('-')[2]}")
    return "; ".join(found)


def fill(template, figures, known):
    """Fills in what is in braces: what is known, or a figure. A line that misses one is left out,
    and one that begins with a space goes on where the one before has ended."""
    lines = []
    for line in template.splitlines():
        names = re.findall(r"\{(.+?)\}", line)
        found = [known[name] if name in known else count(figures, name) for name in names]
        if all(found):
            lines.append(re.sub(r"\{.+?\}", "{}", line).format(*found))
    text = "\n".join(lines).replace("\n ", " ")
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def page(results, about, has_picture):
    """Returns the page."""
    top, *sections = re.split(r"^(?=## )", (LAB / "bench-page.md").read_text(), flags=re.M)
    sections = dict(zip(("instructions", "events", "scaling", "toggles"), sections, strict=True))
    first = next((name for name in ("n1", "max") if name in results), "")
    figures = {
        kernel: [one for kind in results.get(first, {}).values() for one in kind.get(kernel, [])]
        for kernel in KERNELS
    }
    known = about | about["kernels"] | {"machine": first}
    known["waits"] = waits(results.get("toggles", {}))
    known["picture"] = "![The main figures](bench.svg)" if has_picture else ""
    parts = [fill(top, figures, known)]
    for machine, kinds in results.items():
        for kind, by_kernel in kinds.items():
            name, _, hertz = kind.partition("-")
            figures = {kernel: by_kernel[kernel] for kernel in KERNELS if by_kernel.get(kernel)}
            known = {"machine": machine, "kernels": " · ".join(figures), "hertz": hertz}
            known["hypervisor"] = "hypervisor" if count(figures, "* event=hypercall") else ""
            parts.append(fill(sections[name], figures, known | tables(name, figures)))
    return "\n".join(parts)


def picture(results):
    """Returns the picture, which gnuplot draws, or nothing where there is nothing to draw."""
    with tempfile.TemporaryDirectory() as scratch:

        def save(name, head, rows):
            """Saves a table for gnuplot."""
            with open(pathlib.Path(scratch, name), "w", encoding="utf-8") as file:
                csv.writer(file, "excel-tab", lineterminator="\n").writerows([head, *rows])

        cpus = []
        for name, kinds in results.items():
            find = functools.partial(amount, kinds.get("instructions", {}))
            if find(ENABLE.format(1)) is None:
                continue
            cpus.append(name)
            wholes = [(share, ENABLE.format(share)) for share in SHARES]
            rows = [(share, find(FLUSH), find(of, kernel="core"), find(of)) for share, of in wholes]
            save(f"{name}-shares", ["%", "flush", "without the helper", "with the helper"], rows)
            names = DEMAND.values()
            rows = [(vcpus, *(find(one, vcpus=vcpus) for one in names)) for vcpus in VCPUS]
            save(f"{name}-demand", ["vCPUs", *DEMAND], rows)
        command = ["gnuplot", "-e", f"cpus='{' '.join(cpus)}'", LAB / "bench.gnuplot"]
        return output(command, cwd=scratch) if cpus else ""


def write(directory, results, about):
    """Writes the results and returns the files."""
    drawn = picture(results)
    data = json.dumps({**about, "machines": results}, indent=1, default=dataclasses.asdict)
    texts = {
        "bench.md": page(results, about, bool(drawn)),
        # A line for each figure.
        "bench.json": re.sub(r"\{[^{}]*\}", lambda one: " ".join(one[0].split()), data) + "\n",
        "bench.svg": drawn,
    }
    directory.mkdir(parents=True, exist_ok=True)
    written = {directory / name: text for name, text in texts.items() if text}
    for path, text in written.items():
        path.write_text(text)
    return list(written)
