"""Tables as text, and in the file formats of ``--format``."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import pyarrow as pa

FORMATS = {
    "table": "",
    "csv": ".csv",
    "json": ".json",
    "parquet": ".parquet",
    "jsonl.zst": ".jsonl.zst",
    "markdown": ".md",
}
"""format → the suffix that names it"""
BINARY = ("parquet", "jsonl.zst")
ROWS_SHOWN = 40
_CELL = 60


def output_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--format``, ``-o`` and ``--memory``: what a command that answers with a table is to do with it."""
    options = [
        click.option(
            "--format",
            "form",
            type=click.Choice(list(FORMATS)),
            default=None,
            help="[default: as the suffix of -o says, else table]",
        ),
        click.option("-o", "--output", type=click.Path(path_type=Path), help="Write to this file instead."),
        click.option("--memory", help="Spill to disk above this, such as 2GB.  [default: 80% of the machine's]"),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def resolved_format(form: str | None, output: Path | None) -> str:
    """Return the format that is asked for, or that the suffix of ``output`` names.

    Raises:
        UsageError: Parquet to a terminal.
    """
    from featurestore.errors import UsageError

    if form is None:
        named = [name for name, suffix in FORMATS.items() if suffix and output and output.name.endswith(suffix)]
        form = named[0] if named else "table"
    if form in BINARY and output is None and sys.stdout.isatty():
        raise UsageError(f"--format {form} writes bytes: give -o FILE, or pipe the output.")
    return form


def show(table: "pa.Table", form: str, output: Path | None) -> None:
    """Write a table to a file, or to stdout if there is none."""
    from featurestore.format import durable

    data = encode(table, form)
    if output is None:
        click.echo(data, nl=False)
    else:
        durable.write_bytes(output, data)


def encode(table: "pa.Table", form: str) -> bytes:
    """Return a table in one of ``FORMATS``; ``table`` shows the first rows only, all others are whole."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    from featurestore.errors import QueryError

    if form == "table":
        return f"{as_text(table, ROWS_SHOWN)}\n".encode()
    if form == "markdown":
        return _markdown(table).encode()
    if form == "json":
        return f"{json.dumps(_json(table.to_pylist()), ensure_ascii=False, indent=1)}\n".encode()
    if form == "jsonl.zst":
        return _jsonl_zst(table)
    sink = pa.BufferOutputStream()
    try:
        if form == "parquet":
            pyarrow.parquet.write_table(table, sink)
        else:
            pyarrow.csv.write_csv(_flat(table), sink)
    except pa.ArrowException as error:
        raise QueryError(f"the result does not fit --format {form}: {error} Cast that column in the SELECT.") from error
    return sink.getvalue().to_pybytes()


def _jsonl_zst(table: "pa.Table") -> bytes:
    import zstandard

    lines = [json.dumps(_json(row), ensure_ascii=False) for row in table.to_pylist()]
    return zstandard.ZstdCompressor(write_checksum=True).compress("".join(f"{line}\n" for line in lines).encode())


def _markdown(table: "pa.Table") -> str:
    """Return a table as Markdown: every row, numbers in full, texts on one line."""

    def cell(value: Any) -> str:
        text = (
            "" if value is None else value if isinstance(value, str) else json.dumps(_json(value), ensure_ascii=False)
        )
        return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|")

    rows = [table.column_names, ["---"] * table.num_columns, *(row.values() for row in table.to_pylist())]
    return "".join(f"| {' | '.join(map(cell, row))} |\n" for row in rows)


def _flat(table: "pa.Table") -> "pa.Table":
    """Return the table with nested and binary columns as JSON text, as CSV has neither."""
    import pyarrow as pa

    def text(column: Any) -> Any:
        values = [None if v is None else json.dumps(_json(v), ensure_ascii=False) for v in column.to_pylist()]
        return pa.array(values, pa.string())

    odd = [pa.types.is_nested(column.type) or pa.types.is_binary(column.type) for column in table.columns]
    columns = [text(c) if is_odd else c for c, is_odd in zip(table.columns, odd, strict=True)]
    return pa.table(columns, names=table.column_names)


def _json(value: Any) -> Any:
    """Return a value as JSON has it: no infinity and no NaN, but null; numbers of any width as numbers."""
    import math
    from decimal import Decimal

    if isinstance(value, dict):
        return {str(key): _json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json(item) for item in value]
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, (int, str, type(None))) else _plain(value)


def _plain(value: Any) -> str:
    return f"<{len(value)} bytes>" if isinstance(value, bytes) else str(value)


def as_text(table: "pa.Table", rows: int | None) -> str:
    """Return an aligned table; numbers to the right, long cells cut."""
    shown = table if rows is None else table.slice(0, rows)
    columns = [[_cell(value) for value in column.to_pylist()] for column in shown.columns]
    numeric = [str(column.type).startswith(("int", "uint", "float", "double", "decimal")) for column in table.columns]
    widths = [max(len(name), *map(len, cells), 0) for name, cells in zip(table.column_names, columns, strict=True)]

    def line(cells: list[str]) -> str:
        parts = zip(cells, widths, numeric, strict=True)
        return "  ".join(c.rjust(w) if right else c.ljust(w) for c, w, right in parts).rstrip()

    lines = [line(list(table.column_names)), line(["─" * width for width in widths])]
    lines += [line(list(row)) for row in zip(*columns, strict=True)]
    if shown.num_rows < table.num_rows:
        lines.append(f"… {table.num_rows - shown.num_rows:,} more of {table.num_rows:,} rows; --format csv shows all")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else "" if value is None else _plain(value)
    text = " ".join(text.split())
    return text if len(text) <= _CELL else f"{text[: _CELL - 1]}…"
