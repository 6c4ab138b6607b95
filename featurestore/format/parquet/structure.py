"""A Parquet file's footer and the headers of its pages, looked through before any library reads
them.

Libraries trust both: over some that contradict themselves they end the process, or take the memory
that a header asks for. Names of fields below are those of ``parquet.thrift`` of the Parquet format.
"""

import os
import re
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from featurestore.format.gate import MalformedError, short
from featurestore.format.parquet import thrift

_MAX_FOOTER_BYTES = 256 * 2**20
_HEADER_BYTES, _MAX_HEADER_BYTES = 2**9, 2**24
"""of a page's header: read at first, and at most; statistics hold the least and largest text"""
_MAX_NESTING = 16
_VALUES_PER_BYTE, _FEW_VALUES = 256, 2**20
"""how many values a file may have: no table of a store comes near to 256 for each byte"""
_RATIO = 2000
"""how much larger a column may be before it is compressed"""
_REPEATED, _BYTES = 2, 6
_DATA, _INDEX, _DICTIONARY, _DATA_2 = range(4)
_DESCRIPTION = {_DATA: 5, _INDEX: 6, _DICTIONARY: 7, _DATA_2: 8}
"""kind of a page → the field of its header that describes it"""


def _tags(*kinds: int) -> bytes:
    """Return the pattern of the first byte of a field of one of some types."""
    return b"[%s]" % b"".join(b"\\x%02x" % (step << 4 | k) for step in range(1, 16) for k in kinds)


_INT = rb"[\x80-\xff]{0,9}[\x00-\x7f]"
_STATISTICS = b"|".join(
    [
        _tags(*thrift.WHOLE) + _INT,
        _tags(thrift.BINARY) + b"(?:%s)" % b"|".join(b"\\x%02x.{%d}" % (n, n) for n in range(33)),
        _tags(thrift.TRUE, thrift.FALSE),
    ]
)
_USUAL = re.compile(
    rb"\x15\x00\x15(%(int)s)\x15(%(int)s)(?:\x15%(int)s\x1c|\x2c)"
    rb"\x15(%(int)s)(?:\x15%(int)s){3}(?:\x1c(?:%(statistics)s)*\x00)?\x00\x00"
    % {b"int": _INT, b"statistics": _STATISTICS},
    re.DOTALL,
)
"""the header of a data page as nearly all are: its bytes, not packed and packed, perhaps a
checksum; how many values, three encodings, perhaps statistics. All headers of a file are looked
through whenever it is verified: those of 1 GB of statistics, 77,000, took longer than the hash
does, and by this pattern half as long (0.54 to 0.26 s of a processor)."""


class _Leaf(NamedTuple):
    """A column of a schema."""

    physical_type: int
    path: list[bytes]
    definition: int
    """the highest level of definition, and of repetition; 0: one value per row"""
    repetition: int


class _Chunk(NamedTuple):
    """Where the pages of a column lie in a row group, and what they may hold."""

    first: int
    end: int
    n_values: int
    raw_bytes: int
    """before compression, headers included"""
    is_compressed: bool


def check_structure(path: Path, *, pages: bool = True) -> None:
    """Look through a Parquet file's footer and the headers of its pages.

    Columns must be those of the schema, in its order; every chunk must lie within the file, and
    hold no more values than a file of this size can. Its pages must fill it, a dictionary first,
    and have as many values as it says; none may ask for more memory than the chunk says. Without
    ``pages``, only the footer is looked through: of a file that passed the gate before.

    Raises:
        MalformedError, OSError: it is no Parquet file, or contradicts itself.
    """
    with path.open("rb") as file:
        size, footer = _footer(file)
        leaves = _leaves(_items(footer, 2))
        limit = _VALUES_PER_BYTE * size + _FEW_VALUES
        rows = 0
        for group in _items(footer, 4):
            chunks, n_rows = _items(group, 1), _number(group, 3, limit)
            rows += n_rows
            if len(chunks) != len(leaves):
                raise MalformedError(
                    f"a row group has {len(chunks)} columns, its schema {len(leaves)}"
                )
            for described, leaf in zip(chunks, leaves, strict=True):
                chunk = _chunk(described, leaf, size, limit)
                if not leaf.repetition and chunk.n_values != n_rows:
                    raise MalformedError(
                        f"a column has {chunk.n_values} values in a row group of {n_rows} rows"
                    )
                if pages:
                    _check_pages(file, chunk)
        if rows != _number(footer, 3, limit):
            raise MalformedError(f"its row groups have {rows} rows, the footer says {footer[3][1]}")


