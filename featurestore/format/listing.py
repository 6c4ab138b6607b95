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
from operator import itemgetter
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import pyarrow as pa

from featurestore.errors import DamageError
from featurestore.format.canonical import canonical_json
from featurestore.format.gate import entries, inside
from featurestore.format.records import FileEntry, Record, is_name, read_record
from featurestore.format.verified import cache_directory, settled_before, why_not

LEAST = 200
"""shards of a table below which its records are read one by one"""
_DIGEST, _AT_ONCE = 32, 4096
_COLUMNS = {
    "shard": pa.string(), "key": pa.binary(), "schema": pa.string(), "rows": pa.int64(), "bytes": pa.int64(),
    "sha256": pa.string(), "made_by": pa.string(), "sample_ids": pa.list_(pa.int64()),
}  # fmt: skip


class Found(NamedTuple):
    """A record's file."""

    shard: str
    key: bytes
    """what the file is known by"""
    settled: bool
    """whether a later change of it must show"""


def read_records(root: Path, table: str) -> list[Record]:
    """Return the records of a table in the order of their shards' names.

    Raises:
        DamageError: one of them is not what was written, or is a symbolic link.
        VersionError: one has another format version.
    """
    found = list(_found(root, table))
    if len(found) < LEAST or table == "saes" or why_not(root) is not None:
        return [read_record(root, table, one.shard) for one in found]
    path = cache_directory() / "records" / f"{_name(root, table)}.arrow"
    with _uncollected():
        kept = _kept(path, table)
        last, records, new = next(kept, None), list[Record](), 0
        for one in found:
            while last is not None and last[0] < one.shard:  # Both are in the order of their names.
                last = next(kept, None)
            if last is not None and last[:2] == (one.shard, one.key):
                records.append(last[2])
            else:
                new += 1
                records.append(read_record(root, table, one.shard))
        if new * 10 > len(found):
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
    directory = PurePosixPath("manifest", table)
    names = []
    for entry in entries(root, directory):
        if not entry.name.endswith(".json") or entry.name.startswith("."):
            continue
        if entry.is_symlink():
            inside(root, directory / entry.name)
        shard = entry.name[:-5]
        if not is_name(shard):
            raise DamageError(f"{root / directory / entry.name}: no shard can have this name")
        names.append((shard, entry))
    settled = settled_before()
    for shard, entry in sorted(names, key=itemgetter(0)):
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
    columns = (rows.column(name).to_pylist() for name in _COLUMNS if name != "sample_ids")
    lists = rows.column("sample_ids")
    flat, ends = lists.flatten().to_pylist(), lists.offsets.to_pylist()
    for i, (shard, key, schema, n_rows, n_bytes, sha256, made_by) in enumerate(
        zip(*columns, strict=True)
    ):
        if made_by not in makers:
            makers[made_by] = json.loads(made_by)
        entry, record = FileEntry.__new__(FileEntry), Record.__new__(Record)
        # Frozen classes set their fields one by one, which takes most of the time for 100,000 of
        # them.
        entry.__dict__.update(path=f"{table}/{shard}.parquet", bytes=n_bytes, sha256=sha256)
        record.__dict__.update(
            table=table, shard=shard, schema=schema, rows=n_rows, sample_ids=tuple(flat[ends[i] : ends[i + 1]]),
            files=(entry,), made_by=makers[made_by],
        )  # fmt: skip
        yield shard, key, record


def _save(path: Path, pairs: list[tuple[Found, Record]]) -> None:
    """Write a snapshot; of two processes that do so at once, one stays. Nothing of it is needed."""
    columns = {
        "shard": [one.shard for one, _ in pairs], "key": [one.key for one, _ in pairs],
        "schema": [r.schema for _, r in pairs], "rows": [r.rows for _, r in pairs],
        "bytes": [r.files[0].bytes for _, r in pairs], "sha256": [r.files[0].sha256 for _, r in pairs],
        "made_by": [canonical_json(dict(r.made_by)) for _, r in pairs], "sample_ids": [r.sample_ids for _, r in pairs],
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
