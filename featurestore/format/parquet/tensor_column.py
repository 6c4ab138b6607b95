"""A Parquet file with a tensor in it, the tensor written as it lies in memory (docs/format.md,
section 1.2).

The tensor is one column of nested fixed-size lists. Its page holds plain numbers, after some bytes
of list levels that follow from the shape alone, so there is nothing to encode. But pyarrow (26)
makes and packs two levels for every number, at 260 MB/s a core, where CRC-32 runs at 6,700, SHA-256
at 1,900 and a write with fsync at 1,600. Here the page is put together from its parts, at the speed
of its checksum; the other columns, the schema and all that is said of them come from pyarrow. The
result is Parquet like any other.

The run is slower without it, not only the function: behind a denoiser whose calls wait 20 ms
(benchmarks/waiting.py, 3 shards, 2 cores busy with other work) generation alone takes 3.3 s, with
this writer 4.8 s, with pyarrow's 18.9 s.

Sources: ``parquet.thrift`` (the numbers of fields below) and ``Encodings.md`` (levels) of the
Parquet format.
"""

import functools
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.errors import TableError
from featurestore.format.parquet import thrift
from featurestore.format.parquet.thrift import BINARY, I32, I64, LIST, STRUCT, Struct

_MAGIC = b"PAR1"
_DATA_PAGE, _PLAIN, _RLE, _UNCOMPRESSED = 0, 0, 3, 0
_CHECKSUM = 4
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
    itemsize: int

    @property
    def row_bytes(self) -> int:
        """Of a row's numbers."""
        return self.positions * self.d_in * self.itemsize


class Page(NamedTuple):
    """Where the tensor of a row group stands in its file."""

    first: int
    """its first row"""
    n_rows: int
    n_values: int
    header: int
    """where its header begins, and so on"""
    levels: int
    values: int
    end: int


