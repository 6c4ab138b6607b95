"""Hashes that stand in the keys of the ledger: what is made again when something changed."""

import ast
import functools
from pathlib import Path
from typing import Any

from featurestore.format.canonical import canonical_json, sha256_text

CODE = Path(__file__).parents[1]
"""where the code of the methods stands"""


@functools.cache
def code_of(*modules: str) -> str:
    """Return a hash of what modules of :data:`CODE` compute: comments, docstrings and layout change
    nothing."""
    texts = []
    for module in modules:
        tree = ast.parse((CODE / f"{module}.py").read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(body := getattr(node, "body", None), list):
                node.body = [one for one in body if not _is_text(one)]  # type: ignore[attr-defined]
        texts.append(ast.unparse(tree))
    return short_hash(texts)


def _is_text(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def short_hash(what: Any) -> str:
    """Return sixteen digits of what can be written as JSON."""
    return sha256_text(canonical_json(what))[:16]
