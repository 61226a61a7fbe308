# SPDX-License-Identifier: GPL-2.0-only
"""Writes what scripts/bench has measured: a Markdown page, a JSON file, a picture."""

import dataclasses
import json
import pathlib
import re
import tempfile

from common import LAB, output

KERNELS = ("base", "core", "helper")
PAGE = 4096
# What is counted for each page of the slot, and for each run.
PAGES, RUNS = 0, 1000
SHARES = (0, 1, 10, 25, 50, 100)


def value(figures, name, **wanted):
    """Returns the value of a figure, or nothing where there is none."""
    wanted = {"event": "", **wanted}
    for figure in figures:
        if figure.name == name and all(getattr(figure, key) == want for key, want in wanted.items()):
            return figure.value
    return None


def total(figures, names, **wanted):
    """Returns the sum of figures, or nothing where one is missing. The flush knows no marks."""
    found = [
        value(figures, name, **({} if name.startswith(("flush", "fault")) else wanted))
        for name in names
    ]
    return None if None in found else sum(found)


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a table: a sum of figures, divided by another if there is one, and its target."""

    text: str
    names: tuple
    over: tuple = ()
    target: str = ""
    wanted: dict = dataclasses.field(default_factory=dict)
    # Instructions are per page or call already; events are counted of so many.
    per: int = 1

    def value(self, figures):
        """Returns its value of a kernel, or nothing."""
        amount = total(figures, self.names, **self.wanted)
        if amount is None or not self.over:
            return amount
        divisor = total(figures, self.over, **self.wanted)
        return amount / divisor if divisor else None


def shares():
    """Returns the rows about setting the flag."""
    targets = {0: "0.01", 1: "0.03", 25: "0.5"}
    for share in SHARES:
        marked = {"marked": share}
        yield Row(f"enable, {share} % marked", ("enable",), wanted=marked)
        goal = "1.01" if share == 100 else ""
        yield Row("- ÷ flush", ("enable",), ("flush",), goal, marked)
        both, flush = ("enable", "touch"), ("flush", "flush-touch")
        text = "- and touch all, ÷ the same of a flush"
        yield Row(text, both, flush, targets.get(share, ""), marked)


def sizes(name, text, **wanted):
    """Returns the rows about slots of several sizes."""
    for mebibytes in (16, 64, 256):
        pages = {"slot_pages": (mebibytes << 20) // PAGE}
        yield Row(f"{text}, slot of {mebibytes} MiB", (name,), wanted=pages | wanted)


ONE = {"vcpus": 1}
ROWS = [
    Row("fault, flag never used, a page", ("fault",), target="base + 4", per=PAGES),
    Row("the same in blocks, a page", ("fault-block",), target="base", per=PAGES),
    Row("KVM_RUN that exits by MMIO", ("mmio-exit",), per=RUNS),
    Row("KVM_RUN that exits by userfault", ("userfault-exit",), per=RUNS),
    Row("- ÷ MMIO exit", ("userfault-exit",), ("mmio-exit",), "0.95"),
    Row("a marked page: exit, clear, run, map", ("userfault-page",), per=PAGES),
    Row("- ÷ exit and fault", ("userfault-page",), ("userfault-exit", "fault"), "1.00"),
    Row("flush: KVM forgets the slot", ("flush",)),
    Row("touch all after a flush", ("flush-touch",)),
    *shares(),
    *sizes("enable-by-size", "enable, 1 % marked", marked=1),
    *sizes("disable-by-size", "disable"),
    Row("enable, slot of 1 TiB, 1024 marked", ("enable-terabyte",)),
    Row("disable, slot of 1 TiB", ("disable-terabyte",)),
    Row("fault, flag set, none marked, a page", ("unmarked-block",), (), "in blocks + 3", per=PAGES),
    Row("all marked, VMM supplies blocks, a page", ("prefetched-block",), per=PAGES),
    Row("re-arm a page in a block", ("rearm-block",)),
    Row("- touch the block again", ("rearm-block-touch",)),
    Row("re-arm a page among pages", ("rearm-page",)),
    Row("- touch the same again", ("rearm-page-touch",)),
    Row("others' longest wait for the CPU: flush", ("latency-flush",)),
    Row("- enable, none marked", ("latency-enable",), wanted={"marked": 0}),
    Row("- enable, 1 % marked", ("latency-enable",), wanted={"marked": 1}),
    Row("- enable, slot of 1 TiB", ("latency-enable-terabyte",)),
    Row("paging by userfault, a page", ("demand-userfault",), wanted=ONE),
    Row("- by one handler thread", ("demand-userfault-handler",), wanted=ONE),
    Row("- with UFFDIO_COPY", ("demand-userfault-copy",), wanted=ONE),
    Row("paging by userfaultfd MISSING, a page", ("demand-missing",), wanted=ONE),
    Row("- ÷ userfault with UFFDIO_COPY", ("demand-missing",), ("demand-userfault-copy",), "1.6", ONE),
    Row("paging of a file by userfault, a page", ("demand-userfault-file",), wanted=ONE),
    Row("paging of a file by userfaultfd MINOR, a page", ("demand-minor",), wanted=ONE),
    Row("- ÷ userfault", ("demand-minor",), ("demand-userfault-file",), "1.6", ONE),
]

DEMAND = {
    "userfault": "demand-userfault",
    "userfault, UFFDIO_COPY": "demand-userfault-copy",
    "userfault, handler thread": "demand-userfault-handler",
    "userfaultfd MISSING": "demand-missing",
    "userfault, file": "demand-userfault-file",
    "userfaultfd MINOR, file": "demand-minor",
}

# What is counted, of rows that are one figure: (text, name, fields, what it is counted of).
EVENT_ROWS = [
    (row.text, row.names[0], row.wanted, row.per)
    for row in ROWS
    if not row.over and not row.names[0].startswith(("demand", "latency"))
]
SCALING_ROWS = [
    (f"{how}, {vcpus} vCPUs, a page", name, {"vcpus": vcpus}, PAGES)
    for how, name in DEMAND.items()
    for vcpus in (1, 2, 4, 8)
]
# Who waits for whom shows with several CPUs only, and userfaultfd has a table of its own.
WAITS = ("-wait", "userfaultfd-lock")


def number(amount):
    """Returns a number as a table shows it."""
    if amount is None:
        return ""
    if amount >= 1e6:
        return f"{amount / 1e6:.2f} M"
    if amount >= 10000:
        return f"{amount:,.0f}".replace(",", " ")
    if amount >= 100:
        return f"{amount:.1f}".removesuffix(".0")
    return f"{amount:.3g}"


def table(head, rows):
    """Returns a table in Markdown, the first column of text, the others of numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def main_table(by_kernel):
    """Returns the table of instructions."""
    rows = []
    for row in ROWS:
        found = [row.value(by_kernel.get(name, [])) for name in KERNELS]
        if any(one is not None for one in found):
            rows.append([row.text, *map(number, found), row.target])
    return table(["instructions", *KERNELS, "target"], rows)


