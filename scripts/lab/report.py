# SPDX-License-Identifier: GPL-2.0-only
"""Writes what scripts/bench has measured: a Markdown page, a JSON file, a picture."""

import dataclasses
import json
import re

import plot

KERNELS = ("base", "core", "helper")
PAGE = 4096
SLOT = (64 << 20) // PAGE


def value(figures, name, **wanted):
    """Returns the value of a figure, or nothing where there is none."""
    for figure in figures:
        fields = dataclasses.asdict(figure)
        if figure.name == name and all(fields[key] == want for key, want in wanted.items()):
            return figure.value
    return None


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a table: the sum of figures, divided by another figure if there is one."""

    text: str
    names: tuple
    over: str = ""
    marked: int = None
    vcpus: int = 1

    def value(self, figures):
        """Returns its value of a kernel, or nothing."""
        wanted = {"vcpus": self.vcpus}
        if self.marked is not None:
            wanted["marked"] = self.marked
        terms = [value(figures, name, **wanted) for name in self.names]
        if None in terms:
            return None
        if not self.over:
            return sum(terms)
        divisor = value(figures, self.over, vcpus=self.vcpus)
        return sum(terms) / divisor if divisor else None


def toggles():
    """Returns the rows about setting the flag."""
    for share in (0, 1, 50, 100):
        text = f"enable, all mapped, {share} % marked"
        yield Row(text, ("enable",), marked=share)
        yield Row(f"{text}; touch all", ("enable", "touch"), marked=share)


ROWS = [
    Row("fault, flag never used, a page", ("fault",)),
    Row("the same in blocks, a page", ("fault-block",)),
    Row("KVM_RUN that exits by MMIO", ("mmio-exit",)),
    Row("KVM_RUN that exits by userfault", ("userfault-exit",)),
    Row("userfault exit ÷ MMIO exit", ("userfault-exit",), over="mmio-exit"),
    Row("a marked page: exit, clear, run, map", ("userfault-page",)),
    *toggles(),
    Row("disable, all mapped", ("disable",), marked=0),
    Row("fault, flag set, none marked, memory in blocks, a page", ("unmarked-block",)),
    Row("all marked, VMM supplies blocks, a page", ("prefetched-block",)),
    Row("enable, slot of 1 TiB, 1024 marked", ("enable-terabyte",)),
    Row("others' longest wait for the CPU, enable, none marked", ("latency-enable",), marked=0),
    Row("the same, 1 % marked", ("latency-enable",), marked=1),
    Row("the same, slot of 1 TiB", ("latency-enable-terabyte",)),
    Row("paging by userfault, a page", ("demand-userfault",)),
    Row("paging by userfault with UFFDIO_COPY, a page", ("demand-userfault-copy",)),
    Row("paging by userfaultfd MISSING, a page", ("demand-missing",)),
    Row("userfault ÷ MISSING", ("demand-userfault",), over="demand-missing"),
    Row("UFFDIO_COPY ÷ MISSING", ("demand-userfault-copy",), over="demand-missing"),
    Row("paging of a file by userfault, a page", ("demand-userfault-file",)),
    Row("paging of a file by userfaultfd MINOR, a page", ("demand-minor",)),
    Row("userfault ÷ MINOR", ("demand-userfault-file",), over="demand-minor"),
]

# What is counted, by figure: (text, name, fields, what it is counted of).
EVENT_ROWS = [
    ("disable, all mapped", "disable", {"marked": 0}, 1),
    *(
        (f"enable, all mapped, {share} % marked", "enable", {"marked": share}, 1)
        for share in (0, 1, 50, 100)
    ),
    ("KVM_RUN that exits by MMIO", "mmio-exit", {}, 1000),
    ("KVM_RUN that exits by userfault", "userfault-exit", {}, 1000),
    ("a marked page: exit, clear, run, map", "userfault-page", {}, SLOT),
    ("fault, flag set, none marked, memory in blocks, a page", "unmarked-block", {}, SLOT),
    *(
        (f"paging {how}, {vcpus} vCPUs, a page", name, {"vcpus": vcpus}, (16 << 20) // PAGE)
        for how, name in (
            ("by userfault", "demand-userfault"),
            ("by userfault with UFFDIO_COPY", "demand-userfault-copy"),
            ("by userfaultfd MISSING", "demand-missing"),
            ("of a file by userfault", "demand-userfault-file"),
            ("of a file by userfaultfd MINOR", "demand-minor"),
        )
        for vcpus in (1, 8)
    ),
]

DEMAND = {
    "userfault": "demand-userfault",
    "userfault, UFFDIO_COPY": "demand-userfault-copy",
    "MISSING": "demand-missing",
    "userfault, file": "demand-userfault-file",
    "MINOR, file": "demand-minor",
}


def number(amount):
    """Returns a number as a table shows it."""
    if amount is None:
        return ""
    if amount >= 1e6:
        return f"{amount / 1e6:.2f} M"
    if amount >= 10000:
        return f"{amount:,.0f}".replace(",", " ")
    if amount >= 100:
        return f"{amount:.1f}"
    return f"{amount:.3g}"


def ratio(amount, reference):
    """Returns a ratio as a table shows it, or nothing."""
    return f"{amount / reference:.4f}" if amount and reference else ""


def table(head, rows):
    """Returns a table in Markdown, the first column of text, the others of numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def main_table(by_kernel):
    """Returns the table of all figures."""
    rows = []
    for row in ROWS:
        base, core, full = (row.value(by_kernel.get(name, [])) for name in KERNELS)
        if full is not None:
            ratios = ["", ""] if row.over else [ratio(full, base), ratio(full, core)]
            rows.append([row.text, number(base), number(core), number(full), *ratios])
    head = ["instructions", *KERNELS, "helper ÷ base", "helper ÷ core"]
    return table(head, rows)


