"""What a Parquet file says of itself, against its commit record and its table (docs/format.md,
section 1)."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.errors import DamageError
from featurestore.format import schemas, thrift
from featurestore.format.gate import MalformedError, parse_json, short
from featurestore.format.records import Record
from featurestore.vocabulary import IO

MALFORMED = (
    pa.ArrowException, OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError, MemoryError,
)  # fmt: skip
"""what reading a Parquet file can raise whose checksum is right but whose contents are not"""
_PREFIX = b"featurestore."
_MAX_FOOTER_BYTES = 256 * 2**20
_MAX_NESTING = 16
_VALUES_PER_BYTE, _FEW_VALUES = 256, 2**20
"""how many values a file may have: no table of a store comes near to 256 for each byte"""
_RATIO = 2000
"""how much larger a column may be before it is compressed"""


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
    """Return a file's schema; raises DamageError."""
    with reading(path):
        check_structure(path)
        return pq.read_schema(path)


def check_structure(path: Path) -> None:
    """Look through a Parquet footer before any library does: they trust it, and some end the
    process over it.

    Columns must be those of the schema, in its order; every chunk must lie within the file, and
    hold no more values than a file of this size can.

    Raises:
        MalformedError, OSError: it is no Parquet file, or its footer contradicts itself.
    """
    size, footer = _footer(path)
    leaves = _leaves(_items(footer, 2))
    limit = _VALUES_PER_BYTE * size + _FEW_VALUES
    rows = 0
    for group in _items(footer, 4):
        chunks = _items(group, 1)
        rows += _number(group, 3, limit)
        if len(chunks) != len(leaves):
            raise MalformedError(f"a row group has {len(chunks)} columns, its schema {len(leaves)}")
        for chunk, leaf in zip(chunks, leaves, strict=True):
            _check_chunk(chunk, leaf, size, limit)
    if rows != _number(footer, 3, limit):
        raise MalformedError(f"its row groups have {rows} rows, the footer says {footer[3][1]}")


def _footer(path: Path) -> tuple[int, thrift.Struct]:
    with path.open("rb") as file:
        size = file.seek(0, 2)
        if size < 12:
            raise MalformedError(f"{size} bytes are no Parquet file")
        file.seek(-8, 2)
        length = int.from_bytes(file.read(4), "little")
        if file.read(4) != b"PAR1" or length > min(size - 12, _MAX_FOOTER_BYTES):
            raise MalformedError("it does not end as a Parquet file does")
        file.seek(-8 - length, 2)
        try:
            return size, thrift.read(file.read(length))
        except RecursionError as error:
            raise MalformedError("its footer is nested too deeply") from error


def _items(fields: thrift.Struct, number: int) -> list[Any]:
    kind, value = fields.get(number, (thrift.LIST, (thrift.STRUCT, [])))
    if kind != thrift.LIST or value[0] != thrift.STRUCT:
        raise MalformedError(f"field {number} of its footer is not a list")
    items: list[Any] = value[1]
    return items


def _number(fields: thrift.Struct, number: int, most: int) -> int:
    kind, value = fields.get(number, (0, -1))
    if kind not in (thrift.I16, thrift.I32, thrift.I64) or not 0 <= value <= most:
        raise MalformedError(f"field {number} of its footer is {short(value)}, expected 0…{most}")
    return int(value)


def _leaves(elements: list[thrift.Struct]) -> list[tuple[int, list[bytes]]]:
    """Return the physical type and the path of each leaf of a schema, given depth first."""
    leaves, open_groups = [], [(1, list[bytes]())]
    for place, element in enumerate(elements):
        while open_groups and open_groups[-1][0] == 0:
            open_groups.pop()
        if not open_groups or len(open_groups) > _MAX_NESTING:
            raise MalformedError(
                "its schema has more elements than places, or is nested too deeply"
            )
        left, path = open_groups.pop()
        open_groups.append((left - 1, path))
        here = [] if place == 0 else [*path, element.get(4, (0, b""))[1]]
        n_children = _number(element, 5, len(elements)) if 5 in element else 0
        if n_children:
            open_groups.append((n_children, here))
        elif place:
            leaves.append((_number(element, 1, 7), here))
    if any(left for left, _ in open_groups):
        raise MalformedError("its schema lacks elements")
    return leaves


def _check_chunk(
    chunk: thrift.Struct, leaf: tuple[int, list[bytes]], size: int, limit: int
) -> None:
    if chunk.keys() & {1, 8, 9}:
        raise MalformedError("a column is said to lie in another file, or to be encrypted")
    kind, about = chunk.get(3, (0, None))
    if kind != thrift.STRUCT or about is None:
        raise MalformedError("a column is not described")
    path = about.get(3, (0, (0, [])))[1]
    if _number(about, 1, 7) != leaf[0] or not isinstance(path, tuple) or path[1] != leaf[1]:
        raise MalformedError("a column is not the one that the schema has in its place")
    _number(about, 4, 8)
    _number(about, 5, limit)
    _number(about, 6, _RATIO * size + _FEW_VALUES)
    length, begin = _number(about, 7, size), _number(about, 9, size)
    first = min(begin, _number(about, 11, size) if 11 in about else begin)
    if first + length > size:
        raise MalformedError(f"a column ends at byte {first + length}, the file at {size}")
    for number in (4, 6):
        if (
            number in chunk
            and _number(chunk, number, size) + _number(chunk, number + 1, size) > size
        ):
            raise MalformedError("a page index lies outside of the file")


def check_footer(path: Path, record: Record) -> str | None:
    """Return what is wrong with the footer of a shard's file, or None."""
    try:
        check_structure(path)
        with pq.ParquetFile(path) as file:
            rows, schema = file.metadata.num_rows, file.schema_arrow
            groups = sum(
                file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)
            )
        if rows != record.rows or groups != rows:
            return f"has {rows} rows in {groups} of its row groups, its record says {record.rows}"
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
