"""The file that a snapshot of records is (listing.py): what it holds, writing and reading it."""

import hashlib
import json
import os
import secrets
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from featurestore.format.canonical import canonical_json
from featurestore.format.contents import Contents, Part
from featurestore.format.records.record import FileEntry, Record
from featurestore.format.verified import cache_directory

_DIGEST, _AT_ONCE = 32, 4096
_TEXT = pa.dictionary(pa.int32(), pa.string())
_PART = pa.struct({"rows": pa.int64(), "bytes": pa.int64(), "sha256": pa.string()})
_COLUMNS = {
    "shard": pa.string(), "key": pa.binary(), "schema": pa.string(), "rows": pa.int64(),
    "bytes": pa.int64(), "sha256": pa.string(), "made_by": _TEXT,
    "sample_ids": pa.list_(pa.int64()), "holds": _TEXT, "parts": pa.list_(_PART),
    "replaces": pa.list_(pa.string()),
}  # fmt: skip


def place(root: Path, table: str) -> Path:
    """Return where the snapshot of a table's records lies."""
    name = hashlib.sha256(f"{root.resolve()}\n{table}".encode()).hexdigest()[:32]
    return cache_directory() / "records" / f"{name}-3.arrow"


def load(path: Path, table: str) -> Iterator[tuple[str, bytes, Record]]:
    """Yield shard, key and record of a snapshot in the order of the shards; nothing if there is
    none that is whole."""
    try:
        data = b"" if path.is_symlink() else path.read_bytes()
        if hashlib.sha256(memoryview(data)[_DIGEST:]).digest() != data[:_DIGEST]:
            return
        with pa.ipc.open_stream(pa.py_buffer(memoryview(data)[_DIGEST:])) as stream:
            makers: dict[str, Any] = {}
            for batch in stream:
                yield from _records(batch, table, makers)
    except (OSError, pa.ArrowException, ValueError, KeyError):
        return


def _records(
    rows: pa.RecordBatch, table: str, makers: dict[str, Any]
) -> Iterator[tuple[str, bytes, Record]]:
    """Yield what a batch of a snapshot holds; what takes time is made of it when it is asked
    for."""
    quick = [rows.column(name).to_pylist() for name in ("shard", "key", "schema", "rows")]
    for name in ("made_by", "holds"):
        column = rows.column(name)
        for text in (texts := column.dictionary.to_pylist()):
            if text not in makers:
                makers[text] = json.loads(text)
        told = [makers[text] for text in texts]
        quick.append([told[place] for place in column.indices.to_pylist()])
    columns = _Columns(rows, table)
    for i, (shard, key, schema, n_rows, made_by, holds) in enumerate(zip(*quick, strict=True)):
        record = Record.__new__(Record)
        # Frozen classes set their fields one by one, which takes most of the time for 100,000 of
        # them.
        record.__dict__.update(
            table=table, shard=shard, schema=schema, rows=n_rows, made_by=made_by,
            _later=_Later(columns, i, holds),
        )  # fmt: skip
        yield shard, key, record


class _Columns:
    """Columns of a snapshot's batch, as Python has them, each made once."""

    def __init__(self, rows: pa.RecordBatch, table: str) -> None:
        self.rows, self.table = rows, table
        self._made: dict[str, Any] = {}

    def list_of(self, name: str, i: int) -> list[Any]:
        """Return row ``i`` of a column of lists of numbers."""
        if name not in self._made:
            column = self.rows.column(name)
            numbers = memoryview(column.values.buffers()[1]).cast("q")
            self._made[name] = numbers, column.offsets.to_pylist()
        values, offsets = self._made[name]
        row: list[Any] = values[offsets[i] : offsets[i + 1]].tolist()
        return row

    def value(self, name: str, i: int) -> Any:
        """Return row ``i`` of a column."""
        if name not in self._made:
            self._made[name] = self.rows.column(name).to_pylist()
        return self._made[name][i]


class _Later:
    """The fields of a record that are made of its snapshot when they are asked for."""

    __slots__ = ("_columns", "_holds", "_i")

    def __init__(self, columns: _Columns, i: int, holds: Any) -> None:
        self._columns, self._i, self._holds = columns, i, holds

    @property
    def told(self) -> bool:
        """Whether the record tells what its file holds."""
        return self._holds is not None

    def __call__(self, name: str) -> Any:
        """Return a field; raises AttributeError if a record has no such field."""
        of, i = self._columns, self._i
        if name == "sample_ids":
            return tuple(of.list_of("sample_ids", i))
        if name == "files":
            path = f"{of.table}/{of.value('shard', i)}.parquet"
            return (FileEntry(path, of.value("bytes", i), of.value("sha256", i)),)
        if name == "contents":
            if self._holds is None:
                return None
            parts = of.rows.column("parts")[i].as_py()
            replaces = tuple(of.rows.column("replaces")[i].as_py())
            return Contents(self._holds, tuple(Part(**part) for part in parts), replaces)
        raise AttributeError(name)


