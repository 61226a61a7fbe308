# SPDX-License-Identifier: GPL-2.0-only
"""How mutants get into a kernel: each at its place, and all of them side by side."""

import pathlib
import unittest

import mutate
import small
from common import LabError

FILE = """\
#include <linux/kvm_host.h>
int one(void)
{
	first();
	if (a == b)
		second();
	return a;
}
"""


def change(*lines):
    """Returns a change of file.c."""
    return mutate.read_changes("\n".join(["in file.c", *lines, ""]), "test")


class Rewrite(unittest.TestCase):
    """What becomes of a file."""

    def rewrite(self, *changes, text=FILE):
        """Returns the file with mutants, numbered from 1."""
        numbered = enumerate(changes, 1)
        mutants = [mutate.Mutant(number, f"m{number}", {}, found) for number, found in numbered]
        pairs = [(mutant, one) for mutant in mutants for one in mutant.changes]
        return mutate.rewrite(text, pairs)

    def test_statements(self):
        """Statements are replaced, left out and added."""
        text = self.rewrite(change("-\tfirst();", "+\tother();"))
        self.assertIn("{ if (mutant(1)) {\n\tother();\n} else {\n\tfirst();\n} }\n\tif (a", text)
        text = self.rewrite(change("-\tfirst();"))
        self.assertIn("{ if (mutant(1)) {\n} else {\n\tfirst();\n} }\n", text)
        text = self.rewrite(change(" \tfirst();", "+\tmore();"))
        self.assertIn("\tfirst();\n{ if (mutant(1)) {\n\tmore();\n} else {\n} }\n", text)

    def test_expression(self):
        """An expression is replaced where its lines are."""
        text = self.rewrite(change(" \tif (a == b)", "? a == b", ": a != b"))
        self.assertIn("\tif ((mutant(1) ? (a != b) : (a == b)))\n\t\tsecond", text)

    def test_same_place(self):
        """Several mutants of the same lines, or of a part of them, are all there."""
        changes = [
            change("-\tif (a == b)", "-\t\tsecond();"),
            change("? a == b", ": true"),
            change("? a == b", ": false"),
        ]
        text = self.rewrite(*changes)
        condition = "(mutant(2) ? (true) : ((mutant(3) ? (false) : (a == b))))"
        expected = f"{{ if (mutant(1)) {{\n}} else {{\n\tif ({condition})\n\t\tsecond();\n}} }}\n"
        self.assertIn(expected, text)

    def test_crossing(self):
        """Mutants whose lines overlap otherwise are named."""
        first = change("-\tfirst();", "-\tif (a == b)", "-\t\tsecond();")
        second = change("-\t\tsecond();", "-\treturn a;")
        with self.assertRaisesRegex(LabError, "m1 and m2 change lines that overlap"):
            self.rewrite(first, second)

    def test_out_of_date(self):
        """A mutant of lines that are not there, or not once, is named."""
        with self.assertRaisesRegex(LabError, "m1 does not fit file.c any more"):
            self.rewrite(change("-\tthird();"))
        with self.assertRaisesRegex(LabError, "there 2 times"):
            self.rewrite(change("? a", ": b"), text="a a")

    def test_rust(self):
        """In Rust both versions are expressions as well."""
        found = mutate.read_changes("in file.rs\n? a < b\n: true\n", "test")
        text = self.rewrite(found, text="let c = a < b;\n")
        self.assertEqual(text, "let c = (if crate::mutant(1) { true } else { a < b });\n")


class Files(unittest.TestCase):
    """What the mutants of the lab are."""

    def test_read(self):
        """A mutant without a field, or with a change that is none, is named."""
        for text, wrong in (
            ("mutant one\nbreaks: it\nin file.c\n-x\n", "lacks"),
            ("mutant one\nbreaks: it\ncaught-by: case\n", "lacks"),
            ("mutant one\nbreaks: it\ncaught-by: case\nin file.c\n x\n", "no change of lines"),
            ("mutant one\nbreaks: it\ncaught-by: case\nin file.c\n? x\n", "no change of lines"),
        ):
            with self.subTest(text), self.assertRaisesRegex(LabError, f"one: .*{wrong}"):
                list(mutate.read(text, "file"))

    def test_all(self):
        """All mutants of the lab can be read, and have names of their own."""
        for one in mutate.mutants():
            self.assertTrue(one.changes and (one.cases or "equivalent" in one.fields), one.name)

    def test_twice(self):
        """Two of one name are an error."""
        with small.scratch() as name:
            text = "mutant one\nbreaks: it\ncaught-by: case\nin file.c\n-x\n"
            pathlib.Path(name, "a.mutants").write_text(text + text)
            with self.assertRaisesRegex(LabError, "more than one mutant is called one"):
                mutate.mutants(pathlib.Path(name))
