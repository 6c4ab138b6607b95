"""The labels of a store's samples: as they were collected, and as they were corrected. These are
methods of :class:`featurestore.Store`."""

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from featurestore.format import footers, schemas
from featurestore.format.records import Record
from featurestore.format.records.labels import corrected, label_version
from featurestore.store import readers


class Place(Protocol):
    """What labels need of a store."""

    root: Path

    def records(self, table: str) -> list[Record]:
        """Return the commit records of a table."""

    def require(self, table: str) -> list[Record]:
        """Return the commit records of a table that must exist."""

    def paths(self, record: Record) -> list[Path]:
        """Return where a shard's files lie."""

    def check(self, records: Iterable[Record]) -> None:
        """Compare the files of some shards with their records."""


def families(store: Place) -> list[str]:
    """Return the concept families that the samples are labelled with."""
    own = label_columns(store)
    later = {family for record in store.records("labels") for family in label_version(record)[1]}
    return own + sorted(later - set(own))


def label_columns(store: Place) -> list[str]:
    """Return the concept families that are columns of ``samples``."""
    records = store.require("samples")
    store.check(records[:1])
    return schemas.family_names(readers.names(store.paths(records[0])[0]))


def corrected_labels(store: Place) -> pa.Table | None:
    """Return the labels of the samples that were relabelled, or have families that ``samples`` has
    no column for.

    ``sample_id`` and a column per family of the store, a row per such sample; None if there is
    none.
    """
    records = store.records("labels")
    store.check(records)
    parts = ((record, readers.arrow(store.paths(record), None)) for record in records)
    with footers.reading(store.root / "labels"):
        return corrected(parts, families(store)) if records else None
