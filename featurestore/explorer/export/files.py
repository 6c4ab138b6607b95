"""The files of an exported page."""

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.format import durable


def write_parquet(path: Path, table: pa.Table) -> None:
    """Write a table as the page's file provider reads it, with ids as text."""
    if "sample_id" in table.column_names:  # JavaScript has no such numbers
        place = table.column_names.index("sample_id")
        table = table.set_column(place, "sample_id", table["sample_id"].cast(pa.string()))
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", compression_level=12)
    durable.write_bytes(path, sink.getvalue())


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON."""
    durable.write_bytes(
        path, json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    )
