"""Views over a store's files: one per kind of table, and those with labels."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import duckdb
import pyarrow as pa

from featurestore.errors import DamageError
from featurestore.format.footers import read_schema
from featurestore.format.records import Record
from featurestore.format.schemas import (
    CODES,
    FEATURE_MASKS,
    FEATURE_SAMPLES,
    FEATURE_STEPS,
    SCORES,
    STATS,
    SUMS,
    TOTALS,
    activations_schema,
    attention_schema,
    family_names,
    samples_schema,
)
from featurestore.saes import load_config, sae_hash
from featurestore.store import Store
from featurestore.vocabulary import TABLE_KINDS
from queries.connection.pruning import LABELLED, OWN_COLUMN, Needed, planned_samples, told_families
from queries.connection.sql_errors import one_line
from queries.connection.text import quote_identifier, quote_text

EMPTY = {
    "samples": samples_schema([]),
    "activations": activations_schema(1, 1),
    "attention": attention_schema(1),
    "codes": CODES,
    "stats": STATS,
    "sums": SUMS,
    "totals": TOTALS,
    "feature_masks": FEATURE_MASKS,
    "feature_samples": FEATURE_SAMPLES,
    "feature_steps": FEATURE_STEPS,
    "candidates": SUMS,
    "step_candidates": SUMS,
    "scores": SCORES,
    "selections": SCORES,
}
_TYPES = {
    "int64": "bigint",
    "int32": "integer",
    "float": "float",
    "double": "double",
    "string": "varchar",
}
_NESTED = {
    "features": "integer[][]",
    "values": "float[][]",
    "activation": "float[][]",
    "attention": "float[]",
}
_PICTURE = "struct(bytes blob, path varchar)"

SAES = (
    "create table saes (sae varchar, hook varchar, io varchar, d_in integer, n_latents integer, "
    "k integer, map_positions integer, sae_hash varchar)"
)


def create_views(connection: duckdb.DuckDBPyConnection, store: Store, shards: Needed) -> None:
    """Create the views over some shards, which nothing verifies.

    Raises:
        DamageError: DuckDB cannot open a file.
    """
    for kind in ("samples", *TABLE_KINDS):
        seen = shards.records | shards.others
        of = {table: found for table, found in seen.items() if table.split("/")[0] == kind}
        if kind in shards.counted:
            _create_counted(connection, store, kind, shards.counted[kind])
        elif any(of.values()):
            _create_view(connection, store, kind, of)
        else:
            create_empty(connection, kind, _empty(store, kind, asked=bool(of)))
    if shards.records.get("samples"):
        _apply_corrections(connection, store, shards.records["samples"])
    _create_saes(connection, store)
    create_labels(connection)


def _empty(store: Store, kind: str, *, asked: bool) -> pa.Schema:
    """Return the columns of a kind of table of which no row is needed; in no certain order if
    nobody asked for it."""
    if kind != "samples" or (one := store.any_record("samples")) is None:
        return EMPTY[kind]
    if not asked:
        return samples_schema(told_families(store))
    store.check([one])
    return read_schema(store.paths(one)[0])


def own_column(kind: str) -> list[str]:
    """Return the column that a view has besides those of its files."""
    column = OWN_COLUMN.get(kind, "sae")
    return [f"{column} varchar"] if column else []


def _create_counted(
    connection: duckdb.DuckDBPyConnection, store: Store, kind: str, rows: int
) -> None:
    """Create a view of so many rows, of which no column is read."""
    schema = planned_samples(told_families(store)) if kind == "samples" else EMPTY[kind]
    own = [f"null::varchar as {column.split()[0]}" for column in own_column(kind)]
    columns = [f"null::{_type(field)} as {quote_identifier(field.name)}" for field in schema]
    nulls = ", ".join([*own, *columns])
    connection.execute(f"create view {kind} as select {nulls} from range({rows})")


def _create_view(
    connection: duckdb.DuckDBPyConnection,
    store: Store,
    kind: str,
    tables: dict[str, list[Record]],
) -> None:
    column = OWN_COLUMN.get(kind, "sae")
    parts = []
    for table, records in tables.items():
        name = f"{quote_text(table.partition('/')[2])} as {column}, " if column else ""
        parts += [f"select {name}* from {files_of(store, records)}"] if records else []
    with opening(store, kind):
        connection.execute(f"create view {kind} as {' union all by name '.join(parts)}")


@contextmanager
def opening(store: Store, kind: str) -> Iterator[None]:
    """Turn what DuckDB says of a file that it cannot open into a DamageError that names the
    table."""
    try:
        yield
    except duckdb.InterruptException:
        raise
    except duckdb.Error as error:
        raise DamageError(
            f"{store.root}: table {kind} cannot be opened ({one_line(error)}). Run 'featurestore "
            f"verify {store.root}'."
        ) from error


def _apply_corrections(
    connection: duckdb.DuckDBPyConnection, store: Store, records: list[Record]
) -> None:
    """Give the view ``samples`` the labels that stand where ``labels`` has others (docs/format.md,
    section 1.1)."""
    corrected = store.corrected_labels()
    if corrected is None:
        return
    connection.register("corrected", corrected)
    connection.execute("create table corrected_labels as from corrected")
    connection.unregister("corrected")
    there = set(store.label_columns())
    families = [(quote_identifier(name), name in there) for name in corrected.column_names[1:]]
    stand = [
        f"if(c.sample_id is null, s.{name}, c.{name}) as {name}" for name, own in families if own
    ]
    columns = ["s.*" + (f" replace ({', '.join(stand)})" if stand else "")]
    columns += [f"c.{name}" for name, own in families if not own]
    connection.execute(
        f"create or replace view samples as select {', '.join(columns)} from "
        f"{files_of(store, records)} s "
        f"left join corrected_labels c on s.sample_id = c.sample_id"
    )


def files_of(store: Store, records: Iterable[Record]) -> str:
    """Return the files of some shards as SQL has them behind ``from``."""
    paths = ((store.root / entry.path).resolve() for record in records for entry in record.files)
    return (
        f"read_parquet([{', '.join(quote_text(str(path)) for path in paths)}], "
        f"hive_partitioning = false)"
    )


def create_empty(connection: duckdb.DuckDBPyConnection, kind: str, schema: pa.Schema) -> None:
    """Create a view's table without rows."""
    columns = ", ".join([*own_column(kind), *column_types(schema)])
    connection.execute(f"create table {kind} ({columns})")


