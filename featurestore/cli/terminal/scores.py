"""Scores of unlearning as text."""

from collections.abc import Mapping, Sequence
from typing import Any

from featurestore.cli.terminal.tables import as_text

_COLUMNS = {
    "ua": "UA",
    "ua_none": "UA (none)",
    "ira": "IRA",
    "cra": "CRA",
    "cra_plain": "CRA (released)",
}


def scores_table(rows: Sequence[tuple[str, Mapping[str, Any]]], judge: str) -> str:
    """Return named summaries as a table, accuracies in percent with their intervals.

    UA of pictures that show none of what was removed is left out where it is UA in every row,
    seconds where nothing was drawn.
    """
    distance = f"Fréchet ({judge})"
    table = []
    for name, figures in rows:
        cells = {"removed": name, **{title: _cell(figures[key]) for key, title in _COLUMNS.items()}}
        cells[distance] = "" if figures["frechet"] is None else f"{figures['frechet']:.3g}"
        seconds = figures["seconds_per_picture"]
        cells["s per picture"] = "" if seconds is None else f"{seconds:.2f}"
        table.append({**cells, "pictures": str(figures["pictures"])})
    several = any(row["UA (none)"] != row["UA"] for row in table)
    hidden = {
        "UA (none)": not several,
        "s per picture": not any(row["s per picture"] for row in table),
    }
    return _as_text(
        [{title: cell for title, cell in row.items() if not hidden.get(title)} for row in table]
    )


def _cell(figure: Mapping[str, float] | None) -> str:
    return (
        ""
        if figure is None
        else f"{100 * figure['value']:.1f} [{100 * figure['low']:.1f}, {100 * figure['high']:.1f}]"
    )


def sequential_table(removals: Sequence[Mapping[str, Any]]) -> str:
    """Return UA of each earlier target after every request."""
    targets = list(removals[-1]["ua_by_target"])
    rows = []
    for number, row in enumerate(removals, 1):
        cells = {
            t: f"{100 * row['ua_by_target'][t]:.1f}" if t in row["ua_by_target"] else ""
            for t in targets
        }
        rows.append({"after": str(number), **cells})
    return "\nUA of each target after every request:\n" + _as_text(rows)


def _as_text(rows: Sequence[Mapping[str, str]]) -> str:
    import pyarrow as pa

    return as_text(pa.Table.from_pylist([dict(row) for row in rows]), rows=None)