def demand_table(figures):
    """Returns the table of paging by several vCPUs."""
    vcpus = sorted({figure.vcpus for figure in figures if figure.name in DEMAND.values()})
    rows = [
        [str(count), *(number(value(figures, name, vcpus=count)) for name in DEMAND.values())]
        for count in vcpus
    ]
    return table(["vCPUs", *(f"{text}, a page" for text in DEMAND)], rows) if rows else ""


def cell(amounts):
    """Returns what several kernels have of an event; one number where it is the same."""
    texts = [number(amount) or "–" for amount in amounts]
    return texts[0] if len(set(texts)) == 1 else " · ".join(texts)


def event_table(by_kernel, which, left_out=()):
    """Returns the table of what was counted."""
    labels = [name for name in KERNELS if by_kernel.get(name)]
    events = dict.fromkeys(one.event for label in labels for one in by_kernel[label])
    events = [event for event in events if not any(text in event for text in left_out)]
    rows = []
    for text, name, fields, per in which:
        known = (one.slot_pages for label in labels for one in by_kernel[label] if one.name == name)
        pages = next(known, 1)

        def counts(event):
            """Returns the counts of an event by kernel."""
            # The longest of many is not the longest of one.
            each = 1 if event.endswith("-us") else per or pages
            found = [value(by_kernel[label], name, event=event, **fields) for label in labels]
            return [None if one is None else one / each for one in found]

        columns = [counts(event) for event in events]
        if any(one is not None for column in columns for one in column):
            rows.append([text, *map(cell, columns)])
    return table(["times", *events], rows) if rows else ""


