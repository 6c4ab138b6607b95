"""Which shards a statement can need, by what the records say: no other is hashed or opened.

DuckDB itself tells: the statement is planned over empty tables of the same columns, and of each
scan its filters are taken and put to the values that the records have. A filter that cannot be
read so, or a record that says nothing, keeps its shard.
"""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import duckdb
import pyarrow as pa

from featurestore.format.contents import Value
from featurestore.format.records import Record
from featurestore.format.records.labels import label_version
from featurestore.format.schemas import samples_schema
from featurestore.store import Store
from featurestore.vocabulary import STARTS, TABLE_KINDS

LABELLED = ("activations", "codes", "stats")
"""the tables that have views with a column per concept family"""
OWN_COLUMN = {"samples": "", "activations": "hook", "attention": "hook"}
"""kind of table → the column that its view has besides those of its files; of others it is
``sae``"""
_OPTIONAL = "optional: "
LATER = "statistics_propagation, empty_result_pullup"
"""what DuckDB concludes from tables being empty, which these are not"""


class Needed(NamedTuple):
    """What a statement can need of a store."""

    records: dict[str, list[Record]]
    """table → its shards that may hold rows that are asked for"""
    counted: dict[str, int]
    """kind of table → its rows, where nothing but their number is asked for"""
    others: dict[str, list[Record]]
    """table → its shards, which the statement may name in a way that nobody sees: not to be read"""


class Scan(NamedTuple):
    """A place of a plan where a table is read."""

    table: str
    filters: list[str]
    """conditions in SQL, all of which hold for the rows that matter"""
    only_rows: bool
    """whether no column is read"""


def named(store: Store, statement: str) -> Needed:
    """Return the shards of every table whose kind a statement names."""
    kinds = named_kinds(statement)
    records = {table: store.records(table) for table in store.tables()}
    chosen = {table: found for table, found in records.items() if table.split("/")[0] in kinds}
    others = {table: found for table, found in records.items() if table not in chosen}
    return Needed(chosen, {}, others)


def named_kinds(statement: str) -> set[str]:
    """Return the kinds of table whose names stand in a statement."""
    words = statement.lower() + (" samples" if "label" in statement.lower() else "")
    return {kind for kind in ("samples", *TABLE_KINDS) if kind in words}


def needed(
    store: Store, statement: str, planning: duckdb.DuckDBPyConnection, families: list[str]
) -> Needed:
    """Return the shards that a statement can need; ``planning`` holds its empty tables.

    Raises:
        duckdb.Error: DuckDB refuses the statement.
    """
    (_, plan) = planning.execute(f"explain (format json) {statement}").fetchall()[0]
    scans = [scan for root in json.loads(plan) for scan in _scans(root)]
    kinds = {kind for scan in scans for kind in _kinds(scan.table)}
    tables = [table for table in store.tables() if table.split("/")[0] in kinds]
    everything = {table: store.records(table) for table in tables}
    corrected = {i for record in store.records("labels") for i in record.sample_ids}
    choice = _Choice(planning, everything, families, corrected)
    found = {table: choice.shards(table, scans) for table in everything}
    counted = {}
    for kind in ("samples", *TABLE_KINDS):
        of = [scan for scan in scans if kind in _kinds(scan.table)]
        if of and all(scan.only_rows and scan.table == kind for scan in of):
            tables = [table for table in everything if table.split("/")[0] == kind]
            counted[kind] = sum(r.rows for table in tables for r in everything[table])
            found.update((table, []) for table in tables)
    return Needed(found, counted, {})


def planned_samples(families: list[str]) -> pa.Schema:
    """Return all columns that samples can have."""
    return samples_schema(families, True, STARTS)


def told_families(store: Store) -> list[str]:
    """Return the concept families of a store in no certain order, by the records alone where they
    tell them; raises DamageError."""
    one = store.any_record("samples")
    if one is None or one.contents is None:
        return store.families() if one is not None else []
    later = {family for record in store.records("labels") for family in label_version(record)[1]}
    return sorted({*one.contents.holds, *later})


def _scans(node: dict[str, Any]) -> Iterator[Scan]:
    about = node.get("extra_info", {})
    if "Table" in about:
        filters = about.get("Filters") or []
        filters = [filters] if isinstance(filters, str) else filters
        # A text over several lines is cut at them: then nothing of it can be trusted.
        if any(text.count("'") % 2 for text in filters):
            filters = []
        plain = not about.get("Filters") and "Sample Method" not in about
        only_rows = plain and not about.get("Projections", "?")
        yield Scan(about["Table"].rpartition(".")[2], filters, only_rows)
    for child in node.get("children", ()):
        yield from _scans(child)


