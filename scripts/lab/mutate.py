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

import collections
import dataclasses
import itertools
import re

from common import LAB, LabError

DIRECTORY = LAB / "mutants"

# What the lines of a change are: an expression around which others may be, or statements.
EXPRESSION = re.compile(r"((?: .*\n)*)\? *(.*)\n: *(.*)\n")
STATEMENTS = re.compile(r"((?: .*\n)*)((?:-.*\n)*)((?:\+.*\n)*)((?: .*\n)*)")

# What stands in the place of a change, both versions, by whether it is Rust, and an expression.
FORMS = {
    (False, False): "{ if (mutant(%d)) {\n%s} else {\n%s} }\n",
    (False, True): "(mutant(%d) ? (%s) : (%s))",
    (True, False): "if crate::mutant(%d) {\n%s} else {\n%s}\n",
    (True, True): "(if crate::mutant(%d) { %s } else { %s })",
}

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


# A change of a file: what is there, with what is around it, and what acts in its place.
Change = collections.namedtuple("Change", "file before old new after is_expression")
# A change at its place in a text.
Edit = collections.namedtuple("Edit", "start end mutant change")


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A wrong change, with the number by which the kernel knows it."""

    number: int
    name: str
    fields: dict
    changes: list

    def listed(self, field, default=""):
        """Returns what a field lists, with commas between."""
        return re.findall(r"[^\s,]+", self.fields.get(field, default))

    @property
    def cases(self):
        """Returns the cases of which one must fail."""
        return self.listed("caught-by")

    @property
    def places(self):
        """Returns the machines and kernels that show it, as [(machine, variant of the kernel)]."""
        return list(itertools.product(self.listed("machine", "nofwb"), self.listed("kernel", "4k")))


def unmarked(lines):
    """Returns lines without the first character of each, which says what they are."""
    return re.sub("^.", "", lines, flags=re.MULTILINE)


def read_change(file, text, where):
    """Reads a change from its lines."""
    expression, statements = EXPRESSION.fullmatch(text), STATEMENTS.fullmatch(text)
    if expression:
        around, old, new = unmarked(expression[1]), expression[2], expression[3]
        if around and around.count(old) != 1:
            raise LabError(f"{where}: '{old}' is not once in the lines around it")
        before, _, after = around.partition(old)
        return Change(file, before, old, new, after, True)
    if not statements or not (statements[2] or statements[3]):
        raise LabError(f"{where}: this is no change of lines that are there:\n{text}")
    return Change(file, *map(unmarked, statements.groups()), False)


def read_changes(text, where):
    """Reads the changes of a mutant."""
    changes, file = [], None
    parts = re.split(r"^(?:in (.+)|@@)\n", text, flags=re.MULTILINE)
    for name, lines in zip(parts[1::2], parts[2::2]):
        file = name or file
        # An empty line need not have its ' '.
        lines = re.sub(r"^$", " ", lines.strip("\n"), flags=re.MULTILINE)
        changes.append(read_change(file, f"{lines}\n", where))
    return changes


def read(text, path):
    """Reads a file of mutants, yields (name, fields, changes)."""
    for part in re.split(r"^mutant ", text, flags=re.MULTILINE)[1:]:
        head, found, body = part.partition("\nin ")
        name = head.partition("\n")[0]
        where = f"{path}: {name}"
        fields = dict(re.findall(r"^([a-z-]+): *(.+)$", head, re.MULTILINE))
        if not found or "breaks" not in fields or not fields.keys() & {"caught-by", "equivalent"}:
            raise LabError(f"{where}: it lacks 'breaks:', 'caught-by:' or a change")
        yield name, fields, read_changes(f"in {body}", where)


def mutants(directory=DIRECTORY):
    """Returns all mutants."""
    paths = sorted(directory.glob("*.mutants"))
    found = [one for path in paths for one in read(path.read_text(), path.name)]
    [(name, count)] = collections.Counter(name for name, _, _ in found).most_common(1)
    if count > 1:
        raise LabError(f"more than one mutant is called {name}")
    return [Mutant(number, *one) for number, one in enumerate(found, 1)]


def place(change, mutant, text):
    """Returns where a change is in a text."""
    around = change.before + change.old + change.after
    if text.count(around) != 1:
        raise LabError(
            f"the mutant {mutant.name} does not fit {change.file} any more: what it changes is"
            f" there {text.count(around)} times:\n{around}"
        )
    start = text.index(around) + len(change.before)
    return Edit(start, start + len(change.old), mutant, change)


def rewrite(text, changes):
    """Returns a text with all [(mutant, change)] in it: one may lie within another, and not cross
    it."""
    edits = [place(change, mutant, text) for mutant, change in changes]
    edits.sort(key=lambda edit: (edit.start, -edit.end, edit.mutant.number))

    def render(start, end):
        """Renders a part of the text with the edits at the head of the list that are in it."""
        out = []
        while edits and edits[0].end <= end:
            edit = edits.pop(0)
            out.append(text[start : edit.start])
            change, old = edit.change, render(edit.start, edit.end)
            form = FORMS[change.file.endswith(".rs"), change.is_expression]
            out.append(form % (edit.mutant.number, change.new, old))
            start = edit.end
            if edits and edits[0].start < start:
                names = f"{edit.mutant.name} and {edits[0].mutant.name}"
                raise LabError(f"the mutants {names} change lines that overlap")
        return "".join([*out, text[start:end]])

    return render(0, len(text))


def files(all_mutants, source):
    """Returns the files of a kernel tree with all mutants in them, as {name: text}."""
    changes = {PARAMETER_FILE: [], RUST_FILE: [], RUST_HEADER: []}
    for mutant in all_mutants:
        for change in mutant.changes:
            changes.setdefault(change.file, []).append((mutant, change))
    changed = {HEADER_FILE: HEADER}
    for name, of_file in changes.items():
        text = rewrite((source / name).read_text(), of_file)
        if name.endswith((".c", ".h")):
            text = re.sub(r"^#include ", f"{INCLUDE}#include ", text, count=1, flags=re.MULTILINE)
        changed[name] = text
    changed[PARAMETER_FILE] += PARAMETER
    changed[RUST_FILE] += RUST
    return changed
