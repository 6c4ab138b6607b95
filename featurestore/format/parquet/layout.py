"""Parquet as the store writes it, and tensors mapped straight out of it (docs/format.md, section
1.2)."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.format.contents import TENSOR
from featurestore.format.parquet import tensor_column, thrift

ROW_GROUP_BYTES = 32 * 2**20
ROW_GROUP_ROWS = 2**20
_ZSTD_LEVEL = 3
_DELTA = {"sample_id", "step", "feature", "n_positions"}
_SPLIT = {"sum", "max"}
_PAGE_HEADER_BYTES = 128  # at most; a data page's has about 30
_LEAF = ".list.element.list.element"
_TENSOR_OPTIONS = {
    "compression": "none",
    "use_dictionary": False,
    "write_statistics": ["sample_id", "step", "timestep", "branch"],
}


def write_table(file: BinaryIO, table: pa.Table) -> int:
    """Write a table to an append-only binary file, with encodings that every reader of this
    project's stack can read.

    Returns the number of rows.
    """
    if TENSOR not in table.schema.names:
        return write_parts(file, table.schema, [table])
    tensor_column.write_table(file, table, TENSOR, **_tensor_options(table.schema))
    return int(table.num_rows)


def tensor_layout(others: pa.Table, schema: pa.Schema) -> tensor_column.Layout:
    """Return where all of a file stands that :func:`write_table` writes of a table; ``others``: all
    but its tensor."""
    return tensor_column.Layout(others, schema, TENSOR, **_tensor_options(schema))


def write_parts(file: BinaryIO, schema: pa.Schema, parts: Iterable[pa.Table]) -> int:
    """Write the parts of a table without a tensor as :func:`write_table` does; a row group lies
    within one part."""
    n_rows, options = 0, _column_options(schema)
    with pq.ParquetWriter(
        pa.PythonFile(file, mode="w"), schema, write_page_checksum=True, **options
    ) as writer:
        for part in parts:
            n_rows += part.num_rows
            for start in range(0, part.num_rows, ROW_GROUP_ROWS):
                writer.write_table(part.slice(start, ROW_GROUP_ROWS), row_group_size=ROW_GROUP_ROWS)
    return n_rows


def _tensor_options(schema: pa.Schema) -> dict[str, Any]:
    return {"rows_per_group": rows_per_group(schema), "options": _TENSOR_OPTIONS}


def rows_per_group(schema: pa.Schema) -> int:
    """Return how many activation rows make a row group: as many as fit ``ROW_GROUP_BYTES``, at
    least one."""
    positions, d_in, dtype = tensor_shape(schema)
    return max(1, ROW_GROUP_BYTES // (positions * d_in * dtype.itemsize))


def tensor_shape(schema: pa.Schema) -> tuple[int, int, np.dtype]:
    """Return ``(n_positions, d_in, dtype)`` of an activation table's rows."""
    outer = schema.field(TENSOR).type
    return (
        outer.list_size,
        outer.value_type.list_size,
        np.dtype(outer.value_type.value_type.to_pandas_dtype()),
    )


def _column_options(schema: pa.Schema) -> dict[str, object]:
    delta = {name: "DELTA_BINARY_PACKED" for name in schema.names if name in _DELTA}
    split = {name: "BYTE_STREAM_SPLIT" for name in schema.names if name in _SPLIT}
    ragged = {f"features{_LEAF}": "DELTA_BINARY_PACKED"} if "features" in schema.names else {}
    # Ids and steps repeat in long runs where rows are (sample, step, feature): a dictionary is the
    # smaller code there.
    runs = ["sample_id", "step"] if "feature" in schema.names else []
    encoding = {name: code for name, code in (delta | split | ragged).items() if name not in runs}
    masks = [name for name in schema.names if name in ("steps", "later_steps")]
    encoding |= dict.fromkeys(masks, "PLAIN")  # bits, no runs
    plain = set(encoding) | {f"values{_LEAF}"}
    paths = [column.path for column in _leaves(schema)]
    # Sums are read by row groups, never by pages, and each page is a header more to look through.
    whole = "sum_all_features" in schema.names
    pages = {"max_rows_per_page": ROW_GROUP_ROWS, "data_page_size": 2**30} if whole else {}
    return {
        **pages,
        "compression": "zstd",
        "compression_level": _ZSTD_LEVEL,
        "column_encoding": encoding,
        "use_dictionary": [
            path for path in paths if path not in plain and not path.startswith("image")
        ],
        "write_statistics": [path for path in paths if not path.startswith("image")],
    }


def _leaves(schema: pa.Schema) -> list:
    sink = pa.BufferOutputStream()
    pq.ParquetWriter(sink, schema).close()
    parquet = pq.ParquetFile(pa.BufferReader(sink.getvalue())).schema
    return [parquet.column(i) for i in range(len(parquet))]


class MappedGroup(NamedTuple):
    """The tensor of a row group."""

    values: npt.NDArray
    """``[rows, n_positions, d_in]``, a read-only view of the file"""
    offset: int
    """where it begins in the file, in bytes"""


def map_tensor(path: Path, bytes_recorded: int) -> list[MappedGroup] | None:
    """Map the activations of a file, row group by row group, without reading them.

    Returns None when the file's layout does not allow it (docs/format.md lists the conditions);
    decode it then.
    """
    if path.stat().st_size != bytes_recorded:
        return None
    with pq.ParquetFile(path) as file:
        positions, d_in, dtype = tensor_shape(file.schema_arrow)
        metadata, index = file.metadata, _tensor_index(file)
        blocks = [
            _block(metadata.row_group(group), index, positions * d_in, dtype)
            for group in range(metadata.num_row_groups)
        ]
    if any(block is None for block in blocks):
        return None
    raw = np.memmap(path, dtype=np.uint8, mode="r") if blocks else np.empty(0, np.uint8)
    groups = []
    for block in blocks:
        assert block is not None
        start, length, header = block
        if not _one_page(raw[header : header + _PAGE_HEADER_BYTES], length // dtype.itemsize):
            return None
        groups.append(
            MappedGroup(raw[start : start + length].view(dtype).reshape(-1, positions, d_in), start)
        )
    return groups


def _tensor_index(file: pq.ParquetFile) -> int:
    leaves = [file.metadata.schema.column(i).path for i in range(file.metadata.num_columns)]
    return next(i for i, path in enumerate(leaves) if path.startswith(TENSOR))


def _block(
    group: pq.RowGroupMetaData, index: int, values: int, dtype: np.dtype
) -> tuple[int, int, int] | None:
    """Return ``(start, bytes, offset of the page header)`` of a row group's tensor."""
    column = group.column(index)
    length = column.num_values * dtype.itemsize
    plain = column.compression == "UNCOMPRESSED" and not column.has_dictionary_page
    if (
        not plain
        or column.num_values != group.num_rows * values
        or column.total_compressed_size <= length
    ):
        return None
    header = column.data_page_offset
    return header + column.total_compressed_size - length, length, header


def _one_page(header: npt.NDArray, num_values: int) -> bool:
    """Say whether the page header is of a data page that holds ``num_values`` values."""
    try:
        fields = thrift.read(header.tobytes())
    except ValueError:
        return False
    # Field 5 describes a data page, 8 a data page of version 2; the first field of either counts
    # the values.
    kind, page = fields.get(5) or fields.get(8) or (thrift.STRUCT, {})
    return kind == thrift.STRUCT and page.get(1) == (thrift.I32, num_values)
