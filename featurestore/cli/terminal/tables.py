"""Tables as text, and in the file formats of ``--format``."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featurestore.cli.options import gathered
from featurestore.cli.options.kinds import Finite

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


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """What the options of :func:`output_options` say: what to do with the table that answers."""

    form: str | None
    output: Path | None
    text_ids: bool
    memory: str | None
    timeout: float | None

    def resolved(self) -> "OutputOptions":
        """Return the options with the format that is asked for, or that the suffix of the file
        names; the file's place is tried.

        Raises:
            UsageError: Parquet to a terminal.
            DiskError: the file could not be written.
        """
        from featurestore.errors import UsageError
        from featurestore.format import durable

        form, file = self.form, self.output
        if form is None:
            named = [
                name
                for name, suffix in FORMATS.items()
                if suffix and file and file.name.endswith(suffix)
            ]
            form = named[0] if named else "table"
        if form in BINARY and file is None and sys.stdout.isatty():
            raise UsageError(f"--format {form} writes bytes: give -o FILE, or pipe the output.")
        if file is not None:
            durable.check_file(file)
        return replace(self, form=form)

    def show(self, table: "pa.Table") -> None:
        """Write a table to the file, or to stdout if no file is named; what other programs may
        misread is said on stderr."""
        from featurestore.format import durable

        form = self.form or "table"
        data = encode(table, form, self.text_ids)
        if self.output is None:
            click.echo(data, nl=False)
        else:
            durable.write_bytes(self.output, data)
        for note in _notes(table, form, self.text_ids):
            click.echo(f"Note: {note}", err=True)


def output_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--format``, ``-o`` and what else is about a table that answers; they arrive as
    ``out``."""
    options = [
        click.option(
            "--format",
            "form",
            type=click.Choice(list(FORMATS)),
            default=None,
            help="[default: as the suffix of -o says, else table]",
        ),
        click.option(
            "-o", "--output", type=click.Path(path_type=Path), help="Write to this file instead."
        ),
        click.option(
            "--text-ids",
            is_flag=True,
            help="JSON: 64-bit integers as text, which JavaScript does not round.",
        ),
        click.option(
            "--memory",
            help="Spill to disk above this, such as 2GB.  [default: 80% of the machine's]",
        ),
        click.option(
            "--timeout",
            type=Finite(0, min_open=True),
            metavar="SECONDS",
            help="Stop the query after this time.",
        ),
    ]
    return gathered(command, "out", OutputOptions, options)


def encode(table: "pa.Table", form: str, text_ids: bool = False) -> bytes:
    """Return a table in one of ``FORMATS``; ``table`` shows the first rows only, all others are
    whole.

    ``text_ids``: in the JSON formats, columns of 64-bit integers are text.
    """
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    from featurestore.cli.terminal.values import json_text
    from featurestore.errors import QueryError

    if form == "table":
        return f"{as_text(table, ROWS_SHOWN)}\n".encode()
    if form == "markdown":
        return _markdown(table).encode()
    if form == "json":
        return f"{json_text(_rows(table, text_ids), indent=1)}\n".encode()
    if form == "jsonl.zst":
        import zstandard

        lines = "".join(f"{json_text(row)}\n" for row in _rows(table, text_ids))
        return zstandard.ZstdCompressor(write_checksum=True).compress(lines.encode())
    sink = pa.BufferOutputStream()
    try:
        if form == "parquet":
            pyarrow.parquet.write_table(table, sink)
        else:
            pyarrow.csv.write_csv(_flat(table), sink)
    except pa.ArrowException as error:
        raise QueryError(
            f"the result does not fit --format {form}: {error} Cast that column in the SELECT."
        ) from error
    return sink.getvalue().to_pybytes()


def _columns(table: "pa.Table", text_ids: bool = False) -> list[list[Any]]:
    """Return the columns' values as JSON has them."""
    from featurestore.cli.terminal.values import integers_as_text, plain, values

    columns = []
    for column in table.columns:
        found = [plain(value) for value in values(column)]
        columns.append(
            [integers_as_text(value) for value in found]
            if text_ids and _is_wide(column.type)
            else found
        )
    return columns