# A toggle of one slot while no vCPU runs, and after what.
IDLE, AFTER = {"slots": 1, "vcpus": 0}, ("", "-ioeventfd")


def milliseconds(figures, name, **wanted):
    """Returns the middle and the long end of some times in milliseconds."""
    found = [value(figures, name, event=event, **wanted) for event in ("p50", "p99")]
    return "" if None in found else " / ".join(f"{time / 1e6:.2f}" for time in found)


def ticking(kinds):
    """Returns the figures of toggles with how often the clock of their kernel ticks."""
    found = [(name.partition("-"), by_kernel) for name, by_kernel in kinds.items()]
    return [
        (hertz, by_kernel.get("helper", []))
        for (what, _, hertz), by_kernel in found
        if what == "toggles"
    ]


def toggle_table(figures):
    """Returns the tables of toggles by the clock."""
    rows = []
    for slots in (1, 8, 64):
        for text, end in (("", ""), (", after KVM_IOEVENTFD", "-ioeventfd")):
            for verb in ("set", "clear"):
                name = f"toggle-{verb}{end}"
                times = [
                    milliseconds(figures, name, slots=slots, vcpus=vcpus) for vcpus in (0, 1, 8)
                ]
                rows.append([f"{verb}, slots: {slots}{text}", *times])
    faults = [
        [str(slots), milliseconds(figures, "fault-meanwhile", slots=slots)] for slots in (0, 1, 64)
    ]
    return "\n".join(
        [
            table(["p50 / p99 in ms", *(f"{vcpus} vCPUs run" for vcpus in (0, 1, 8))], rows),
            table(["slots that are toggled meanwhile", "a fault: p50 / p99 in ms"], faults),
        ]
    )


def sentence(text, *amounts):
    """Returns a sentence with numbers in it, or nothing where one is missing."""
    return [] if None in amounts else [text.format(*map(number, amounts))]


def ratio(amount, divisor):
    """Returns a ratio, or nothing."""
    return None if amount is None or not divisor else amount / divisor


def invalidations(events, name, marked):
    """Returns how many TLB invalidations of any kind were counted."""
    kinds = ("tlb-vmid", "tlb-page", "tlb-range")
    found = [value(events, name, marked=marked, event=kind) for kind in kinds]
    return None if found == [None] * 3 else sum(one or 0 for one in found)


def limits(helper):
    """Returns what keeps figures above their targets."""
    exit_, page, fault = (value(helper, name) for name in ("userfault-exit", "userfault-page", "fault"))
    copy, missing = (value(helper, f"demand-{how}", **ONE) for how in ("userfault-copy", "missing"))
    return "".join(
        sentence(
            "Above their targets are an exit, {} of an exit by MMIO, with which it shares all but the"
            " decoding; a marked page, {} of an exit and a fault, as its mark is cleared as well; and"
            " an enable with 25 % marked: a marked page takes an exit and a fault,"
            " {} times a fault, so that a quarter of them takes {} of what touching all does. To set the"
            " flag where every second page is marked takes {} times a flush, as each run is a walk;"
            " what is not unmapped need not be mapped again. Below its target is paging, {} times as"
            " much by userfaultfd: {} of the {} instructions are an exit and a fault, most of the rest"
            " UFFDIO_COPY, which both have.\n",
            ratio(exit_, value(helper, "mmio-exit")),
            ratio(page, exit_ and fault and exit_ + fault),
            *(ratio(page, fault), ratio(page and page / 4, fault)),
            ratio(value(helper, "enable", marked=50), value(helper, "flush")),
            *(ratio(missing, copy), page, copy),
        )
    )


