"""What a Parquet file says of itself, against its commit record and its table (docs/format.md,
section 1)."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.errors import DamageError
from featurestore.format import schemas
from featurestore.format.contents import Contents, Cut, cuts
from featurestore.format.gate import MalformedError, parse_json, short
from featurestore.format.parquet.structure import check_structure
from featurestore.format.records import Record
from featurestore.vocabulary import IO

MALFORMED = (
    pa.ArrowException, OSError, ValueError, KeyError, IndexError, TypeError, AttributeError,
    OverflowError, MemoryError,
)  # fmt: skip
"""what reading a Parquet file can raise whose checksum is right but whose contents are not"""
_PREFIX = b"featurestore."


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever reading a file's contents raises into a DamageError that names it."""
    try:
        yield
    except MALFORMED as error:
        raise DamageError(f"{path}: {unreadable(error)}") from error


def unreadable(error: BaseException) -> str:
    """Return in one line what an error of :data:`MALFORMED` says of a file."""
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return f"is no Parquet file that can be read ({reason})"


def read_table(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Read a checked file; raises DamageError.

    Not by ``pyarrow.parquet.read_table``, whose threads end the process over a page that
    contradicts itself.
    """
    with reading(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
        table = file.read(columns=columns)
        return table if columns is None else table.select(columns)


def read_schema(path: Path) -> pa.Schema:
    """Return the schema of a file whose pages nobody is about to read, or that was checked; raises
    DamageError."""
    with reading(path):
        check_structure(path, pages=False)
        return pq.read_schema(path)


def check_footer(path: Path, record: Record) -> str | None:
    """Return what is wrong with the footer of a shard's file, or None."""
    try:
        check_structure(path)
        with pq.ParquetFile(path) as file:
            rows, schema = file.metadata.num_rows, file.schema_arrow
            cut = list(cuts(file.metadata))
            groups = sum(
                file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)
            )
        if rows != record.rows or groups != rows:
            return f"has {rows} rows in {groups} of its row groups, its record says {record.rows}"
        if record.contents is not None and not _are_cut(record.contents, cut):
            return "has other row groups than its record says"
        if schemas.schema_id(schema) != record.schema:
            return f"has schema {schemas.schema_id(schema)}, its record says {record.schema}"
        kind = record.table.partition("/")[0]
        expected = schemas.expected(kind, schema)
        if not schema.equals(expected):
            return (
                f"has other columns than {kind!r} has: "
                f"{' '.join(_difference(schema, expected).split())}"
            )
        _check_metadata(kind, schema.metadata or {})
    except MALFORMED as error:
        return unreadable(error)
    return None


def _are_cut(contents: Contents, cut: list[Cut]) -> bool:
    told = zip(contents.parts[:-1], contents.ends, strict=False)
    return [Cut(part.rows, end) for part, end in told] == cut


def _difference(found: pa.Schema, expected: pa.Schema) -> str:
    for one, other in zip(found, expected, strict=False):
        if not one.equals(other):
            return f"{one.name} is {one}, expected {other}"[:200]
    return f"{len(found)} columns, expected {len(expected)}"


def _is_steps(value: Any) -> bool:
    """Say whether a value is a list of ``[step, timestep]``."""
    return isinstance(value, list) and all(
        isinstance(pair, list)
        and len(pair) == 2
        and type(pair[0]) is int
        and 0 <= pair[0] < 2**31
        and type(pair[1]) in (int, float)
        for pair in value
    )


def _is_counts(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(pair, list)
        and len(pair) == 2
        and isinstance(pair[0], str)
        and type(pair[1]) is int
        for pair in value
    )


def _steps_of_branches(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_steps(steps) for steps in value.values())


_SIZE: Callable[[str], bool] = lambda text: text.isascii() and text.isdigit() and len(text) < 10  # noqa: E731
_TEXTS: Mapping[str, tuple[Callable[[str], bool], str]] = {
    **dict.fromkeys(
        ("height", "width", "map_height", "map_width", "n_latents"), (_SIZE, "a whole number")
    ),
    "io": (lambda text: text in IO, f"one of {', '.join(IO)}"),
}
_JSON: Mapping[tuple[str, str], tuple[Callable[[Any], bool], str]] = {
    ("stats", "steps"): (_steps_of_branches, "branch → list of [step, timestep]"),
    ("totals", "steps"): (_is_steps, "a list of [step, timestep]"),
    ("totals", "counts"): (_is_counts, "a list of [concept, number]"),
    ("selections", "selection"): (lambda value: isinstance(value, dict), "a selection's header"),
}


def _check_metadata(kind: str, metadata: Mapping[bytes, bytes]) -> None:
    """Refuse schema metadata that says what cannot be; raises MalformedError."""
    found = {
        key.removeprefix(_PREFIX).decode(): value.decode()
        for key, value in metadata.items()
        if key.startswith(_PREFIX)
    }
    if kind == "activations" and not {"height", "width"} <= set(found):
        raise MalformedError("its metadata lacks featurestore.height or featurestore.width")
    for name, value in found.items():
        fits, expected = _TEXTS.get(name, (None, ""))
        parse = _JSON.get((kind, name))
        if fits is not None and not fits(value):
            raise MalformedError(f"featurestore.{name} is {short(value)}, expected {expected}")
        if parse is not None and not parse[0](parse_json(value)):
            raise MalformedError(f"featurestore.{name} is {short(value)}, expected {parse[1]}")
