"""What is imported where, beside the layers that import-linter holds (`make check`); the public
names."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = {"featurestore", "collectors", "sae", "queries", "minicanvas"}
MODELS = {"torch", "diffusers", "transformers"}
LAZY = {"datasets", "polars"}


def imports(path, top_level_only=False):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.split(".")[0]


def sources(package):
    """The package's files, without the rooms that stand on top of the others."""
    return [
        p
        for p in (ROOT / package).rglob("*.py")
        if not {"cli", "explorer"} & set(p.relative_to(ROOT).parts)
    ]


@pytest.mark.parametrize("package", ["featurestore", "queries"])
def test_the_store_and_the_queries_need_no_torch(package):
    for path in sources(package):
        assert not set(imports(path)) & MODELS, path
        assert not set(imports(path, top_level_only=True)) & LAZY, path


def test_commands_import_nothing_heavy_before_they_run():
    light = {"click", "featurestore", "collections", "pathlib", "typing", "json", "sys", "re", "importlib", "time",
             "contextlib", "decimal", "io", "itertools", "math", "os", "shutil", "shlex", "signal", "threading", "warnings",
             "types", "dataclasses", "functools"}  # fmt: skip
    rooms = (ROOT / "featurestore/cli" / room for room in ("", "options", "terminal"))
    for path in (path for room in rooms for path in room.glob("*.py")):
        assert set(imports(path, top_level_only=True)) <= light, path


def test_no_test_module_imports_another():
    for path in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                module = node.module or ""
                assert not module.rpartition(".")[2].startswith("test_"), (
                    f"{path}:{node.lineno} imports {module}"
                )