def _footer(file: BinaryIO) -> tuple[int, thrift.Struct]:
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


def _number(fields: thrift.Struct, number: int, most: int, of: str = "its footer") -> int:
    kind, value = fields.get(number, (0, -1))
    if kind not in (thrift.I16, thrift.I32, thrift.I64) or not 0 <= value <= most:
        raise MalformedError(f"field {number} of {of} is {short(value)}, expected 0…{most}")
    return int(value)


def _leaves(elements: list[thrift.Struct]) -> list[_Leaf]:
    """Return the leaves of a schema, given depth first."""
    leaves, open_groups = [], [(1, list[bytes](), 0, 0)]
    for place, element in enumerate(elements):
        while open_groups and open_groups[-1][0] == 0:
            open_groups.pop()
        if not open_groups or len(open_groups) > _MAX_NESTING:
            raise MalformedError(
                "its schema has more elements than places, or is nested too deeply"
            )
        left, path, definition, repetition = open_groups.pop()
        open_groups.append((left - 1, path, definition, repetition))
        here = [] if place == 0 else [*path, element.get(4, (0, b""))[1]]
        kind = _number(element, 3, _REPEATED) if 3 in element and place else 0
        definition, repetition = definition + (kind > 0), repetition + (kind == _REPEATED)
        n_children = _number(element, 5, len(elements)) if 5 in element else 0
        if n_children:
            open_groups.append((n_children, here, definition, repetition))
        elif place:
            leaves.append(_Leaf(_number(element, 1, 7), here, definition, repetition))
    if any(left for left, *_ in open_groups):
        raise MalformedError("its schema lacks elements")
    return leaves


def _chunk(chunk: thrift.Struct, leaf: _Leaf, size: int, limit: int) -> _Chunk:
    if chunk.keys() & {1, 8, 9}:
        raise MalformedError("a column is said to lie in another file, or to be encrypted")
    kind, about = chunk.get(3, (0, None))
    if kind != thrift.STRUCT or about is None:
        raise MalformedError("a column is not described")
    path = about.get(3, (0, (0, [])))[1]
    fits = isinstance(path, tuple) and path[1] == leaf.path
    if _number(about, 1, 7) != leaf.physical_type or not fits:
        raise MalformedError("a column is not the one that the schema has in its place")
    _check_sizes(about, leaf)
    codec, n_values = _number(about, 4, 8), _number(about, 5, limit)
    raw = _number(about, 6, _RATIO * size + _FEW_VALUES)
    length, begin = _number(about, 7, size), _number(about, 9, size)
    dictionary = _number(about, 11, size) if 11 in about else 0
    first = min(filter(None, (begin, dictionary)), default=0)  # 0: a column without such pages
    if first + length > size:
        raise MalformedError(f"a column ends at byte {first + length}, the file at {size}")
    for number in (4, 6):
        if (
            number in chunk
            and _number(chunk, number, size) + _number(chunk, number + 1, size) > size
        ):
            raise MalformedError("a page index lies outside of the file")
    return _Chunk(first, first + length, n_values, raw, codec != 0)