def column_types(schema: pa.Schema) -> list[str]:
    """Return a table's columns as ``create table`` takes them."""
    return [f"{quote_identifier(field.name)} {_type(field)}" for field in schema]


def _type(field: pa.Field) -> str:
    if pa.types.is_struct(field.type):
        return _PICTURE
    return _NESTED.get(field.name) or _TYPES[str(field.type)]


def _create_saes(connection: duckdb.DuckDBPyConnection, store: Store) -> None:
    connection.execute(SAES)
    for record in store.records("saes"):
        config = load_config(store, record.shard)
        values = [record.shard, *(config[key] for key in ("hook", "io", "d_in", "n_latents", "k"))]
        values += [config["height"] * config["width"], sae_hash(record)]
        connection.execute("insert into saes values (?, ?, ?, ?, ?, ?, ?, ?)", values)


def create_labels(connection: duckdb.DuckDBPyConnection, *, labelled: bool = True) -> None:
    """Create ``labels``, one row a label, and, if ``labelled``, the tables with a column a
    family."""
    families = family_names(row[0] for row in connection.execute("describe samples").fetchall())
    names = [quote_identifier(family) for family in families]
    parts = [
        f"select sample_id, {quote_text(family)} as family, {name} as concept from samples where "
        f"{name} is not null"
        for family, name in zip(families, names, strict=True)
    ]
    none = "select sample_id, '' as family, '' as concept from samples where false"
    connection.execute(f"create view labels as {' union all '.join(parts) or none}")
    for kind in LABELLED if labelled else ():
        columns = ", ".join(["sample_id", *names])
        connection.execute(
            f"create view labelled_{kind} as select * from {kind} left join (select {columns} "
            f"from samples) using (sample_id)"
        )
