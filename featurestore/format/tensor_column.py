"""A Parquet file with a tensor in it, the tensor written as it lies in memory (docs/format.md, section 1.2).

The tensor is one column of nested fixed-size lists. Its page holds plain numbers, after some bytes of list levels that
follow from the shape alone, so there is nothing to encode. But pyarrow (26) makes and packs two levels for every number,
at 260 MB/s a core, where CRC-32 runs at 6,700, SHA-256 at 1,900 and a write with fsync at 1,600. Here the page is put
together from its parts, at the speed of its checksum; the other columns, the schema and all that is said of them come
from pyarrow. The result is Parquet like any other.

Sources: ``parquet.thrift`` (the numbers of fields below) and ``Encodings.md`` (levels) of the Parquet format.
"""

import zlib
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.errors import TableError
from featurestore.format import thrift
from featurestore.format.thrift import BINARY, I32, I64, LIST, STRUCT, Struct

_MAGIC = b"PAR1"
_DATA_PAGE, _PLAIN, _RLE, _UNCOMPRESSED = 0, 0, 3, 0
_PHYSICAL_TYPES = {"FLOAT": 4, "FIXED_LEN_BYTE_ARRAY": 7}
# Fields of FileMetaData, RowGroup, ColumnChunk and ColumnMetaData.
_NUM_ROWS, _ROW_GROUPS = 3, 4
_COLUMNS, _TOTAL_BYTES, _GROUP_OFFSET, _COMPRESSED_BYTES = 1, 2, 5, 6
_METADATA, _CHUNK_BYTES, _PAGE_OFFSET = 3, 7, 9


class _Tensor(NamedTuple):
    """What a schema says of its tensor."""

    leaf: int
    """its place among the leaves of the schema"""
    path: str
    physical_type: int
    level: int
    """definition level of every value, as nothing is null"""
    positions: int
    d_in: int


def write_table(file: BinaryIO, table: pa.Table, name: str, rows_per_group: int, options: Mapping[str, Any]) -> None:
    """Write a table to an append-only file; column ``name`` is a tensor ``[rows, positions, d_in]`` of float16 or float32.

    A row group holds one page of it, uncompressed, with a checksum. ``options`` are pyarrow's for the other columns, which
    must not be given dictionaries. The tensor is not copied, however it is chunked or sliced.

    Raises:
        TableError: there are nulls in the tensor.
    """
    tensor, footer = _describe(table.schema, name, options)
    others = memoryview(_by_pyarrow(table.drop_columns([name]), rows_per_group, options))
    groups = _footer(others)[_ROW_GROUPS][1][1]
    file.write(_MAGIC)
    for number, group in enumerate(groups):
        column = table[name].slice(number * rows_per_group, rows_per_group)
        begin = file.tell()
        chunks = [_moved(file, others, chunk) for chunk in group[_COLUMNS][1][1]]
        chunks.insert(tensor.leaf, _write_page(file, tensor, column))
        size = file.tell() - begin
        group[_COLUMNS] = LIST, (STRUCT, chunks)
        group |= {_TOTAL_BYTES: (I64, size), _GROUP_OFFSET: (I64, begin), _COMPRESSED_BYTES: (I64, size)}
    footer |= {_NUM_ROWS: (I64, table.num_rows), _ROW_GROUPS: (LIST, (STRUCT, groups))}
    end = thrift.write(footer)
    file.write(end + len(end).to_bytes(4, "little") + _MAGIC)


def _describe(schema: pa.Schema, name: str, options: Mapping[str, Any]) -> tuple[_Tensor, Struct]:
    """Return the tensor, and the footer of a file of this schema without rows."""
    data = _by_pyarrow(schema.empty_table(), 1, options)
    leaves = pq.ParquetFile(pa.BufferReader(data)).schema
    index = next(i for i in range(len(leaves)) if leaves.column(i).path.split(".")[0] == name)
    leaf, outer = leaves.column(index), schema.field(name).type
    kind = _PHYSICAL_TYPES[leaf.physical_type]
    shape = outer.list_size, outer.value_type.list_size
    return _Tensor(index, leaf.path, kind, leaf.max_definition_level, *shape), _footer(memoryview(data))


