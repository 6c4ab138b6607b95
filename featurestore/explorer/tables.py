"""Arrow tables as a page reads them, column by column, and as files."""

import datetime
import json
import math
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from featurestore.errors import UsageError

_SAFE = 2**53
"""the largest whole number that JavaScript holds exactly; ids are larger, and travel as text"""
MEDIA = {
    "csv": "text/csv; charset=utf-8",
    "json": "application/json",
    "parquet": "application/vnd.apache.parquet",
    "arrow": "application/vnd.apache.arrow.stream",
}


def as_json(table: pa.Table) -> str:
    """Return ``{columns: {name: [values]}, types, n_rows}``; ids as text, no NaN and no infinity
    but null."""
    columns = {name: column_values(name, table.column(name)) for name in table.column_names}
    types = {field.name: str(field.type) for field in table.schema}
    return _dumps({"columns": columns, "types": types, "n_rows": table.num_rows})


def with_more(text: str, more: dict[str, Any]) -> str:
    """Return what :func:`as_json` has returned with more beside it, such as what differs from
    request to request."""
    return f"{text[:-1]}, {_dumps(more)[1:]}"


def _dumps(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def column_values(name: str, column: pa.ChunkedArray) -> list[Any]:
    """Return a column's values as JSON can say them."""
    values = column.to_pylist()
    if pa.types.is_string(column.type) or pa.types.is_boolean(column.type):
        return values
    if pa.types.is_integer(column.type):
        return (
            [None if v is None else str(v) for v in values]
            if name == "sample_id" or _is_wide(values)
            else values
        )
    if pa.types.is_floating(column.type):
        return [v if v is not None and math.isfinite(v) else None for v in values]
    return [plain(value) for value in values]


def _is_wide(values: list[int | None]) -> bool:
    return any(v is not None and abs(v) >= _SAFE for v in values)


def plain(value: Any) -> Any:
    """Return any value of a cell as JSON can say it."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, int):
        return value if abs(value) < _SAFE else str(value)
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    if isinstance(
        value, (datetime.date, datetime.time, datetime.datetime, datetime.timedelta, Decimal)
    ):
        return str(value)
    return str(value)


def download(table: pa.Table, form: str) -> tuple[bytes, str]:
    """Return a table as a file of a form of :data:`MEDIA`, and its media type.

    Raises:
        UsageError: there is no such form.
    """
    if form not in MEDIA:
        raise UsageError(f"format {form!r}: it is one of {', '.join(MEDIA)}.")
    sink = pa.BufferOutputStream()
    if form == "arrow":
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    elif form == "parquet":
        pq.write_table(table, sink, compression="zstd")
    elif form == "csv":
        pyarrow.csv.write_csv(_flat(table), sink)
    else:
        rows = [plain(row) for row in table.to_pylist()]
        sink.write(json.dumps(rows, ensure_ascii=False, indent=1).encode())
    return sink.getvalue().to_pybytes(), MEDIA[form]


def _flat(table: pa.Table) -> pa.Table:
    """Return the table with columns that CSV cannot hold as JSON text."""
    columns = []
    for column in table.columns:
        if pa.types.is_nested(column.type) or pa.types.is_binary(column.type):
            texts = [
                None if v is None else json.dumps(plain(v), ensure_ascii=False)
                for v in column.to_pylist()
            ]
            column = pa.chunked_array([pa.array(texts, pa.string())])
        columns.append(column)
    return pa.table(columns, names=table.column_names)
