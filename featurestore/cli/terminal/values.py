"""The values of an answer as Python, JSON and a terminal can have them."""

import functools
import json
import math
import re
from decimal import Decimal
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

SAFE_INTEGER = 2**53
"""above it JavaScript, and what reads JSON as it does, rounds"""
# C0 and C1 control characters, and what turns the direction of the text around.
_HIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_UNSAFE_JSON = re.compile("[\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    """Return a text on one line, control characters (ESC, …) as ``\\x1b``: a terminal obeys none of
    it."""
    return _HIDDEN.sub(
        lambda found: found[0].encode("unicode_escape").decode(), " ".join(text.split())
    )


def values(column: "pa.Array | pa.ChunkedArray") -> list[Any]:
    """Return a column's values as Python objects; dates, times and intervals as text, as DuckDB
    writes them.

    Python has no date before the year 1 or after 9999, no infinite date and no time 24:00; DuckDB
    has.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if isinstance(column, pa.ChunkedArray):
        return [value for chunk in column.chunks for value in values(chunk)]
    kind = column.type
    if pa.types.is_dictionary(kind):
        return values(column.dictionary_decode())
    if pa.types.is_temporal(kind):
        return _texts(column)
    if pa.types.is_map(kind):
        ends, pairs = (
            column.offsets.to_pylist(),
            zip(values(column.keys), values(column.items), strict=True),
        )
        return _lists(
            [end - start for start, end in pairwise(ends)],
            column.is_valid().to_pylist(),
            list(pairs),
        )
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        lengths = pc.list_value_length(column).fill_null(0).to_pylist()
        return _lists(lengths, column.is_valid().to_pylist(), values(column.flatten()))
    if pa.types.is_struct(kind):
        names = [kind.field(i).name for i in range(kind.num_fields)]
        rows = zip(*(values(part) for part in column.flatten()), strict=True)
        there = column.is_valid().to_pylist()
        return [
            dict(zip(names, row, strict=True)) if ok else None
            for row, ok in zip(rows, there, strict=True)
        ]
    found: list[Any] = column.to_pylist()
    return found


def _lists(lengths: list[int], there: list[bool], items: list[Any]) -> list[list[Any] | None]:
    """Return items cut into lists; those that are not ``there`` are null and have none."""
    found, start = list[list[Any] | None](), 0
    for length, ok in zip(lengths, there, strict=True):
        found.append(items[start : start + length] if ok else None)
        start += length if ok else 0
    return found


@functools.cache
def _connection() -> "duckdb.DuckDBPyConnection":
    import duckdb

    return duckdb.connect()


def _texts(column: "pa.Array") -> list[str | None]:
    import pyarrow as pa

    zoned = pa.types.is_timestamp(column.type) and column.type.tz is not None
    plain = column.cast(pa.timestamp(column.type.unit)) if zoned else column
    connection = _connection()
    connection.register("temporal", pa.table({"x": plain}))
    rows = connection.execute("select x::varchar from temporal").fetchall()
    return [f"{text}+00" if zoned and text and text[-1].isdigit() else text for (text,) in rows]


def plain(value: Any) -> Any:
    """Return a value as JSON has it: no infinity and no NaN, but null; numbers of any width as
    numbers."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    return value if isinstance(value, (int, str, type(None))) else str(value)


def integers_as_text(value: Any) -> Any:
    """Return a plain value with its whole numbers as text."""
    if isinstance(value, dict):
        return {key: integers_as_text(item) for key, item in value.items()}
    if isinstance(value, list):
        return [integers_as_text(item) for item in value]
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def json_text(value: Any, indent: int | None = None) -> str:
    """Return a plain value as JSON text, in which a terminal finds nothing to obey."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    return _UNSAFE_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