def _by_pyarrow(table: pa.Table, rows_per_group: int, options: Mapping[str, Any]) -> pa.Buffer:
    """Return a table as pyarrow writes it."""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, table.schema, write_page_checksum=True, **options) as writer:
        for start in range(0, table.num_rows, rows_per_group):
            writer.write_table(table.slice(start, rows_per_group), row_group_size=rows_per_group)
    return sink.getvalue()


def _footer(data: memoryview) -> Struct:
    size = int.from_bytes(data[-8:-4], "little")
    return thrift.read(bytes(data[-8 - size : -8]))


def _moved(file: BinaryIO, data: memoryview, chunk: Struct) -> Struct:
    """Append a column chunk of ``data`` to a file; return its description with the new offset."""
    metadata = chunk[_METADATA][1]
    (_, start), (_, size) = metadata[_PAGE_OFFSET], metadata[_CHUNK_BYTES]
    moved = metadata | {_PAGE_OFFSET: (I64, file.tell())}
    file.write(data[start : start + size])
    return chunk | {_METADATA: (STRUCT, moved)}


def _write_page(file: BinaryIO, tensor: _Tensor, column: pa.ChunkedArray) -> Struct:
    """Append the tensor's page of one row group; return the description of its column chunk."""
    offset = file.tell()
    body: list[bytes | memoryview] = [_levels(len(column), tensor), *_values(column)]
    checksum = 0
    for part in body:
        checksum = zlib.crc32(part, checksum)
    signed = checksum - 2**32 if checksum >= 2**31 else checksum
    n = len(column) * tensor.positions * tensor.d_in
    page = {1: (I32, n), 2: (I32, _PLAIN), 3: (I32, _RLE), 4: (I32, _RLE)}
    size = sum(map(len, body))
    header = {1: (I32, _DATA_PAGE), 2: (I32, size), 3: (I32, size), 4: (I32, signed), 5: (STRUCT, page)}
    for part in [thrift.write(header), *body]:
        file.write(part)
    return _chunk(tensor, len(column), offset, file.tell() - offset)


def _chunk(tensor: _Tensor, rows: int, offset: int, size: int) -> Struct:
    """Return the description of the tensor's column chunk, which lies at ``offset`` and is ``size`` bytes long."""
    maps, n = rows * tensor.positions, rows * tensor.positions * tensor.d_in
    histograms = {2: (LIST, (I64, [rows, maps - rows, n - maps])), 3: (LIST, (I64, [0] * tensor.level + [n]))}
    metadata = {
        1: (I32, tensor.physical_type),
        2: (LIST, (I32, [_RLE, _PLAIN])),
        3: (LIST, (BINARY, [part.encode() for part in tensor.path.split(".")])),
        4: (I32, _UNCOMPRESSED),
        5: (I64, n),
        6: (I64, size),
        _CHUNK_BYTES: (I64, size),
        _PAGE_OFFSET: (I64, offset),
        13: (LIST, (STRUCT, [{1: (I32, _DATA_PAGE), 2: (I32, _PLAIN), 3: (I32, 1)}])),
        16: (STRUCT, histograms),
    }
    return {2: (I64, 0), _METADATA: (STRUCT, metadata)}


def _values(column: pa.ChunkedArray) -> Iterator[memoryview]:
    """Yield the bytes of a column's numbers, chunk by chunk, without copying them."""
    for chunk in column.chunks:
        flat = chunk
        while pa.types.is_fixed_size_list(flat.type) and not flat.null_count:
            flat = flat.flatten()
        if flat.null_count:
            raise TableError(
                f"the tensor holds {flat.null_count} nulls where numbers are expected. Nothing was written."
            )
        yield memoryview(flat.to_numpy()).cast("B")


def _levels(rows: int, tensor: _Tensor) -> bytes:
    """Return the levels of a page: 0 begins a row, 1 a position, 2 is a further number; none of them is null."""
    row = _run(1, 0) + _run(tensor.d_in - 1, 2) + (_run(1, 1) + _run(tensor.d_in - 1, 2)) * (tensor.positions - 1)
    if tensor.d_in == 1:
        row = _run(1, 0) + _run(tensor.positions - 1, 1)
    definition = _run(rows * tensor.positions * tensor.d_in, tensor.level)
    return b"".join(len(part).to_bytes(4, "little") + part for part in (row * rows, definition))


def _run(n: int, level: int) -> bytes:
    """Return ``n`` times a level as one run of the RLE/bit-packing hybrid; levels up to 255 take one byte."""
    return thrift.varint(n << 1) + bytes([level]) if n else b""
