"""Each fault that was found by using version 0.1 from outside is named in the docstring of a test
that holds what is right: A, stores of strangers; B, prompts and labels; C, pipelines and models; D, the
command line and SQL."""

import ast
import re
from pathlib import Path

import pytest

FAULTS = [f"{part}{n}" for part, last in {"A": 7, "B": 5, "C": 9, "D": 5}.items() for n in range(1, last + 1)]  # fmt: skip
NAMED = re.compile(r"\b([ABCD][1-9])\b")


def named():
    """Fault → the tests whose docstring, or whose module's, names it."""
    found = {}
    for path in sorted(Path(__file__).parent.rglob("test_*.py")):
        if path == Path(__file__):
            continue
        module = ast.parse(path.read_text(encoding="utf-8"))
        tests = [
            node
            for node in ast.walk(module)
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
        ]
        for node in [module, *tests] if tests else []:
            for fault in NAMED.findall(ast.get_docstring(node) or ""):
                found.setdefault(fault, []).append(f"{path.name}: {getattr(node, 'name', '')}")
    return found


def test_every_fault_is_named_by_a_test():
    found = named()
    assert [fault for fault in FAULTS if fault not in found] == []
    unknown = {fault: tests for fault, tests in found.items() if fault not in FAULTS}
    assert unknown == {}


@pytest.mark.parametrize("text", ["A1: a record", "faults A1 and C7", "(A1)"])
def test_a_fault_is_told_from_other_words(text):
    assert NAMED.findall(text)[0] == "A1" and not NAMED.findall("A12, XA1, a1")