def _check_sizes(about: thrift.Struct, leaf: _Leaf) -> None:
    """Refuse statistics of sizes that are not a column's: pyarrow (26) ends the process over them,
    as soon as it is asked for the column."""
    kind, sizes = about.get(16, (thrift.STRUCT, {}))
    if kind != thrift.STRUCT or (1 in sizes and leaf.physical_type != _BYTES):
        raise MalformedError("a column that is not of bytes is said to have unencoded ones")
    for number, level in ((2, leaf.repetition), (3, leaf.definition)):
        kind, counts = sizes.get(number, (thrift.LIST, (thrift.I64, [])))
        if kind != thrift.LIST or len(counts[1]) not in (0, level + 1):
            raise MalformedError(f"a column with {level + 1} levels counts others")


def _check_pages(file: BinaryIO, chunk: _Chunk) -> None:
    """Follow the headers of a chunk's pages from its first byte to its last."""
    at, n_values, raw_left = chunk.first, 0, chunk.raw_bytes
    while at < chunk.end:
        raw, n, behind = _usual_page(file, at, chunk, raw_left) or _page(file, at, chunk, raw_left)
        n_values += n
        raw_left -= raw
        at = behind
    if at != chunk.end or n_values != chunk.n_values:
        raise MalformedError(
            f"the pages of a column have {n_values} values, its footer says {chunk.n_values}"
        )


def _usual_page(
    file: BinaryIO, at: int, chunk: _Chunk, raw_left: int
) -> tuple[int, int, int] | None:
    """Return what :func:`_page` does of a page that is sound and as nearly all are; None of any
    other."""
    found = _USUAL.match(os.pread(file.fileno(), min(_HEADER_BYTES, chunk.end - at), at))
    if found is None:
        return None
    raw, packed, n = map(thrift.read_number, found.groups())
    behind = at + found.end() + packed
    fits = packed >= 0 and behind <= chunk.end and 0 <= raw <= raw_left
    known = 0 <= n <= _VALUES_PER_BYTE * raw + _FEW_VALUES
    return (raw, n, behind) if fits and known and (chunk.is_compressed or raw == packed) else None


def _page(file: BinaryIO, at: int, chunk: _Chunk, raw_left: int) -> tuple[int, int, int]:
    """Return the bytes of the page at an offset, not packed, how many of the column's values it
    holds, and where it ends."""
    header, length = _page_header(file, at, chunk.end)
    packed = _number(header, 3, chunk.end - at - length, "a page's header")
    raw = _number(header, 2, raw_left, "a page's header")
    if not chunk.is_compressed and raw != packed:
        raise MalformedError(f"a page of {packed} bytes that are not packed is said to be {raw}")
    n_values = _page_values(header, is_first=at == chunk.first, raw=raw)
    return raw, n_values, at + length + packed


def _page_header(file: BinaryIO, at: int, end: int) -> tuple[thrift.Struct, int]:
    """Return the header of the page at an offset, and its length."""
    most = _HEADER_BYTES
    while True:
        data = os.pread(file.fileno(), min(most, end - at), at)
        try:
            return thrift.read_some(data)
        except ValueError:
            if most >= min(end - at, _MAX_HEADER_BYTES):
                raise
            most *= 2**5
        except RecursionError as error:
            raise MalformedError("a page's header is nested too deeply") from error


def _page_values(header: thrift.Struct, *, is_first: bool, raw: int) -> int:
    """Return how many of the column's values a page holds."""
    kind = _number(header, 1, _DATA_2, "a page's header")
    described, about = header.get(_DESCRIPTION[kind], (0, None))
    if kind == _INDEX or described != thrift.STRUCT or about is None:
        raise MalformedError("a page's header does not say what is in it")
    n = _number(about, 1, _VALUES_PER_BYTE * raw + _FEW_VALUES, "a page's header")
    if kind == _DICTIONARY:
        if not is_first:
            raise MalformedError("a dictionary stands behind other pages")
        return 0
    if kind == _DATA_2:
        _number(about, 2, n, "a page's header")
        levels = _number(about, 5, raw, "a page's header")
        _number(about, 6, raw - levels, "a page's header")
    return n