def meaning(name, kinds, toggled):
    """Returns in five lines what the figures mean for the author of a VMM."""
    helper = kinds.get("instructions", {}).get("helper", [])
    core = kinds.get("instructions", {}).get("core", [])
    events = kinds.get("events", {}).get("helper", [])
    exit_, flush = value(helper, "userfault-exit"), value(helper, "flush")
    few, all_ = (value(helper, "enable", marked=share) for share in (1, 100))
    both = [total(one, ("enable", "touch"), marked=1) for one in (core, helper)]
    ways = ("userfault-copy", "missing")
    paging, missing = (value(helper, f"demand-{how}", **ONE) for how in ways)
    toggles = [
        f"{', '.join(times)} with HZ={hertz}"
        for hertz, figures in ticking(toggled)
        if all(times := [milliseconds(figures, f"toggle-set{end}", **IDLE) for end in AFTER])
    ]
    pages = sentence(
        "Paging by UFFDIO_COPY costs {} a page if the vCPU's thread does it after an exit, and {}"
        " times as much if userfaultfd's handler does.",
        *(paging, ratio(missing, paging)),
    )
    exits = sentence(
        f"**An exit** costs {{}} instructions ({name}), {{}} of an MMIO exit. A marked page takes"
        " {} from its exit to the next, with its mapping.",
        *(exit_, ratio(exit_, value(helper, "mmio-exit")), value(helper, "userfault-page")),
    )
    lines = [
        *([" ".join(exits + pages)] if exits else []),
        *sentence(
            "**An enable** of 64 MiB that is all mapped costs {} with 1 % marked and {} with all: {}"
            " and {} of what it takes KVM to forget the slot.",
            *(few, all_, ratio(few, flush), ratio(all_, flush)),
        ),
        *sentence(
            "**TLBs are invalidated** {} times with 1 % marked, where a flush does it {} times, and"
            " mmu_lock is held for {} µs at most, where a flush holds it for {}. A disable"
            " invalidates {} times.",
            *(invalidations(events, name, marked) for name, marked in (("enable", 1), ("flush", 0))),
            value(events, "enable", marked=1, event="mmu-lock-longest-us"),
            value(events, "flush", event="mmu-lock-longest-us"),
            invalidations(events, "disable", 0),
        ),
        *sentence(
            "**The helper** makes an enable with 1 % marked, and all that is touched afterwards, {}"
            " times cheaper, and keeps unmarked memory in blocks: {} instructions a page, not {}.",
            ratio(*both),
            *(value(one, "unmarked-block") for one in (helper, core)),
        ),
    ]
    if toggles:
        lines.append(
            "**A toggle waits** for a grace period, and for two ticks after another: in ms (p50 /"
            " p99), where no vCPU runs, alone and after KVM_IOEVENTFD:"
            f" {'; '.join(toggles)}. Toggle rarely; marks need no call."
        )
    return "".join(f"- {line}\n" for line in lines)