def _kinds(table: str) -> tuple[str, ...]:
    """Return the kinds of table behind a table of the plan."""
    kind = table.removeprefix("labelled_")
    return (kind,) if kind == table else (kind, "samples")


class _Choice:
    """The shards of a store's tables that scans with filters can need."""

    def __init__(
        self,
        planning: duckdb.DuckDBPyConnection,
        records: dict[str, list[Record]],
        families: list[str],
        corrected: set[int],
    ) -> None:
        self._planning, self._records = planning, records
        self._families, self._corrected = families, corrected
        self._answers: dict[tuple[str, str], set[Value] | None] = {}

    def shards(self, table: str, scans: list[Scan]) -> list[Record]:
        """Return those of a table that any of the scans can need, in their order."""
        kind = table.split("/")[0]
        of = [scan for scan in scans if kind in _kinds(scan.table)]
        if any(not scan.filters for scan in of):
            return self._records[table]
        kept: set[str] = set()
        for scan in of:
            kept |= {r.shard for r in self._of_scan(table, scan)}
        return [record for record in self._records[table] if record.shard in kept]

    def _of_scan(self, table: str, scan: Scan) -> list[Record]:
        kind, _, name = table.partition("/")
        constant = OWN_COLUMN.get(kind, "sae")
        labelled = scan.table != kind
        records = self._records[table]
        for text in scan.filters:
            if constant and self._holds(text, constant, [name]) == set():
                return []
            records = self._by_sample(records, text)
            if kind == "samples":
                records = self._by_label(records, text, joined=labelled)
            else:
                for column in ("step", "branch", "family", "concept"):
                    records = self._by_value(records, text, column)
        if labelled and kind != "samples":
            records = self._by_samples_labels(records, scan)
        return records

    def _holds(self, text: str, column: str, values: list[Any]) -> set[Value] | None:
        """Return those of the values for which a condition on that column holds; None if it is on
        another."""
        kind = pa.int64() if column in ("sample_id", "step") else pa.string()
        typed = "bigint" if column == "sample_id" else "integer" if column == "step" else "varchar"
        self._planning.register("told", pa.table({"value": pa.array(values, kind)}))
        name = '"' + column.replace('"', '""') + '"'
        try:
            found = self._planning.execute(
                f"select distinct {name} from (select value::{typed} as {name} from told) "
                f"where {text.removeprefix(_OPTIONAL)}"
            ).fetchall()
        except duckdb.Error:
            return None
        return {value for (value,) in found}

    def _by_sample(self, records: list[Record], text: str) -> list[Record]:
        if "sample_id" not in text:
            return records
        ids = self._holds(text, "sample_id", [i for r in records for i in r.sample_ids])
        if ids is None:
            return records
        return [r for r in records if not r.sample_ids or not ids.isdisjoint(r.sample_ids)]

    def _by_value(
        self, records: list[Record], text: str, column: str, *, null: bool = False
    ) -> list[Record]:
        """Return the records that may hold a row whose value in ``column`` meets a condition.

        ``null``: where null meets it, all.
        """
        if column not in text:
            return records
        told = {r.shard: r.contents.holds.get(column) for r in records if r.contents is not None}
        values = {value for held in told.values() for value in held or ()}
        met = self._holds(text, column, [*values, None] if null else list(values))
        if met is None or (null and None in met):
            return records
        return [
            r for r in records if (held := told.get(r.shard)) is None or not met.isdisjoint(held)
        ]

    def _by_label(self, records: list[Record], text: str, *, joined: bool) -> list[Record]:
        """Return the shards of samples that may hold one whose label meets a condition.

        A label that was corrected is not told by the samples' record. ``joined``: their columns
        are null where there is no sample.
        """
        for family in self._families:
            kept = {r.shard for r in self._by_value(records, text, family, null=joined)}
            records = [
                r
                for r in records
                if r.shard in kept or not self._corrected.isdisjoint(r.sample_ids)
            ]
        return records

    def _by_samples_labels(self, records: list[Record], scan: Scan) -> list[Record]:
        """Return the shards that have a sample whose labels may meet a scan's conditions."""
        samples = self._records.get("samples", [])
        chosen = samples
        for text in scan.filters:
            chosen = self._by_label(chosen, text, joined=True)
        if len(chosen) == len(samples):
            return records
        ids = {i for record in chosen for i in record.sample_ids}
        return [r for r in records if not ids.isdisjoint(r.sample_ids)]
