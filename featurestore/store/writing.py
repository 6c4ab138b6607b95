"""What of a store writes: shards are appended, committed and removed. These are methods of
:class:`featurestore.Store`."""

# ruff: noqa: PLR0917 - as methods they have four positional arguments: the store is not counted

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import pyarrow as pa

from featurestore.format import durable
from featurestore.format.gate import inside
from featurestore.format.ledger import is_derived, update_ledger
from featurestore.format.parquet import layout
from featurestore.format.parquet.in_place import TensorFile
from featurestore.format.records import Record, shard_files
from featurestore.store import shards


class Place(Protocol):
    """What writing needs of a store."""

    root: Path

    def begin(self) -> None:
        """Make the store exist."""


def append(
    store: Place,
    table: str,
    shard: str,
    rows: pa.Table,
    sample_ids: Sequence[int],
    *,
    made_by: Mapping[str, Any],
) -> Record:
    """Write and commit a shard. A shard that exists already is left as it is and its record
    returned.

    ``rows`` carry the schema metadata that the file is to have. Durable and atomic when this
    returns.

    Raises:
        TableError: ``rows`` have other columns than the table's other shards, or no shard can have
            that name.
        DiskError: the operating system refused; nothing was committed.
    """
    new = shards.NewShard(table, shard, tuple(sample_ids), made_by)
    return _write(store, new, rows.schema, lambda file: layout.write_table(file, rows))


def begin_shard(
    store: Place, table: str, shard: str, others: pa.Table, schema: pa.Schema
) -> TensorFile:
    """Begin a shard of activations whose rows come in any order; :meth:`append_shard` commits
    it.

    ``schema`` is that of the table, with its metadata, and ``others`` are its columns but the
    tensor. Nothing that others see of the store is made or changed yet.

    Raises:
        TableError: the table's other shards have other columns, or no shard can have that name.
        DiskError: the operating system refused.
    """
    shards.check_names(table, shard)
    check_schema(store, table, schema)
    (path,) = shard_files(table, shard)
    return TensorFile(inside(store.root, path), others, schema, store.root / ".work" / "filling")


def append_shard(
    store: Place,
    table: str,
    shard: str,
    file: TensorFile,
    sample_ids: Sequence[int],
    *,
    made_by: Mapping[str, Any],
) -> Record:
    """Commit a shard that :meth:`begin_shard` began, once all of its rows were put; otherwise
    as :meth:`append`.

    The file is closed, whatever becomes of it.
    """
    with contextlib.closing(file):
        store.begin()
        return shards.place_shard(
            store.root, shards.NewShard(table, shard, tuple(sample_ids), made_by), file
        )


def append_parts(
    store: Place,
    table: str,
    shard: str,
    schema: pa.Schema,
    parts: Iterable[pa.Table],
    *,
    made_by: Mapping[str, Any],
) -> Record:
    """Write and commit a shard of a derived table part by part, as :meth:`append` does one that
    fits memory."""
    new = shards.NewShard(table, shard, (), made_by)
    return _write(store, new, schema, lambda file: layout.write_parts(file, schema, parts))


def _write(
    store: Place, new: shards.NewShard, schema: pa.Schema, write: Callable[[BinaryIO], int]
) -> Record:
    store.begin()
    return shards.write_shard(store.root, new, schema, write)


def claim(store: Place, table: str, shard: str) -> durable.Claim:
    """Wait until no other process is committing a shard, and keep others from it while the
    block runs.

    Raises:
        DiskError: the operating system refused, or the file system has no locks.
    """
    store.begin()
    return shards.claim(store.root, table, shard)


def commit(store: Place, record: Record) -> Record:
    """Create a commit record; whoever writes the shard's files holds its :meth:`claim`.

    Raises:
        TakenError: another process committed the shard with other files.
    """
    store.begin()
    return shards.commit(store.root, record)


def check_schema(store: Place, table: str, schema: pa.Schema) -> None:
    """Refuse rows of this schema for a table whose shards have another.

    Raises:
        TableError: the columns differ; it names them.
    """
    shards.check_schema(store.root, table, schema)


def remove(store: Place, record: Record) -> None:
    """Remove a shard: its record, then its files. Only derived tables may lose a shard
    (docs/format.md, section 1.5)."""
    location = record.location.as_posix()
    paths = [inside(store.root, entry.path) for entry in record.files]
    durable.remove(inside(store.root, location))
    if not is_derived(record.table):
        update_ledger(store.root, frozenset([location]))
    for path in paths:
        durable.remove(path)
