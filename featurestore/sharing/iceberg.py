"""A store's tables in an Apache Iceberg catalog, for engines that read Iceberg
(docs/neighbours.md).

Files are registered where they lie; copied are only those that Iceberg cannot read as they are.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.errors import UsageError
from featurestore.format import durable
from featurestore.format.footers import read_schema, read_table
from featurestore.format.records import Record
from featurestore.format.records.labels import apply_labels
from featurestore.sharing.snapshot import refuse_existing
from featurestore.store import Store

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog

KINDS = ("samples", "stats", "codes", "sums", "totals", "scores", "selections")
"""what is exported; activations are not: Iceberg has no float16 and no lists of fixed size"""
NAMESPACE = "featurestore"


class Exported(NamedTuple):
    """A table of the catalog."""

    name: str
    """of the Iceberg table, in the namespace ``featurestore``"""
    rows: int
    files: int
    copied: str
    """why its files are copies; empty: they are the store's own"""


def export_iceberg(store: Store, warehouse: Path) -> list[Exported]:
    """Make an Iceberg catalog of a store's tables in the new directory ``warehouse``:
    ``catalog.db`` (SQLite) and metadata that names the store's files where they lie now.

    The table ``stats/a`` is ``featurestore.stats_a``. Copies, below ``warehouse/data``, are codes,
    whose float16 values become float32, and samples whose labels were corrected. A store that is
    moved, or collected into, needs a new export.

    Raises:
        UsageError: pyiceberg is missing, or the warehouse lies in the store.
        ShareError: ``warehouse`` exists.
        DamageError: a file is not what its record says; nothing is left.
    """
    refuse_existing(warehouse)
    if warehouse.resolve().is_relative_to(store.root.resolve()):
        raise UsageError(f"{warehouse} lies in the store {store.root}: name a directory elsewhere.")
    tables = [table for table in store.tables() if table.split("/")[0] in KINDS]
    store.check(record for table in tables for record in store.records(table))
    labels = store.corrected_labels()
    with _whole(warehouse), _catalog(warehouse) as catalog:
        catalog.create_namespace(NAMESPACE)
        return [
            _export(store, table, labels, warehouse.resolve(), catalog=catalog) for table in tables
        ]


@contextlib.contextmanager
def _whole(warehouse: Path) -> Iterator[None]:
    """Leave nothing of the warehouse if the block fails: metadata names absolute paths, so it
    cannot be made elsewhere and moved."""
    durable.make_directory(warehouse)
    try:
        yield
    except BaseException:
        durable.remove_tree(warehouse)
        raise


@contextlib.contextmanager
def _catalog(warehouse: Path) -> "Iterator[Catalog]":
    try:
        from pyiceberg.catalog.sql import SqlCatalog
    except ImportError as error:
        raise UsageError(
            f"--iceberg needs {error.name}: pip install 'featurestore[iceberg]'."
        ) from error
    root = warehouse.resolve()
    catalog = SqlCatalog(NAMESPACE, uri=f"sqlite:///{root / 'catalog.db'}", warehouse=root.as_uri())
    try:
        yield catalog
    finally:
        catalog.close()


def _export(
    store: Store, table: str, labels: pa.Table | None, warehouse: Path, *, catalog: "Catalog"
) -> Exported:
    kind, name = table.split("/")[0], table.replace("/", "_")
    records = store.records(table)
    paths = [path for record in records for path in store.paths(record)]
    copied = ""
    if kind == "codes":
        copied = "float16 values as float32"
    elif kind == "samples" and labels is not None:
        copied = "labels were corrected"
    if copied:
        paths = [_copy(path, warehouse / "data" / name, labels) for path in paths]
    schema = _plain(read_schema(paths[0]))
    made = catalog.create_table(
        (NAMESPACE, name), schema, properties={"featurestore.table": table, **_told(store, records)}
    )
    made.add_files([str(path) for path in paths])
    return Exported(name, sum(record.rows for record in records), len(paths), copied)


def _copy(path: Path, directory: Path, labels: pa.Table | None) -> Path:
    rows = read_table(path)
    if labels is not None and "prompt" in rows.column_names:
        rows = apply_labels(rows, labels)
    rows = rows.cast(_plain(rows.schema))
    target = directory / path.name
    durable.make_directory(directory)
    durable.write_file(target, lambda file: pq.write_table(rows, file, compression="zstd"))
    return target


def _plain(schema: pa.Schema) -> pa.Schema:
    """Return a schema with float32 for float16, and without metadata of other readers."""
    return pa.schema([field.with_type(_wide(field.type)) for field in schema])


def _wide(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_wide(kind.value_type)))
    return pa.float32() if kind == pa.float16() else kind


def _told(store: Store, records: list[Record]) -> dict[str, str]:
    """Return what the catalog says of where a table came from. Pictures have no minimum."""
    return {
        **{f"write.metadata.metrics.column.image.{part}": "none" for part in ("bytes", "path")},
        "featurestore.run": json.dumps(store.run, sort_keys=True, ensure_ascii=False),
        "featurestore.schema": records[0].schema,
    }
