"""A store: create, open, list, read (docs/format.md); what writes stands in ``writing``, the labels
of its samples in ``labels``."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from featurestore.errors import (
    DamageError,
    NotAStoreError,
    TableError,
    nearest,
)
from featurestore.format import activations, durable
from featurestore.format.canonical import run_id, sealed
from featurestore.format.checksums import check_shards
from featurestore.format.gate import inside
from featurestore.format.records import (
    MARK,
    Record,
    any_shard,
    list_tables,
    read_mark,
)
from featurestore.format.records.listing import read_records
from featurestore.store import labels, readers, shards, writing
from featurestore.vocabulary import FORMAT, FORMAT_VERSION

if TYPE_CHECKING:
    import datasets
    import polars as pl


class Store:
    """A directory of tables. Opening reads one small file; every list is read afresh from the
    records.

    Attributes:
        root: The directory.
        run: The run settings, or None before the first collection. They never change once set.
        version: The format version that it was made with; shards that were added later may have
            another (:attr:`~featurestore.format.records.Record.version`).
    """

    def __init__(
        self, root: Path, run: dict[str, Any] | None, version: int = FORMAT_VERSION
    ) -> None:
        self.root = root
        self.run = run
        self.version = version
        self._reading: durable.Reading | None = None

    @classmethod
    def open(cls, path: str | Path) -> "Store":
        """Open an existing store.

        Raises:
            NotAStoreError: no store lies at ``path``.
            VersionError: it has another format version.
            DamageError: its mark was changed.
        """
        root = Path(path)
        try:
            (root / MARK).lstat()
        except (FileNotFoundError, NotADirectoryError) as error:
            what = "an existing directory without one" if root.is_dir() else "no such directory"
            raise NotAStoreError(
                f"no store at {root} ({what}): 'featurestore collect --store {root} …' makes one."
            ) from error
        except OSError as error:
            raise DamageError(f"{root / MARK}: cannot be read ({error.strerror})") from error
        store = cls(root, *read_mark(root))
        store._reading = durable.Reading(root / MARK)
        return store

    @classmethod
    def prepare(cls, path: str | Path, run: Mapping[str, Any]) -> "Store":
        """Return the store at ``path`` for a run; one that does not exist yet is made when the
        first shard is written.

        Raises:
            RunError: the store holds another run.
            NotAStoreError: the directory exists and holds something else.
        """
        root = Path(path)
        # In this order: another process may be making the store just now, and its mark comes before
        # all other files.
        in_use = root.exists() and (not root.is_dir() or _holds_files(root))
        if (root / MARK).exists():
            store = cls.open(root)
            shards.check_run(root, store.run or {}, run)
            return store
        if in_use:
            raise NotAStoreError(f"{root} exists and is no store: name a new or empty directory.")
        return cls(root, dict(run))

    @classmethod
    def create(cls, path: str | Path, run: Mapping[str, Any]) -> "Store":
        """Return the store at ``path`` for a run, on disk; raises as :meth:`prepare`."""
        store = cls.prepare(path, run)
        store.begin()
        return store

    def begin(self) -> None:
        """Make the store exist: nothing else may be written to a new one before."""
        if not (self.root / MARK).exists():
            mark = {"format": FORMAT, "format_version": FORMAT_VERSION, "run": self.run}
            durable.create_once(self.root / MARK, sealed(mark))

    @property
    def exists(self) -> bool:
        """Whether anything has been committed or the store was created."""
        return (self.root / MARK).exists()

    @property
    def run_id(self) -> str:
        """The 16 digits that name the run's settings."""
        return run_id(self.run or {})

    def tables(self) -> list[str]:
        """Return the names of the tables that hold at least one committed shard, ``saes`` left
        out."""
        return sorted(table for table in list_tables(self.root) if table != "saes")

    def names(self, kind: str) -> list[str]:
        """Return the names under a kind of table: hooks for ``activations``, SAEs for ``codes``,
        ``stats``, …"""
        return [table.split("/", 1)[1] for table in self.tables() if table.startswith(f"{kind}/")]

    def records(self, table: str) -> list[Record]:
        """Return the commit records of a table in the order of their shards' names; empty if there
        is no such table."""
        return read_records(self.root, table)

    def record(self, table: str, shard: str) -> Record | None:
        """Return one commit record, or None."""
        return shards.find_record(self.root, table, shard)

    def any_record(self, table: str) -> Record | None:
        """Return the commit record of some shard of a table, which says what all have in common;
        None if it has none. No other is read."""
        shard = any_shard(self.root, table)
        return None if shard is None else self.record(table, shard)

    def done(self, table: str, shard: str) -> Record | None:
        """Return the commit record of a shard, or of the one that holds its rows by now; None if
        there is neither."""
        return shards.find_done(self.root, table, shard)

    def shard_names(self, table: str) -> set[str]:
        """Return the names of a table's shards as they were first committed: of compacted ones,
        those that they replaced."""
        return shards.first_names(self.root, table)

    def require(self, table: str) -> list[Record]:
        """Return the commit records of a table that must exist.

        Raises:
            TableError: it does not; the near names are offered.
        """
        records = self.records(table)
        if not records:
            kind = table.split("/")[0]
            known = [t for t in self.tables() if t.split("/")[0] == kind] or self.tables()
            raise TableError(f"{self.root} has no table {table!r}.{nearest(table, known)}")
        return records

    def files(self, table: str) -> list[Path]:
        """Return the committed Parquet files of a table, in order."""
        return [path for record in self.records(table) for path in self.paths(record)]

    def paths(self, record: Record) -> list[Path]:
        """Return where a shard's files lie.

        Raises:
            DamageError: a symbolic link is on the way to one.
        """
        return [inside(self.root, entry.path) for entry in record.files]

    def committed_samples(self, table: str) -> set[int]:
        """Return the ids of the samples that a table's committed shards hold."""
        return {i for record in self.records(table) for i in record.sample_ids}

    def check(self, records: Iterable[Record]) -> None:
        """Compare the files of some shards with their records, each once in a process: what every
        reader does first.

        Bytes by their SHA-256, Parquet footers by rows and columns.
        :func:`featurestore.maintenance.verify.verify` is the inspection of a whole store, which
        reports everything instead of stopping.

        Raises:
            DamageError: a file is not what its record says; the first five such files are named.
        """
        check_shards(self.root, records)

    append = writing.append
    append_parts = writing.append_parts
    begin_shard = writing.begin_shard
    append_shard = writing.append_shard
    claim = writing.claim
    commit = writing.commit
    check_schema = writing.check_schema
    remove = writing.remove

    families = labels.families
    label_columns = labels.label_columns
    corrected_labels = labels.corrected_labels

    @contextlib.contextmanager
    def alone(self) -> Iterator[bool]:
        """Keep others from beginning to read while the block runs; yield whether nobody else
        reads."""
        if self._reading is None:
            self._reading = durable.Reading(self.root / MARK)
        with self._reading.alone() as alone:
            yield alone

    def activations(self, hook: str) -> Iterator["activations.ActivationShard"]:
        """Yield a hook's shards: columns in memory, tensors mapped from the files (decoded where
        that is impossible).

        Raises:
            TableError: nothing was collected at ``hook``.
            DamageError: a file is not what its record says.
        """
        for record in self.require(f"activations/{hook}"):
            yield activations.open_shard(self.root, record)

    def arrow(self, table: str, columns: Iterable[str] | None = None) -> pa.Table:
        """Read a table's committed rows into memory: all columns, or those named.

        The rows have the order of the shards; the schema metadata is that of the first. ``samples``
        have the labels that stand, here and in :meth:`scan` and :meth:`dataset`: those of
        :meth:`corrected_labels` where they were corrected.

        Raises:
            TableError: there is no such table, or no such column.
            DamageError: a file is not what its record says.
        """
        return readers.arrow(self._verified(table), columns, self._labels(table))

    def scan(self, table: str) -> "pl.LazyFrame":
        """Return a Polars query over a table's committed rows, such as ``scan("stats/styles")``.

        Every file is compared with its record now; rows are read when the query is collected.

        Raises:
            TableError: there is no such table.
            DamageError: a file is not what its record says.
        """
        return readers.scan(self._verified(table), self._labels(table))

    def dataset(
        self, table: str, columns: Iterable[str] | None = None, *, streaming: bool = False
    ) -> "datasets.Dataset | datasets.IterableDataset":
        """Return a table's committed rows as a data set of the library ``datasets``.

        Every file is compared with its record first. Without ``streaming``, ``datasets`` writes a
        copy of the chosen columns into its cache, which takes about as much disk as they do here;
        with it, nothing is copied.

        Raises:
            TableError: there is no such table, or no such column.
            DamageError: a file is not what its record says.
        """
        return readers.dataset(self._verified(table), columns, streaming, self._labels(table))

    def _labels(self, table: str) -> pa.Table | None:
        return self.corrected_labels() if table == "samples" else None

    def _verified(self, table: str) -> list[Path]:
        records = self.require(table)
        self.check(records)
        return [path for record in records for path in self.paths(record)]


def _holds_files(root: Path) -> bool:
    """Say whether a directory holds more than what an interrupted first commit leaves: empty
    folders and hidden files."""
    found = (path.relative_to(root).parts for path in root.rglob("*") if path.is_file())
    return any(not any(part.startswith(".") for part in parts) for parts in found)
