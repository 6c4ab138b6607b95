"""Parquet as the store writes it, and tensors mapped straight out of it (docs/format.md, section 1.2)."""

from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

TENSOR = "activation"
ROW_GROUP_BYTES = 32 * 2**20
ROW_GROUP_ROWS = 2**20
_ZSTD_LEVEL = 3
_DELTA = {"sample_id", "step", "feature", "n_positions"}
_SPLIT = {"sum", "max"}
_LEAF = ".list.element.list.element"


def write_table(file: BinaryIO, table: pa.Table) -> None:
    """Write a table to an append-only binary file, with the encodings that every reader of this project's stack can read."""
    write_parts(file, table.schema, [table])


def write_parts(file: BinaryIO, schema: pa.Schema, parts: Iterable[pa.Table]) -> int:
    """Write the parts of a table as :func:`write_table` does, a row group within one part; return the number of rows."""
    tensor, n_rows = TENSOR in schema.names, 0
    options = _tensor_options() if tensor else _column_options(schema)
    rows = rows_per_group(schema) if tensor else ROW_GROUP_ROWS
    with pq.ParquetWriter(pa.PythonFile(file, mode="w"), schema, write_page_checksum=True, **options) as writer:
        for part in parts:
            n_rows += part.num_rows
            for start in range(0, part.num_rows, rows):
                writer.write_table(part.slice(start, rows), row_group_size=rows)
    return n_rows


def rows_per_group(schema: pa.Schema) -> int:
    """Return how many activation rows make a row group: as many as fit ``ROW_GROUP_BYTES``, at least one."""
    positions, d_in, dtype = tensor_shape(schema)
    return max(1, ROW_GROUP_BYTES // (positions * d_in * dtype.itemsize))


def tensor_shape(schema: pa.Schema) -> tuple[int, int, np.dtype]:
    """Return ``(n_positions, d_in, dtype)`` of an activation table's rows."""
    outer = schema.field(TENSOR).type
    return outer.list_size, outer.value_type.list_size, np.dtype(outer.value_type.value_type.to_pandas_dtype())


def _tensor_options() -> dict[str, object]:
    # One page a row group makes the tensor contiguous in the file; statistics of a tensor help nobody.
    return {
        "compression": "none",
        "use_dictionary": False,
        "write_statistics": ["sample_id", "step", "timestep", "branch"],
        "data_page_size": 2**31 - 1,
        "max_rows_per_page": 2**31 - 1,
        "write_batch_size": 2**31 - 1,
    }


def _column_options(schema: pa.Schema) -> dict[str, object]:
    delta = {name: "DELTA_BINARY_PACKED" for name in schema.names if name in _DELTA}
    split = {name: "BYTE_STREAM_SPLIT" for name in schema.names if name in _SPLIT}
    ragged = {f"features{_LEAF}": "DELTA_BINARY_PACKED"} if "features" in schema.names else {}
    # Ids and steps repeat in long runs where rows are (sample, step, feature): a dictionary is the smaller code there.
    runs = ["sample_id", "step"] if "feature" in schema.names else []
    encoding = {name: code for name, code in (delta | split | ragged).items() if name not in runs}
    plain = set(encoding) | {f"values{_LEAF}"}
    paths = [column.path for column in _leaves(schema)]
    return {
        "compression": "zstd",
        "compression_level": _ZSTD_LEVEL,
        "column_encoding": encoding,
        "use_dictionary": [path for path in paths if path not in plain and not path.startswith("image")],
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

    Returns None when the file's layout does not allow it (docs/format.md lists the conditions); decode it then.
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
        if not _one_page(raw[header : header + 64], length // dtype.itemsize):
            return None
        groups.append(MappedGroup(raw[start : start + length].view(dtype).reshape(-1, positions, d_in), start))
    return groups


def _tensor_index(file: pq.ParquetFile) -> int:
    leaves = [file.metadata.schema.column(i).path for i in range(file.metadata.num_columns)]
    return next(i for i, path in enumerate(leaves) if path.startswith(TENSOR))


def _block(group: pq.RowGroupMetaData, index: int, values: int, dtype: np.dtype) -> tuple[int, int, int] | None:
    """Return ``(start, bytes, offset of the page header)`` of a row group's tensor."""
    column = group.column(index)
    length = column.num_values * dtype.itemsize
    plain = column.compression == "UNCOMPRESSED" and not column.has_dictionary_page
    if not plain or column.num_values != group.num_rows * values or column.total_compressed_size <= length:
        return None
    header = column.data_page_offset
    return header + column.total_compressed_size - length, length, header


def _one_page(header: npt.NDArray, num_values: int) -> bool:
    """Say whether the page header (Thrift compact protocol) is of a data page that holds ``num_values`` values."""
    data = header.tobytes()
    position = 0

    def varint() -> int:
        nonlocal position
        result = shift = 0
        while True:
            byte = data[position]
            position += 1
            result |= (byte & 0x7F) << shift
            if byte < 0x80:
                return (result >> 1) ^ -(result & 1)
            shift += 7

    # Field 1 type, 2 uncompressed size, 3 compressed size, optional 4 checksum: all i32. Then 5 (v1) or 8 (v2), a struct
    # whose field 1 is num_values.
    field = 0
    try:
        while True:
            tag = data[position]
            position += 1
            field += tag >> 4
            if tag & 0x0F == 12:
                break
            if tag & 0x0F != 5:
                return False
            varint()
        is_data_page = field in (5, 8)
        first, position = data[position], position + 1
        return is_data_page and first == 0x15 and varint() == num_values
    except IndexError:
        return False