def variations(figures, name, key):
    """Returns what a figure is for each value of what is varied, as [(value, figure)]."""
    return sorted((getattr(figure, key), figure.value) for figure in figures if figure.name == name)


def curve_table(by_kernel, key, title, names, show):
    """Returns a table of figures over what is varied, of the kernels with userfault, or nothing."""
    columns = {}
    for label, figures in by_kernel.items():
        for text, name in names.items():
            points = dict(variations(figures, name, key))
            if points and (label != "base" or "userfault" not in text):
                columns[f"{text} ({label})"] = points
    places = sorted(set().union(*columns.values())) if columns else []
    if len(places) < 2:
        return ""
    rows = [[show(x), *(number(points.get(x)) for points in columns.values())] for x in places]
    return table([title, *columns], rows)


def size_text(pages):
    """Returns the size of a slot in words."""
    mebibytes = pages * PAGE >> 20
    return f"{mebibytes} MiB" if mebibytes < 1024 else f"{mebibytes >> 10} GiB"


def curves(by_kernel):
    """Returns the tables about scaling."""
    with_flag = {name: by_kernel[name] for name in ("core", "helper")}
    share = {"enable": "enable", "touch all": "touch", "disable": "disable"}
    size = {"enable, 1 % marked": "enable-by-size", "disable": "disable-by-size"}
    tables = [
        curve_table(with_flag, "marked", "marked", share, "{} %".format),
        curve_table(with_flag, "slot_pages", "slot", size, size_text),
        curve_table({"helper": by_kernel["helper"]}, "vcpus", "vCPUs", DEMAND, str),
    ]
    return "\n".join(filter(None, tables))


def event_table(figures):
    """Returns the table of what was counted."""
    events = list(dict.fromkeys(figure.event for figure in figures))
    rows = []
    for text, name, fields, per in EVENT_ROWS:
        found = [value(figures, name, event=event, **fields) for event in events]
        if None not in found:
            rows.append([text, *(number(amount / per) for amount in found)])
    return table(["times", *events], rows)


def page(results, about):
    """Returns the page."""
    labels = about["kernels"]
    parts = [
        "# What userfault costs\n",
        f"Made by `{about['command']}` with {about['emulator']}.\n",
        f"* base: {labels['base']}",
        "* core: the series without the helper in Rust",
        f"* helper: the series with it, up to '{labels['helper']}'\n",
        "Numbers are instructions, of host, VMM and guest together: on these machines an",
        "instruction takes a nanosecond. 4K pages, a slot of 64 MiB unless another size is",
        "named, VMs without interrupt controller, guests with their MMU on whose own tables",
        "are mapped. *All mapped* is by pages, and *touch all* a guest that then reads each",
        "page. Tables of calls and locks are per call or per page: 0.00195 is 1 / 512, once",
        "a block. See scripts/bench-programs/userfault_bench.rs.\n",
        "Each figure is of one boot. Two boots of a kernel agree to 0.01 % where one thread",
        "runs, and to 1 % where the scheduler has a say: several vCPUs, or a handler thread.\n",
        "n1 is a Neoverse N1, and max a CPU with FEAT_S2FWB, which has no need to clean what it",
        "unmaps to memory.\n",
        "![The main figures](bench.svg)\n",
    ]
    for name, kinds in results.items():
        parts += [f"## {name}\n", main_table(kinds["instructions"])]
        parts += [curves(kinds["instructions"])]
        for label, figures in kinds["events"].items():
            parts += [f"### {name}: calls and locks, {label}\n"]
            parts += ["On a machine with two CPUs and a kernel that counts these.\n"]
            parts += [event_table(figures)]
    return "\n".join(parts)