def page(results, about, has_picture):
    """Returns the page."""
    labels = about["kernels"]
    first = next((name for name in ("n1", "max") if name in results), None)
    parts = [
        "# What userfault costs\n",
        *([meaning(first, results[first], results.get("toggles", {}))] if first else []),
        *(["![The main figures](bench.svg)\n"] if has_picture else []),
        f"Made by `{about['command']}` with {about['emulator']}, of three kernels that are",
        "configured alike; `--quick` has the main figures, `--output DIR` says where all goes:\n",
        f"- base: {labels['base']}",
        "- core: the series without the helper in Rust",
        f"- helper: the series with it, up to '{labels['helper']}'\n",
        "Instructions are those of host, VMM and guest together: on these machines one takes a",
        "nanosecond. 4K pages, a slot of 64 MiB unless another size is named, all of it mapped by",
        "pages. *Touch all* is a guest that reads each page. A call that waits for a grace period",
        "is without the wait: the PMU's count of its thread. Figures agree in two boots to 0.1 %",
        "where one thread runs, and to 1 % where the scheduler has a say. n1 is a Neoverse N1, and",
        "max a CPU with FEAT_S2FWB, which cleans nothing. See scripts/bench-programs.\n",
        "Counts are per call or per page: 0.00195 is 1 / 512, once a block. Where kernels differ",
        "they are those of base · core · helper; a dash is what was not counted. Holds of locks are",
        "those of a kernel that counts, for comparison with each other only.\n",
        "On an AmpereOne the author of the interface measured 1.9 to 2.2 times the paging rate of",
        "userfaultfd with 2 vCPUs, and up to 9 times with 64: what is saved there is locks, not",
        "instructions. Nothing that QEMU counts replaces a run on hardware: `scripts/run --here`.\n",
    ]
    for name, kinds in results.items():
        if instructions := kinds.get("instructions"):
            parts += [f"## {name}: instructions\n", main_table(instructions)]
            parts += [limits(instructions.get("helper", []))]
            parts += [demand_table(instructions.get("helper", []))]
        if events := kinds.get("events"):
            compared = " · ".join(label for label in KERNELS if events.get(label))
            parts += [f"## {name}: what hardware pays for ({compared})\n"]
            if any(one.event == "hypercall" for one in events.get("helper", [])):
                parts += ["A slot of 4 MiB, as each hypercall is read from the hypervisor's trace. The"]
                parts += ["hypervisor invalidates TLBs, by these calls.\n"]
            parts += [event_table(events, EVENT_ROWS, WAITS)]
        if scaling := kinds.get("scaling"):
            parts += ["## Paging by several vCPUs, on eight CPUs (n1)\n"]
            parts += ["How often locks were taken and waited for; the emulator says nothing of time.\n"]
            parts += [event_table(scaling, SCALING_ROWS, ("tlb", "longest", "cleaned", "icache"))]
        for hertz, figures in ticking(kinds):
            parts += [f"## Toggles by the clock, on eight CPUs (n1), HZ={hertz}\n"]
            parts += ["Times of an emulator that has few CPUs to run eight on.\n"]
            parts += [toggle_table(figures)]
    return "\n".join(filter(None, parts))


def data(head, rows):
    """Returns a table as gnuplot reads it."""
    lines = [" ".join(f'"{text}"' for text in head)]
    lines += [" ".join("-" if one is None else str(one) for one in row) for row in rows]
    return "".join(f"{line}\n" for line in lines)


def picture(results):
    """Returns the picture, which gnuplot draws, or nothing where there is nothing to draw."""
    with tempfile.TemporaryDirectory() as scratch:
        cpus = []
        for name, kinds in results.items():
            figures = kinds.get("instructions", {})
            core, helper = (figures.get(label, []) for label in ("core", "helper"))
            if total(helper, ("enable", "touch"), marked=1) is None:
                continue
            cpus.append(name)
            flush = total(helper, ("flush", "flush-touch"))
            both = ("enable", "touch")
            rows = [
                [share, flush, *(total(one, both, marked=share) for one in (core, helper))]
                for share in SHARES
            ]
            text = data(["%", "flush", "without the helper", "with the helper"], rows)
            pathlib.Path(scratch, f"{name}-shares.dat").write_text(text)
            rows = [
                [count, *(value(helper, name, vcpus=count) for name in DEMAND.values())]
                for count in (1, 2, 4, 8)
            ]
            text = data(["vCPUs", *DEMAND], rows)
            pathlib.Path(scratch, f"{name}-demand.dat").write_text(text)
        if not cpus:
            return ""
        command = ["gnuplot", "-e", f"cpus='{' '.join(cpus)}'", LAB / "bench.gnuplot"]
        return output(command, cwd=scratch)


def lines_of_json(data):
    """Returns JSON with a line for each figure."""
    text = json.dumps(data, indent=1, default=dataclasses.asdict) + "\n"
    return re.sub(r"\{[^{}]*\}", lambda match: re.sub(r"\n\s*", " ", match[0]), text)


def write(directory, results, about):
    """Writes the results and returns the files."""
    directory.mkdir(parents=True, exist_ok=True)
    drawn = picture(results)
    texts = {
        "bench.md": page(results, about, bool(drawn)),
        "bench.json": lines_of_json({**about, "machines": results}),
        "bench.svg": drawn,
    }
    written = {directory / name: text for name, text in texts.items() if text}
    for path, text in written.items():
        path.write_text(text)
    return list(written)