def _rows(table: "pa.Table", text_ids: bool) -> list[dict[str, Any]]:
    columns = _columns(table, text_ids)
    return [
        {name: column[i] for name, column in zip(table.column_names, columns, strict=True)}
        for i in range(table.num_rows)
    ]


def _is_wide(kind: "pa.DataType") -> bool:
    """Return whether a type holds integers that JavaScript cannot, or lists of such."""
    import pyarrow as pa

    while pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        kind = kind.value_type
    return bool(
        pa.types.is_int64(kind)
        or pa.types.is_uint64(kind)
        or (pa.types.is_decimal(kind) and kind.scale == 0)
    )


def _notes(table: "pa.Table", form: str, text_ids: bool) -> list[str]:
    """Return what a program that reads the output could take for something else."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from featurestore.cli.terminal.values import SAFE_INTEGER

    notes = []
    if form in ("json", "jsonl.zst") and not text_ids:
        for name, column in zip(table.column_names, table.columns, strict=True):
            known = (
                _is_wide(column.type)
                and not pa.types.is_nested(column.type)
                and len(column) > column.null_count
            )
            if (
                known
                and max(abs(int(end)) for end in pc.min_max(column).as_py().values()) > SAFE_INTEGER
            ):
                notes.append(
                    f"{name} has integers above 2^53, which JavaScript rounds: --text-ids writes "
                    f"them as text."
                )
    if form == "csv":
        texts = [column for column in table.columns if pa.types.is_string(column.type)]
        n = sum(
            pc.sum(pc.match_substring_regex(column, r"^[=+\-@\t\r]")).as_py() or 0
            for column in texts
        )
        if n:
            notes.append(
                f"{n:,} cells begin with =, +, - or @, which a spreadsheet takes for formulas: "
                f"import as text."
            )
    return notes


def _markdown(table: "pa.Table") -> str:
    """Return a table as Markdown: every row, numbers in full, texts on one line, HTML as text."""
    from featurestore.cli.terminal.values import json_text, visible

    def cell(value: Any) -> str:
        text = visible(
            "" if value is None else value if isinstance(value, str) else json_text(value)
        )
        text = text.replace("\\", "\\\\").replace("|", "\\|")
        return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")

    rows = [table.column_names, ["---"] * table.num_columns, *zip(*_columns(table), strict=True)]
    return "".join(f"| {' | '.join(map(cell, row))} |\n" for row in rows)


def _flat(table: "pa.Table") -> "pa.Table":
    """Return the table with nested and binary columns as JSON text, as CSV has neither, and times
    as text."""
    import pyarrow as pa

    from featurestore.cli.terminal.values import json_text, plain, values

    def text(column: Any) -> Any:
        found = values(column)
        if not pa.types.is_temporal(column.type):
            found = [None if value is None else json_text(plain(value)) for value in found]
        return pa.array(found, pa.string())

    odd = [
        pa.types.is_nested(c.type) or pa.types.is_binary(c.type) or pa.types.is_temporal(c.type)
        for c in table.columns
    ]
    columns = [text(c) if is_odd else c for c, is_odd in zip(table.columns, odd, strict=True)]
    return pa.table(columns, names=table.column_names)


def as_text(table: "pa.Table", rows: int | None) -> str:
    """Return an aligned table; numbers to the right, long cells cut."""
    from featurestore.cli.terminal.text import text_table
    from featurestore.cli.terminal.values import values

    shown = table if rows is None else table.slice(0, rows)
    columns = [[_cell(value) for value in values(column)] for column in shown.columns]
    numeric = [
        str(column.type).startswith(("int", "uint", "float", "double", "decimal"))
        for column in table.columns
    ]
    text = text_table(table.column_names, list(zip(*columns, strict=True)), numeric)
    if shown.num_rows < table.num_rows:
        text += (
            f"\n… {table.num_rows - shown.num_rows:,} more of {table.num_rows:,} rows; "
            f"--format csv shows all"
        )
    return text


def _cell(value: Any) -> str:
    from featurestore.cli.terminal.text import cut
    from featurestore.cli.terminal.values import plain, visible

    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else cut(visible(str(plain(value))), _CELL)