def ratio_panel(name, by_kernel):
    """Returns a chart of what the series costs in relation to what it is compared with."""
    base, rows = by_kernel["base"], {}
    for label in ("core", "helper"):
        figures = by_kernel[label]
        pairs = [
            (value(figures, "fault"), value(base, "fault")),
            (value(figures, "fault-block"), value(base, "fault-block")),
            (value(figures, "userfault-exit"), value(figures, "mmio-exit")),
            (value(figures, "demand-userfault"), value(figures, "demand-missing")),
            (value(figures, "demand-userfault-file"), value(figures, "demand-minor")),
        ]
        rows[label] = [
            amount / reference if amount and reference else None for amount, reference in pairs
        ]
    categories = [
        "fault, no flag\n÷ base",
        "in blocks\n÷ base",
        "exit\n÷ MMIO exit",
        "paging\n÷ MISSING",
        "of a file\n÷ MINOR",
    ]
    return plot.Panel(f"{name}: in relation", "", "ratio", rows, categories, mark=1)


def panels_of(name, by_kernel):
    """Returns a machine's charts."""
    full, core = by_kernel["helper"], by_kernel["core"]
    sizes = {
        "enable (core)": variations(core, "enable-by-size", "slot_pages"),
        "enable (helper)": variations(full, "enable-by-size", "slot_pages"),
        "disable (helper)": variations(full, "disable-by-size", "slot_pages"),
    }
    shares = {}
    for label, figures in (("core", core), ("helper", full)):
        touch = dict(variations(figures, "touch", "marked"))
        enable = variations(figures, "enable", "marked")
        shares[label] = [(x, y + touch[x]) for x, y in enable]
    demand = {text: variations(full, which, "vcpus") for text, which in DEMAND.items()}
    ticks = {x: size_text(x) for x, _ in sizes["enable (helper)"]}
    vcpus = {x: str(x) for x, _ in demand["userfault"]}
    unit = "instructions"
    return [
        ratio_panel(name, by_kernel),
        plot.Panel(
            f"{name}: setting and clearing the flag, 1 % marked",
            *("size of the slot, all of it mapped", unit, sizes),
            x_ticks=ticks,
            logarithmic=True,
        ),
        plot.Panel(
            f"{name}: setting the flag and touching 64 MiB again",
            *("pages marked, percent", unit, shares),
        ),
        plot.Panel(
            f"{name}: paging on demand", "vCPUs", f"{unit} a page", demand, x_ticks=vcpus
        ),
    ]


def picture(results):
    """Returns the picture: a column a machine."""
    columns = [panels_of(name, kinds["instructions"]) for name, kinds in results.items()]
    rows = [row for row in zip(*columns) if any(plot.values_of(panel) for panel in row)]
    return plot.svg([panel for row in rows for panel in row], len(columns))


def lines_of_json(data):
    """Returns JSON with a line for each figure."""
    text = json.dumps(data, indent=1) + "\n"
    return re.sub(r"\{[^{}]*\}", lambda match: re.sub(r"\n\s*", " ", match[0]), text)


def write(directory, results, about):
    """Writes the results and returns the files."""
    directory.mkdir(parents=True, exist_ok=True)
    raw = {
        name: {
            kind: {
                label: [dataclasses.asdict(figure) for figure in figures]
                for label, figures in by_kernel.items()
            }
            for kind, by_kernel in kinds.items()
        }
        for name, kinds in results.items()
    }
    texts = {
        "bench.md": page(results, about),
        "bench.json": lines_of_json({**about, "machines": raw}),
        "bench.svg": picture(results),
    }
    for name, text in texts.items():
        (directory / name).write_text(text)
    return [directory / name for name in texts]
