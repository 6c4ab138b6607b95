"""Text for people: aligned tables, no wider than the terminal; sizes and durations."""

import shutil
import sys
from collections.abc import Sequence

_NARROW = 12
"""characters of a column of text that is cut to fit a terminal"""


def text_table(
    names: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[bool] | None = None
) -> str:
    """Return texts as an aligned table, ``right`` columns to the right; on a terminal no wider than
    that.

    Cells that are too long are cut, columns that do not fit are named below.
    """
    from tabulate import DataRow, TableFormat, tabulate

    from featurestore.cli.terminal.values import visible

    right = right or [False] * len(names)
    cells = [[visible(cell) for cell in row] for row in (names, *rows)]
    widths = [max(map(_width, column)) for column in zip(*cells, strict=True)]
    widths, n_shown = _fitted(widths, right, terminal_width())
    fitted = [
        [cut(cell, width) for cell, width in zip(row[:n_shown], widths, strict=False)]
        for row in cells
    ]
    fitted.insert(1, ["─" * max(map(_width, column)) for column in zip(*fitted, strict=True)])
    row = DataRow("", "  ", "")
    look = TableFormat(None, None, None, None, row, row, 0, None)
    align = ["right" if is_right else "left" for is_right in right[:n_shown]]
    made = tabulate(fitted, (), look, disable_numparse=True, colalign=align)
    text = "\n".join(part.rstrip() for part in made.split("\n"))
    left_out = (
        f"\n… and the columns {', '.join(cells[0][n_shown:])}" if n_shown < len(names) else ""
    )
    return text + left_out


def terminal_width() -> int | None:
    """Return how many characters a line of the terminal has; None where the output goes
    elsewhere."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _fitted(widths: list[int], right: Sequence[bool], total: int | None) -> tuple[list[int], int]:
    """Return the columns' widths and how many columns are shown within ``total`` characters."""
    if total is None:
        return widths, len(widths)
    fit = widths
    for narrow in range(max(widths, default=0), _NARROW - 1, -1):
        fit = [
            width if is_right else min(width, narrow)
            for width, is_right in zip(widths, right, strict=True)
        ]
        if sum(fit) + 2 * (len(fit) - 1) <= total:
            return fit, len(fit)
    n = len(fit)
    while n > 1 and sum(fit[:n]) + 2 * (n - 1) > total:
        n -= 1
    return fit, n


def _width(text: str) -> int:
    """Return how many columns of a terminal a text takes: two for 雪, none for an accent that stands
    alone."""
    from wcwidth import wcswidth

    return len(text) if text.isascii() else max(0, wcswidth(text))


def cut(text: str, width: int) -> str:
    """Return a text of at most ``width`` columns of a terminal, with … where it was cut."""
    if _width(text) <= width:
        return text
    while text and _width(text) > width - 1:
        text = text[:-1]
    return f"{text}…"


def human_bytes(size: float) -> str:
    """Return a size with a decimal unit: 12.3 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def human_seconds(seconds: float) -> str:
    """Return a duration as people say it: 12 s, 3.4 min, 5.6 h, 2.1 days."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
