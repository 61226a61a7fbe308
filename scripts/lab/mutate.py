# SPDX-License-Identifier: GPL-2.0-only
"""Puts many wrong changes into one kernel, where a parameter says which of them acts.

A file of scripts/lab/mutants has mutants of one topic:

    mutant exit-without-flag
    breaks: the exit has exactly the userfault flag
    caught-by: marked_page_exits
    in arch/arm64/kvm/mmu.c
     	kvm_prepare_memory_fault_exit(vcpu, gfn_to_gpa(gfn), PAGE_SIZE,
     				      is_write, is_exec, false);
    -	vcpu->run->memory_fault.flags |= KVM_MEMORY_EXIT_FLAG_USERFAULT;

Lines with ' ' and '-' are in the file, once, and those with '-' are statements, in
the place of which those with '+' act. Or '?' is an expression of the lines with
' ', or of the whole file, in the place of which ':' acts. '@@' begins another
change of the same file, 'in' one of another. 'machine:' and 'kernel:' name where
a mutant can be seen, if that is not nofwb and the 4k kernel. 'equivalent:', in the
place of 'caught-by:', says why nothing can see it.
"""

import dataclasses
import itertools
import re

from common import LAB, LabError

DIRECTORY = LAB / "mutants"

HEADER = """\
/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef __KVM_MUTANT_H
#define __KVM_MUTANT_H
#ifdef __KVM_NVHE_HYPERVISOR__
#define mutant(number)	false
#else
extern int kvm_mutant;
#define mutant(number)	(*(volatile int *)&kvm_mutant == (number))
#endif
#endif
"""
INCLUDE = "#include <linux/kvm_mutant.h>\n"
# The header, where the parameter is, and where Rust reads it.
HEADER_FILE = "include/linux/kvm_mutant.h"
PARAMETER_FILE = "virt/kvm/kvm_main.c"
PARAMETER = f"""
{INCLUDE}int kvm_mutant;
module_param_named(mutant, kvm_mutant, int, 0644);
"""
RUST_FILE, RUST_HEADER = (f"arch/arm64/kvm/userfault/userfault.{end}" for end in ("rs", "h"))
RUST = """
pub(crate) fn mutant(number: i32) -> bool {
    // SAFETY: Nobody has a reference to it.
    unsafe { core::ptr::read_volatile(&raw const bindings::kvm_mutant) == number }
}
"""


