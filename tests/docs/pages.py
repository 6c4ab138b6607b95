"""The pages and their code blocks.

A block is run by a test (``sh``, ``python``), or is no program (``text``: a formula, an output), or
stands after a line ``<!-- not run: WHY -->``.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(
    path.relative_to(ROOT)
    for path in (
        *DOCS.rglob("*.md"),
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "RELEASING.md")),
        *(ROOT / room / "README.md" for room in ("examples", "minicanvas")),
    )
)
_FENCE = re.compile(
    r"^ *(?:<!-- not run: (?P<why>[^\n]+) -->\n *)?```(?P<language>\w*)\n(?P<text>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    """A fenced block of a page."""

    page: Path
    line: int
    """of its first line of text, from 1"""
    language: str
    text: str
    why: str | None
    """why it is not run"""

    @property
    def place(self) -> str:
        """Where it stands, as an editor opens it."""
        return f"{self.page}:{self.line}"


def blocks(page: Path | str) -> list[Block]:
    """A page's blocks, in their order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [
        Block(Path(page), text.count("\n", 0, one.start("text")) + 1, one["language"], one["text"],
              one["why"])
        for one in _FENCE.finditer(text)
    ]  # fmt: skip


def programs(page: Path | str) -> list[Block]:
    """Those that have to run."""
    return [one for one in blocks(page) if not one.why and one.language in ("sh", "python")]


class Shell:
    """A shell whose ``featurestore`` and ``python`` are those of the tests."""

    def __init__(self, binaries: Path) -> None:
        for name, module in (("featurestore", "-m featurestore"), ("python", "")):
            (binaries / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {module} "$@"\n')
            (binaries / name).chmod(0o755)
        path = f"{binaries}:{os.environ['PATH']}"
        self._environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)}
        self._environment |= {"OMP_NUM_THREADS": "1"}

    def __call__(self, script: str, directory: Path) -> str:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=directory,
            env=self._environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
        return done.stdout


def go_through(page: Path | str, shell: Callable[[str, Path], str], directory: Path) -> None:
    """Run a page's programs in a directory: commands in a shell, Python in this process, where
    names stay from one block to the next."""
    assert programs(page)
    names: dict[str, object] = {"__name__": "page"}
    for one in programs(page):
        if one.language == "sh":
            shell(one.text, directory)
        else:
            code = "\n" * (one.line - 1) + one.text
            exec(compile(code, str(one.page), "exec"), names)
