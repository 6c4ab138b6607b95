"""The records of a large table, read once: a snapshot of them beside the user's cache
(docs/reliability.md, "Once").

A table of 100,000 shards has as many small files. What they say is kept together in one file
outside of the store, each record with the inode, size, modification and change time of its file. A
record whose file has the same is taken from there, any other is read; so the snapshot is never
believed over a record. Missing, damaged or another user's, it is made anew.
"""

import contextlib
import gc
import struct
from collections.abc import Iterator
from contextvars import ContextVar
from operator import itemgetter
from pathlib import Path, PurePosixPath

from featurestore.format.gate import inside
from featurestore.format.records import snapshot
from featurestore.format.records.parsing import read_placed_record, read_record
from featurestore.format.records.places import record_entries
from featurestore.format.records.record import Record
from featurestore.format.verified import settled_before, why_not

LEAST = 200
"""shards of a table below which its records are read one by one"""
_COLLECTED = ("samples", "labels", "saes", "codes", "stats")
"""kinds of table that no question adds to"""
_KEY = struct.Struct("<QQqqq").pack
_once: ContextVar[dict[tuple[Path, str], list[Record]] | None] = ContextVar("once", default=None)


Found = tuple[str, bytes, bool]
"""a record's file: its shard, what it is known by, and whether a later change of it must show (a
class would take a tenth of the time for 100,000)"""


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
        return [read_record(root, table, shard) for shard, _, _ in found]
    path, directory = snapshot.place(root, table), inside(root, PurePosixPath("manifest", table))
    with _uncollected():
        known = list(_known(found, snapshot.load(path, table)))
        read = (
            (
                key if settled else b"",
                record or read_placed_record(f"{directory}/{shard}.json", table, shard),
            )
            for (shard, key, settled), record in zip(found, known, strict=True)
        )
        # Of younger ones nothing could be kept.
        missing = (
            settled for (_, _, settled), record in zip(found, known, strict=True) if record is None
        )
        if sum(missing) * 100 <= len(found):
            return [record for _, record in read]
        return snapshot.save(path, table, read)


def _known(
    found: list[Found], kept: Iterator[tuple[str, bytes, Record]]
) -> Iterator[Record | None]:
    """Yield of each file the record that a snapshot has of it, if it has one of this very file;
    both are in the order of their shards' names."""
    nothing: tuple[str, bytes, Record | None] = ("", b"", None)
    name, of, record = next(kept, nothing)
    for shard, key, _ in found:
        while record is not None and name < shard:
            name, of, record = next(kept, nothing)
        yield record if of == key and name == shard else None


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
        modified, changed = s.st_mtime_ns, s.st_ctime_ns
        key = _KEY(s.st_dev, s.st_ino, s.st_size, modified, changed)
        yield shard, key, modified <= settled and changed <= settled