@dataclasses.dataclass(frozen=True)
class Change:
    """A change of a file: lines that are there, of which some are replaced."""

    file: str
    before: str
    old: str
    after: str
    new: str
    is_expression: bool


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A wrong change, with the number by which the kernel knows it."""

    number: int
    name: str
    fields: dict
    changes: tuple

    @property
    def breaks(self):
        """Returns the promise that it breaks."""
        return self.fields["breaks"]

    @property
    def cases(self):
        """Returns the cases of which one must fail."""
        return [case.strip() for case in self.fields.get("caught-by", "").split(",") if case]

    @property
    def places(self):
        """Returns the machines and kernels that show it, as [(machine, variant of the kernel)]."""
        machines, kernels = (
            [word.strip() for word in self.fields.get(field, default).split(",")]
            for field, default in (("machine", "nofwb"), ("kernel", "4k"))
        )
        return list(itertools.product(machines, kernels))


@dataclasses.dataclass(frozen=True)
class Edit:
    """A change at its place in a text."""

    start: int
    end: int
    mutant: Mutant
    change: Change


def read_change(file, lines, where):
    """Reads a change from its lines."""
    text = {kind: "".join(f"{line[1:]}\n" for line in lines if line[:1] == kind) for kind in " -+"}
    old, new = ([line[1:].strip() for line in lines if line[:1] == kind] for kind in "?:")
    if old or new:
        if len(old) != 1 or len(new) != 1 or text["-"] or text["+"]:
            raise LabError(f"{where}: an expression has one '?' and one ':'")
        before, found, after = text[" "].partition(old[0])
        if text[" "] and (not found or old[0] in after):
            raise LabError(f"{where}: '{old[0]}' is not once in the lines around it")
        return Change(file, before, old[0], after, new[0], True)
    kinds = re.fullmatch(r"( *)(-*)(\+*)( *)", "".join(line[0] for line in lines))
    if not kinds or not (text["-"] or text["+"]):
        raise LabError(f"{where}: there is no one change in lines that are there")
    first, count = len(kinds[1]), len(kinds[1] + kinds[2] + kinds[3])
    before, after = ("".join(f"{line[1:]}\n" for line in part) for part in (lines[:first], lines[count:]))
    return Change(file, before, text["-"], after, text["+"], False)


def read_changes(lines, where):
    """Reads the changes of a mutant."""
    changes, file, body = [], None, []
    for line in [*lines, "@@"]:
        if line == "@@" or line.startswith("in "):
            while body and not body[-1].strip():
                body.pop()
            if body:
                changes.append(read_change(file, body, where))
            body = []
            file = line.removeprefix("in ") if line != "@@" else file
        elif line or body:
            # An empty line need not have its ' '.
            body.append(line or " ")
    return tuple(changes)


def read(text, path):
    """Reads a file of mutants, yields (name, fields, changes)."""
    for part in re.split(r"^mutant ", text, flags=re.MULTILINE)[1:]:
        name, _, rest = part.partition("\n")
        head, found, body = rest.partition("\nin ")
        where = f"{path}: {name}"
        fields = dict(re.findall(r"^([a-z-]+): *(.+)$", head, re.MULTILINE))
        if not found or "breaks" not in fields or not fields.keys() & {"caught-by", "equivalent"}:
            raise LabError(f"{where}: it lacks 'breaks:', 'caught-by:' or a change")
        yield name, fields, read_changes(f"in {body}".splitlines(), where)


def mutants(directory=None):
    """Returns all mutants."""
    found = []
    for path in sorted((directory or DIRECTORY).glob("*.mutants")):
        found += read(path.read_text(), path.name)
    names = [name for name, _, _ in found]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise LabError(f"more than one mutant is called {', '.join(sorted(twice))}")
    return [Mutant(number, *one) for number, one in enumerate(found, 1)]


def place(change, mutant, text):
    """Returns where a change is in a text."""
    around = change.before + change.old + change.after
    if text.count(around) != 1:
        raise LabError(
            f"the mutant {mutant.name} does not fit {change.file} any more: what it changes is there"
            f" {text.count(around)} times:\n{around}"
        )
    start = text.index(around) + len(change.before)
    return Edit(start, start + len(change.old), mutant, change)


def wrapped(edit, old):
    """Returns what stands in the place of an edit: both versions, of which one acts."""
    number, change = edit.mutant.number, edit.change
    rust = change.file.endswith(".rs")
    test = f"crate::mutant({number})" if rust else f"mutant({number})"
    if change.is_expression:
        if rust:
            return f"(if {test} {{ {change.new} }} else {{ {old} }})"
        return f"({test} ? ({change.new}) : ({old}))"
    if rust:
        return f"if {test} {{\n{change.new}}} else {{\n{old}}}\n"
    return f"{{ if ({test}) {{\n{change.new}}} else {{\n{old}}} }}\n"


def rewrite(text, edits):
    """Returns a text with all edits in it. One may lie within another, but they may not cross."""
    edits = sorted(edits, key=lambda edit: (edit.start, -edit.end, edit.mutant.number))

    def render(start, end):
        """Renders a part of the text with the edits at the head of the list that are in it."""
        out = []
        while edits and edits[0].end <= end:
            edit = edits.pop(0)
            out.append(text[start : edit.start])
            out.append(wrapped(edit, render(edit.start, edit.end)))
            start = edit.end
            if edits and edits[0].start < start:
                names = f"{edit.mutant.name} and {edits[0].mutant.name}"
                raise LabError(f"the mutants {names} change lines that overlap")
        return "".join([*out, text[start:end]])

    return render(0, len(text))


def files(all_mutants, source):
    """Returns the files of a kernel tree with all mutants in them, as {name: text}."""
    edits = {}
    for mutant in all_mutants:
        for change in mutant.changes:
            text = (source / change.file).read_text()
            edits.setdefault(change.file, []).append(place(change, mutant, text))
    names = {*edits, PARAMETER_FILE, RUST_FILE, RUST_HEADER}
    changed = {HEADER_FILE: HEADER}
    for name in sorted(names):
        if not (source / name).exists():
            continue
        text = rewrite((source / name).read_text(), edits.get(name, []))
        if name.endswith((".c", ".h")):
            text = re.sub(r"^#include ", f"{INCLUDE}#include ", text, count=1, flags=re.MULTILINE)
        changed[name] = text
    changed[PARAMETER_FILE] += PARAMETER
    if RUST_FILE in changed:
        changed[RUST_FILE] += RUST
    return changed
