"""What a shard's file holds, as its record tells it: the values to look for, and a checksum for
each row group (docs/format.md, section 2)."""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.format.gate import (
    MAX_INT,
    Field,
    MalformedError,
    closed,
    list_of,
    parse_json,
    text,
    whole,
)
from featurestore.format.schemas import NAME, family_names

MOST_VALUES = 256
"""of a column that are told; of more, none"""
REPLACES = b"featurestore.replaces"
"""of a compacted file's schema metadata: the names of the shards whose rows it holds, as JSON"""
COMPACTED = re.compile(NAME.pattern + "-with-[0-9a-f]{16}")
"""names of shards that replace others"""
TENSOR = "activation"
"""the column of ``activations`` that is mapped"""
_TOLD = ("step", "branch", "family", "concept")
_READ_BYTES = 2**20
_MAX_TEXT = 2**16

Value = int | str | None


class Part(NamedTuple):
    """A row group, or with 0 rows what is not: the columns before a row group's tensor, and as the
    last part all that stands behind the row groups, the footer."""

    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Contents:
    """What a record tells of its file besides its size and hash."""

    holds: Mapping[str, Sequence[Value] | None]
    """column → its values, ascending, null last; None: more than are told"""
    parts: tuple[Part, ...]
    """the file from its first byte to its last: row groups, then the footer"""
    replaces: tuple[str, ...] = ()
    """the shards whose rows these are, in their order; they count no more"""

    def to_json(self) -> dict[str, Any]:
        """Return what a record stores."""
        parts = [part._asdict() for part in self.parts]
        return {"holds": dict(self.holds), "parts": parts, "replaces": list(self.replaces)}

    @property
    def ends(self) -> list[int]:
        """Where each part ends in the file, in bytes."""
        ends, at = [], 0
        for part in self.parts:
            at += part.bytes
            ends.append(at)
        return ends


def _is_holds(holds: Any) -> bool:
    return isinstance(holds, dict) and all(
        values is None or (isinstance(values, list) and _are_values(values))
        for values in holds.values()
    )


def _are_values(values: list[Any]) -> bool:
    told = [value for value in values if value is not None]
    kinds = set(map(type, told))
    if len(values) > MOST_VALUES or len(values) - len(told) > 1:
        return False
    if kinds == {str}:
        fits = max(map(len, told)) <= _MAX_TEXT
    else:
        fits = not told or (kinds == {int} and max(map(abs, told)) <= MAX_INT)
    return fits and len(set(told)) == len(told)


_FIELDS = {
    "holds": Field(_is_holds, "columns, each with a list of its values"),
    "parts": Field(lambda parts: isinstance(parts, list) and bool(parts), "a list of parts"),
    "replaces": list_of(
        text(NAME.pattern, "a shard's name"), "a list of shards' names", distinct=True
    ),
}
_PART = {
    "rows": whole(0),
    "bytes": whole(1),
    "sha256": text("[0-9a-f]{64}", "64 hexadecimal digits"),
}


def parse_contents(body: Any, *, rows: int, n_bytes: int) -> Contents:
    """Return the contents that a record describes, of a file of ``rows`` and ``n_bytes``.

    Raises:
        MalformedError: they are not such ones, or do not add up to the file.
    """
    fields = closed(body, _FIELDS)
    parts = tuple(Part(**closed(part, _PART)) for part in fields["parts"])
    if sum(p.bytes for p in parts) != n_bytes or sum(p.rows for p in parts) != rows:
        raise MalformedError(f"its parts do not add up to {rows} rows in {n_bytes} bytes")
    if parts[-1].rows:
        raise MalformedError("its last part, the footer, has rows")
    return Contents(fields["holds"], parts, tuple(fields["replaces"]))


def describe(path: Path, *, samples: bool, replaces: Sequence[str] = ()) -> Contents:
    """Return what a record is to tell of a sound Parquet file; ``samples``: it has labels.

    Raises:
        OSError, pyarrow.ArrowException: it cannot be read.
    """
    with pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
        told = family_names(names) if samples else [name for name in _TOLD if name in names]
        holds = {name: _values(file, name) for name in told}
        cut = [*cuts(file.metadata), Cut(0, path.stat().st_size)]
    parts = [
        Part(one.rows, one.end - begin, hash_range(path, begin, one.end))
        for one, begin in zip(cut, [0, *(one.end for one in cut)], strict=False)
    ]
    return Contents(holds, tuple(parts), tuple(replaces))


def read_replaced(path: Path) -> list[str]:
    """Return the shards whose rows a sound file says that it holds, in their order; raises as
    :func:`describe`."""
    told = parse_json((pq.read_schema(path).metadata or {}).get(REPLACES, b"[]"))
    return [str(name) for name in told] if isinstance(told, list) else []


class Cut(NamedTuple):
    """The rows of a part, and where it ends in the file, in bytes."""

    rows: int
    end: int


def cuts(metadata: pq.FileMetaData) -> Iterator[Cut]:
    """Yield the parts that a footer tells, in order, but for itself: row groups; before the tensor
    of one, its other columns."""
    for i in range(metadata.num_row_groups):
        group = metadata.row_group(i)
        columns = [group.column(j) for j in range(group.num_columns)]
        first = [
            min(c.data_page_offset, c.dictionary_page_offset or c.data_page_offset) for c in columns
        ]
        tensor = [
            at for at, c in zip(first, columns, strict=True) if c.path_in_schema.startswith(TENSOR)
        ]
        if tensor:
            yield Cut(0, tensor[0])
        end = max(at + c.total_compressed_size for at, c in zip(first, columns, strict=True))
        yield Cut(group.num_rows, end)


def hash_range(path: Path, begin: int, end: int) -> str:
    """Return the SHA-256 of some bytes of a file, in hexadecimal digits; raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        file.seek(begin)
        buffer = memoryview(bytearray(min(_READ_BYTES, end - begin)))
        while begin < end:
            n = file.readinto(buffer[: end - begin])
            if not n:
                break  # Shorter than its footer says: no hash will be as recorded.
            digest.update(buffer[:n])
            begin += n
    return digest.hexdigest()


def _values(file: pq.ParquetFile, column: str) -> list[Value] | None:
    """Return the values of a column, ascending, null last; None if there are too many to tell."""
    found: set[Value] = set()
    for group in range(file.metadata.num_row_groups):
        values: pa.ChunkedArray = file.read_row_group(group, columns=[column])[column]
        found.update(values.unique().to_pylist())
        if len(found) > MOST_VALUES or any(
            isinstance(v, str) and len(v) > _MAX_TEXT for v in found
        ):
            return None
    return sorted((v for v in found if v is not None), key=_order) + [None] * (None in found)


def _order(value: Value) -> Any:
    return value.encode() if isinstance(value, str) else value
