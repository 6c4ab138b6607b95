"""The tables of docs/scale.md, made of what benchmarks/scale.py has recorded last."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results" / "scale.jsonl"
PAGE = Path(__file__).parents[2] / "docs" / "scale.md"
BEGIN, END = "<!-- figures: written by benchmarks/scale.py --page -->", "<!-- end of figures -->"
_MEASURED = re.compile(r"(shards|rows) ([0-9.]+) x, (now|0\.1): (.+)")
_PEERS = ("DuckDB, plain", "datasets", "Spark", "selection of one style")
Figures = Mapping[str, Any]


def tables(figures: Figures) -> str:
    """Return the tables of recorded figures: commands over many shards, commands and questions
    over many rows, the same by other tools."""
    parts = []
    for kind in ("shards", "rows"):
        own = [name for name in _names(figures, kind) if not name.startswith(_PEERS)]
        parts.append(_table(figures, kind, own))
    parts.append(_peers(figures))
    return "\n\n".join(parts)


def write_page() -> None:
    """Put the tables of the last recorded run between their marks on the page.

    Raises:
        ValueError: the page has no such marks.
    """
    text = PAGE.read_text(encoding="utf-8")
    if not text.partition(BEGIN)[2].partition(END)[1]:
        raise ValueError(f"{PAGE} has not the marks {BEGIN} and {END}, in this order.")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{tables(last())}\n\n{END}{after}", encoding="utf-8")


def last() -> Figures:
    """Return the figures of the last recorded run."""
    line = RESULTS.read_text(encoding="utf-8").splitlines()[-1]
    figures: Figures = json.loads(line)["figures"]
    return figures


def _matches(figures: Figures, kind: str) -> Iterable[tuple[float, str, str]]:
    """Yield scale, version and name of what was measured with growing shards or rows."""
    for key in figures:
        found = _MEASURED.fullmatch(key)
        if found and found[1] == kind:
            yield float(found[2]), found[3], found[4]


def _names(figures: Figures, kind: str) -> list[str]:
    return list(dict.fromkeys(name for _, _, name in _matches(figures, kind)))


def _table(figures: Figures, kind: str, names: list[str]) -> str:
    columns = sorted({(v != "0.1", scale) for scale, v, name in _matches(figures, kind)})
    versions = [("now" if now else "0.1", scale) for now, scale in columns]
    heads = [f"{version}, {scale:g} ×" for version, scale in versions]
    grows = f"s grow with {kind} to the power: 0.1, now | MB of files hashed"
    lines = [f"| | {' | '.join(heads)} | {grows} |", f"|---|{'---:|' * (len(heads) + 2)}"]
    for name in names:
        cells = [
            _cell(figures.get(f"{kind} {scale:g} x, {version}: {name}"))
            for version, scale in versions
        ]
        powers = [figures.get(f"grows with {kind}, {v}: {name}", {}) for v in ("0.1", "now")]
        told = ", ".join("–" if p.get("cpu") is None else f"{p['cpu']:.2f}" for p in powers)
        own = (figures.get(f"{kind} {scale:g} x, now: {name}", {}) for _, scale in versions)
        hashed = [took["files_hashed_mb"] for took in own if "files_hashed_mb" in took]
        most = f"{max(hashed):,.1f}" if hashed else "–"
        lines.append(f"| {_shown(name)} | {' | '.join(cells)} | {told} | {most} |")
    return "\n".join(lines)


def _peers(figures: Figures) -> str:
    lines = ["| | over | s, files, MB |", "|---|---|---:|"]
    for kind in ("shards", "rows"):
        for name in _names(figures, kind):
            for scale, version, other in sorted(_matches(figures, kind)):
                if name == other and name.startswith(_PEERS):
                    cell = _cell(figures[f"{kind} {scale:g} x, {version}: {name}"])
                    lines.append(f"| {name} | {scale:g} × the {kind} | {cell} |")
    return "\n".join(lines)


def _cell(figures: Figures | None) -> str:
    """Return processor seconds, files opened and megabytes of memory."""
    if figures is None:
        return "–"
    if "failed" in figures:
        return str(figures["failed"]).replace("|", "/")[:60]
    files = "many" if figures["files"] is None else f"{figures['files']:,}"
    return f"{figures['cpu']:,.2f}, {files}, {figures['mb']:,.0f}"


def _shown(name: str) -> str:
    """Return a task's name, what is typed as code."""
    command, _, rest = name.partition(": ")
    if command in ("sql", "query"):
        is_code = command == "query" or rest == "count(*)"
        return f"`{command}`: `{rest}`" if is_code else f"`{command}`: {rest}"
    return name
