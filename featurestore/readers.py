"""Read a store's tables as Arrow, with Polars and with datasets; every file is compared with its commit record first."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.errors import TableError, nearest
from featurestore.store import Store

if TYPE_CHECKING:
    import datasets
    import polars as pl


def arrow(store: Store, table: str, columns: Iterable[str] | None = None) -> pa.Table:
    """Return a table in memory; as :meth:`Store.arrow`."""
    files = _files(store, table)
    wanted = None if columns is None else _known(store, table, columns)
    parts = [pq.read_table(file, columns=wanted, page_checksum_verification=True, partitioning=None) for file in files]
    return pa.concat_tables([part.replace_schema_metadata(parts[0].schema.metadata) for part in parts])


def scan(store: Store, table: str) -> "pl.LazyFrame":
    """Return a table as a Polars query that has not read anything yet; as :meth:`Store.scan`."""
    import polars as pl

    return pl.scan_parquet(_files(store, table), glob=False, hive_partitioning=False)


def dataset(
    store: Store, table: str, columns: Iterable[str] | None = None, *, streaming: bool = False
) -> "datasets.Dataset | datasets.IterableDataset":
    """Return a table as a data set of the library datasets; as :meth:`Store.dataset`."""
    from datasets import load_dataset

    wanted: dict[str, Any] = {} if columns is None else {"columns": _known(store, table, columns)}
    return load_dataset("parquet", data_files=_files(store, table), split="train", streaming=streaming, **wanted)


def _files(store: Store, table: str) -> list[str]:
    records = store.require(table)
    store.check(records)
    return [str(store.root / entry.path) for record in records for entry in record.files]


def _known(store: Store, table: str, columns: Iterable[str]) -> list[str]:
    """Return columns, all of which the table must have.

    Raises:
        TableError: the table has no such column.
    """
    known = pq.read_schema(_files(store, table)[0]).names
    wanted = list(columns)
    for name in wanted:
        if name not in known:
            raise TableError(f"table {table!r} of {store.root} has no column {name!r}.{nearest(name, known)}")
    return wanted