def save(path: Path, table: str, pairs: Iterable[tuple[bytes, Record]]) -> list[Record]:
    """Write a snapshot of records and what their files are known by (nothing: to be read again), in
    the order of the shards; of two processes that do so at once, one stays, and nothing of it is
    needed.

    Returns:
        The records as the snapshot has them, which takes a fifth of the memory of those given.
    """
    sink, rest = pa.BufferOutputStream(), iter(pairs)
    schema = pa.schema(list(_COLUMNS.items()))
    records, makers = list[Record](), dict[str, Any]()
    with pa.ipc.new_stream(
        sink, schema, options=pa.ipc.IpcWriteOptions(compression="zstd")
    ) as stream:
        while part := list(islice(rest, _AT_ONCE)):
            batch = pa.RecordBatch.from_arrays(_columns(part), schema=schema)
            stream.write_batch(batch)
            records += [record for _, _, record in _records(batch, table, makers)]
    data = sink.getvalue()
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with temporary.open("wb") as file:
            file.write(hashlib.sha256(data).digest())
            file.write(data)
        os.replace(temporary, path)  # noqa: PTH105
    except OSError:
        temporary.unlink(missing_ok=True)
    return records


def _columns(pairs: list[tuple[bytes, Record]]) -> list[pa.Array]:
    """Return records as the columns of a snapshot.

    Made of buffers: ``pyarrow.array`` imports pandas, which takes longer than 5,000 records.
    """
    of = [(r, r.files[0], r.contents or Contents({}, ())) for _, r in pairs]
    parts = [p for _, _, c in of for p in c.parts]
    part = pa.StructArray.from_arrays(
        [
            _numbers(p.rows for p in parts),
            _numbers(p.bytes for p in parts),
            _texts([p.sha256 for p in parts]),
        ],
        fields=list(_PART),
    )
    return [
        _texts([r.shard for r, _, _ in of]),
        _texts([key for key, _ in pairs], pa.binary()),
        _texts([r.schema for r, _, _ in of]),
        _numbers(r.rows for r, _, _ in of),
        _numbers(f.bytes for _, f, _ in of),
        _texts([f.sha256 for _, f, _ in of]),
        _told([dict(r.made_by) for r, _, _ in of]),
        _lists(
            [len(r.sample_ids) for r, _, _ in of],
            _numbers(i for r, _, _ in of for i in r.sample_ids),
        ),
        _told([None if r.contents is None else c.holds for r, _, c in of]),
        _lists([len(c.parts) for _, _, c in of], part),
        _lists(
            [len(c.replaces) for _, _, c in of],
            _texts([name for _, _, c in of for name in c.replaces]),
        ),
    ]


def _numbers(values: Iterable[int], kind: pa.DataType = _COLUMNS["rows"]) -> pa.Array:
    held = array("q" if kind == pa.int64() else "i", values)
    return pa.Array.from_buffers(kind, len(held), [None, pa.py_buffer(held)])


def _texts(values: Sequence[str | bytes], kind: pa.DataType = _COLUMNS["shard"]) -> pa.Array:
    data = [value.encode() if isinstance(value, str) else value for value in values]
    buffers = [None, _ends(map(len, data)), pa.py_buffer(b"".join(data))]
    return pa.Array.from_buffers(kind, len(data), buffers)


def _ends(sizes: Iterable[int]) -> pa.Buffer:
    return pa.py_buffer(array("i", accumulate(sizes, initial=0)))


def _lists(sizes: list[int], values: pa.Array) -> pa.Array:
    kind = pa.list_(values.type)
    return pa.Array.from_buffers(kind, len(sizes), [None, _ends(sizes)], children=[values])


def _told(values: list[Any]) -> pa.DictionaryArray:
    """Return values as JSON: few are told apart."""
    place: dict[str, int] = {}
    texts: list[str] = []
    indices = []
    for value in values:
        if (as_is := repr(value)) not in place:
            place[as_is] = len(texts)
            texts.append(canonical_json(value))
        indices.append(place[as_is])
    return pa.DictionaryArray.from_arrays(_numbers(indices, pa.int32()), _texts(texts))