class Layout:
    """Where everything stands in a file whose tensor is not known yet: its rows may then be written
    in any order.

    Attributes:
        size: Of the whole file, in bytes.
        n_rows: Of the table.
        row_bytes: Of a row's tensor.
        pages: One for each row group, in order.
        parts: Offset → bytes of all that is known: everything but the pages' headers and values.
    """

    def __init__(
        self,
        others: pa.Table,
        schema: pa.Schema,
        name: str,
        *,
        rows_per_group: int,
        options: Mapping[str, Any],
    ):
        """Lay out a file of ``schema``; ``others`` are its columns but the tensor ``name``, options
        as for a table."""
        self._tensor, footer = _describe(schema, name, options)
        data = memoryview(_by_pyarrow(others, rows_per_group, options))
        groups: list[Struct] = _footer(data)[_ROW_GROUPS][1][1]
        self.n_rows, self.row_bytes = others.num_rows, self._tensor.row_bytes
        self.pages: list[Page] = []
        self.parts: dict[int, bytes | memoryview] = {0: _MAGIC}
        end = len(_MAGIC)
        for group, first in zip(groups, range(0, self.n_rows, rows_per_group), strict=True):
            n = min(rows_per_group, self.n_rows - first)
            end = self._add_group(group, data, end, first=first, n_rows=n)
        fields = thrift.write(
            footer | {_NUM_ROWS: (I64, self.n_rows), _ROW_GROUPS: (LIST, (STRUCT, groups))}
        )
        self.parts[end] = fields + len(fields).to_bytes(4, "little") + _MAGIC
        self.size = end + len(self.parts[end])

    def _add_group(
        self, group: Struct, data: memoryview, begin: int, *, first: int, n_rows: int
    ) -> int:
        """Lay out a row group that begins at an offset, and describe it in ``group``; return where
        it ends."""
        at, chunks = begin, []
        for chunk in group[_COLUMNS][1][1]:
            metadata = chunk[_METADATA][1]
            (_, start), (_, size) = metadata[_PAGE_OFFSET], metadata[_CHUNK_BYTES]
            self.parts[at] = data[start : start + size]
            chunks.append(chunk | {_METADATA: (STRUCT, metadata | {_PAGE_OFFSET: (I64, at)})})
            at += size
        levels, n = (
            _levels(n_rows, self._tensor),
            n_rows * self._tensor.positions * self._tensor.d_in,
        )
        body = len(levels) + n_rows * self.row_bytes
        room = len(_header(n, body, 0))
        page = Page(first, n_rows, n, at, at + room, at + room + len(levels), at + room + body)
        self.parts[page.levels] = levels
        self.pages.append(page)
        chunks.insert(
            self._tensor.leaf, _chunk(self._tensor, n_rows, page.header, page.end - page.header)
        )
        size = page.end - begin
        group[_COLUMNS] = LIST, (STRUCT, chunks)
        group |= {
            _TOTAL_BYTES: (I64, size),
            _GROUP_OFFSET: (I64, begin),
            _COMPRESSED_BYTES: (I64, size),
        }
        return page.end

    def row_offset(self, row: int) -> int:
        """Return where the tensor of a row begins."""
        page = self.pages[row // self.pages[0].n_rows]
        return page.values + (row - page.first) * self.row_bytes

    def header(self, page: Page, checksum: int) -> bytes:
        """Return a page's header, given the CRC-32 of its levels and values."""
        return _header(page.n_values, page.end - page.levels, checksum)


def write_table(
    file: BinaryIO, table: pa.Table, name: str, *, rows_per_group: int, options: Mapping[str, Any]
) -> None:
    """Write a table to an append-only file; column ``name`` is a tensor ``[rows, positions, d_in]``
    of float16 or float32.

    A row group holds one page of it, uncompressed, with a checksum. ``options`` are pyarrow's for
    the other columns, which must not be given dictionaries. The tensor is not copied, however it is
    chunked or sliced.

    Raises:
        TableError: there are nulls in the tensor.
    """
    others = table.drop_columns([name])
    layout = Layout(others, table.schema, name, rows_per_group=rows_per_group, options=options)
    for page in layout.pages:
        while (at := file.tell()) < page.header:
            file.write(layout.parts[at])
        body = [layout.parts[page.levels], *_values(table[name].slice(page.first, page.n_rows))]
        checksum = functools.reduce(lambda crc, part: zlib.crc32(part, crc), body, 0)
        for part in [layout.header(page, checksum), *body]:
            file.write(part)
    while (at := file.tell()) < layout.size:
        file.write(layout.parts[at])


def _describe(schema: pa.Schema, name: str, options: Mapping[str, Any]) -> tuple[_Tensor, Struct]:
    """Return the tensor, and the footer of a file of this schema without rows."""
    data = _by_pyarrow(schema.empty_table(), 1, options)
    leaves = pq.ParquetFile(pa.BufferReader(data)).schema
    index = next(i for i in range(len(leaves)) if leaves.column(i).path.split(".")[0] == name)
    leaf, outer = leaves.column(index), schema.field(name).type
    tensor = _Tensor(
        leaf=index,
        path=leaf.path,
        physical_type=_PHYSICAL_TYPES[leaf.physical_type],
        level=leaf.max_definition_level,
        positions=outer.list_size,
        d_in=outer.value_type.list_size,
        itemsize=outer.value_type.value_type.bit_width // 8,
    )
    return tensor, _footer(memoryview(data))


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


def _header(n_values: int, body: int, checksum: int) -> bytes:
    """Return a page's header of a length that does not depend on its checksum.

    So the place of the values is known before they are: the digits of the checksum are always five,
    zeros in front.
    """
    page = {1: (I32, n_values), 2: (I32, _PLAIN), 3: (I32, _RLE), 4: (I32, _RLE)}
    before = {1: (I32, _DATA_PAGE), 2: (I32, body), 3: (I32, body)}
    start, whole = (
        thrift.write(before)[:-1],
        thrift.write(before | {_CHECKSUM: (I32, -(2**31)), 5: (STRUCT, page)}),
    )
    signed = checksum - 2**32 if checksum >= 2**31 else checksum
    digits = thrift.write({_CHECKSUM: (I32, signed)})[1:-1]
    padded = bytes(byte | 0x80 for byte in digits).ljust(4, b"\x80")[:4]
    last = digits[4] if len(digits) == 5 else 0
    return whole[: len(start) + 1] + padded + bytes([last]) + whole[len(start) + 6 :]


def _chunk(tensor: _Tensor, rows: int, offset: int, size: int) -> Struct:
    """Return the description of the tensor's column chunk, which lies at ``offset`` and is ``size``
    bytes long."""
    maps, n = rows * tensor.positions, rows * tensor.positions * tensor.d_in
    histograms = {
        2: (LIST, (I64, [rows, maps - rows, n - maps])),
        3: (LIST, (I64, [0] * tensor.level + [n])),
    }
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
                f"the tensor holds {flat.null_count} nulls where numbers are expected. Nothing "
                f"was written."
            )
        yield memoryview(flat.to_numpy()).cast("B")


def _levels(rows: int, tensor: _Tensor) -> bytes:
    """Return the levels of a page: 0 begins a row, 1 a position, 2 is a further number; none of
    them is null."""
    row = (
        _run(1, 0)
        + _run(tensor.d_in - 1, 2)
        + (_run(1, 1) + _run(tensor.d_in - 1, 2)) * (tensor.positions - 1)
    )
    if tensor.d_in == 1:
        row = _run(1, 0) + _run(tensor.positions - 1, 1)
    definition = _run(rows * tensor.positions * tensor.d_in, tensor.level)
    return b"".join(len(part).to_bytes(4, "little") + part for part in (row * rows, definition))


def _run(n: int, level: int) -> bytes:
    """Return ``n`` times a level as one run of the RLE/bit-packing hybrid; levels up to 255 take
    one byte."""
    return thrift.varint(n << 1) + bytes([level]) if n else b""
