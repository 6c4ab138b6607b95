"""The records of a large table, read once: a snapshot of them beside the user's cache
(docs/reliability.md, "Once").

A table of 100,000 shards has as many small files. What they say is kept together in one file
outside of the store, each record with the inode, size, modification and change time of its file. A
record whose file has the same is taken from there, any other is read; so the snapshot is never
believed over a record. Missing, damaged or another user's, it is made anew.
"""

import contextlib
import gc
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextvars import ContextVar
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from featurestore.format.canonical import canonical_json
from featurestore.format.contents import Contents, Part
from featurestore.format.records.parsing import read_record
from featurestore.format.records.places import record_entries
from featurestore.format.records.record import FileEntry, Record
from featurestore.format.verified import cache_directory, settled_before, why_not

LEAST = 200
"""shards of a table below which its records are read one by one"""
_DIGEST, _AT_ONCE = 32, 4096
_TEXT = pa.dictionary(pa.int32(), pa.string())
_PART = pa.struct({"rows": pa.int64(), "bytes": pa.int64(), "sha256": pa.string()})
_COLUMNS = {
    "shard": pa.string(), "key": pa.binary(), "schema": pa.string(), "rows": pa.int64(),
    "bytes": pa.int64(), "sha256": pa.string(), "made_by": _TEXT,
    "sample_ids": pa.list_(pa.int64()), "holds": _TEXT, "parts": pa.list_(_PART),
    "replaces": pa.list_(pa.string()),
}  # fmt: skip


_COLLECTED = ("samples", "labels", "saes", "codes", "stats")
"""kinds of table that no question adds to"""
_once: ContextVar[dict[tuple[Path, str], list[Record]] | None] = ContextVar("once", default=None)


class Found(NamedTuple):
    """A record's file."""

    shard: str
    key: bytes
    """what the file is known by"""
    settled: bool
    """whether a later change of it must show"""


@contextlib.contextmanager
def one_state() -> Iterator[None]:
    """Read the records of samples, labels, SAEs, codes and statistics once while the block runs, in
    this thread: all that is asked in it is asked of one state of a store that may be growing."""
    token = _once.set({})
    try:
        yield
    finally:
        _once.reset(token)


def read_records(root: Path, table: str) -> list[Record]:
    """Return the records of a table in the order of their shards' names.

    Raises:
        DamageError: one of them is not what was written, or is a symbolic link.
        VersionError: one has another format version.
    """
    known = _once.get()
    if known is None or table.partition("/")[0] not in _COLLECTED:
        return _read_standing(root, table)
    if (root, table) not in known:
        known[root, table] = _read_standing(root, table)
    return list(known[root, table])


def _read_standing(root: Path, table: str) -> list[Record]:
    """Return the records of a table without those that others replace."""
    records = _read_all(root, table)
    replaced = {name for record in records for name in record.covers if name != record.shard}
    return [one for one in records if one.shard not in replaced] if replaced else records


def _read_all(root: Path, table: str) -> list[Record]:
    """Return the records of a table, those of shards that others replace among them."""
    found = list(_found(root, table))
    if len(found) < LEAST or table == "saes" or why_not(root) is not None:
        return [read_record(root, table, one.shard) for one in found]
    path = cache_directory() / "records" / f"{_name(root, table)}-2.arrow"
    with _uncollected():
        kept = _kept(path, table)
        last, records, new = next(kept, None), list[Record](), 0
        for one in found:
            while last is not None and last[0] < one.shard:  # Both are in the order of their names.
                last = next(kept, None)
            if last is not None and last[:2] == (one.shard, one.key):
                records.append(last[2])
            else:
                new += one.settled  # Of younger ones nothing could be kept.
                records.append(read_record(root, table, one.shard))
        if new * 100 > len(found):
            _save(path, [pair for pair in zip(found, records, strict=True) if pair[0].settled])
    return records


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Keep Python from looking for garbage among 100,000 records while they are made: there is
    none."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _found(root: Path, table: str) -> Iterator[Found]:
    """Yield the files of a table's records in the order of their shards' names."""
    settled = settled_before()
    for shard, entry in sorted(record_entries(root, table), key=itemgetter(0)):
        try:
            s = entry.stat(follow_symlinks=False)
        except FileNotFoundError:  # superseded a moment ago
            continue
        key = b"%d %d %d %d %d" % (s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns)
        yield Found(shard, key, max(s.st_mtime_ns, s.st_ctime_ns) <= settled)


def _name(root: Path, table: str) -> str:
    return hashlib.sha256(f"{root.resolve()}\n{table}".encode()).hexdigest()[:32]


def _kept(path: Path, table: str) -> Iterator[tuple[str, bytes, Record]]:
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
    texts = [rows.column(name) for name in ("made_by", "holds")]
    told = [column.dictionary.to_pylist() for column in texts]
    indices = [column.indices.to_pylist() for column in texts]
    for text in (*told[0], *told[1]):
        if text not in makers:
            makers[text] = json.loads(text)
    columns = _Columns(rows, table)
    for i, (shard, key, schema, n_rows) in enumerate(zip(*quick, strict=True)):
        made_by, holds = (makers[words[of[i]]] for words, of in zip(told, indices, strict=True))
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


def _texts(values: list[Any]) -> pa.DictionaryArray:
    """Return values as JSON: few are told apart."""
    return pa.array([canonical_json(value) for value in values]).dictionary_encode()


def _save(path: Path, pairs: list[tuple[Found, Record]]) -> None:
    """Write a snapshot; of two processes that do so at once, one stays. Nothing of it is needed."""
    of = [(r, r.files[0], r.contents or Contents({}, ())) for _, r in pairs]
    columns = {
        "shard": [one.shard for one, _ in pairs], "key": [one.key for one, _ in pairs],
        "schema": [r.schema for r, _, _ in of], "rows": [r.rows for r, _, _ in of],
        "bytes": [f.bytes for _, f, _ in of], "sha256": [f.sha256 for _, f, _ in of],
        "made_by": _texts([dict(r.made_by) for r, _, _ in of]),
        "sample_ids": [r.sample_ids for r, _, _ in of],
        "holds": _texts([None if r.contents is None else c.holds for r, _, c in of]),
        "parts": [[p._asdict() for p in c.parts] for _, _, c in of],
        "replaces": [c.replaces for _, _, c in of],
    }  # fmt: skip
    sink = pa.BufferOutputStream()
    table = pa.table(columns, schema=pa.schema(list(_COLUMNS.items())))
    with pa.ipc.new_stream(
        sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")
    ) as stream:
        stream.write_table(table, max_chunksize=_AT_ONCE)
    data = sink.getvalue().to_pybytes()
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary.write_bytes(hashlib.sha256(data).digest() + data)
        os.replace(temporary, path)  # noqa: PTH105
    except OSError:
        temporary.unlink(missing_ok=True)
