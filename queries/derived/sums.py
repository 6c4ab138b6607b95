"""The derived tables ``sums`` and ``totals``: all that a score needs, made by ``sums.sql`` and
``totals.sql`` and kept."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from tqdm import tqdm

from featurestore.card import write_card
from featurestore.errors import DamageError, QueryError
from featurestore.format.canonical import canonical_json, sha256_text
from featurestore.format.footers import read_schema, reading
from featurestore.format.records import Record
from featurestore.format.schemas import SUMS, TOTALS, schema_id
from featurestore.saes import sae_hash, sae_record
from featurestore.store import Store
from featurestore.vocabulary import BRANCHES
from queries.connection.session import connect
from queries.connection.sql_errors import one_line
from queries.connection.text import quote_text, sql_text
from queries.derived.scope import Scope, Steps, check_scored, find_scope, labelled

UNIT = 2.0**72
"""sums are taken of whole multiples of 1/UNIT: exact for float32 down to 2^-48, and no order of
samples changes a bit"""
DELTA = 1e-8
ALL_STEPS = {"first_step": 0, "last_step": 2**31 - 1}
ALL_FEATURES = {"first_feature": -(2**31), "last_feature": 2**31 - 1}
"""those that the SAE does not have as well: they are damage, and must be seen"""
MEMORY = "1GB"
"""of DuckDB, for sums, scores and selections; with what is on its way into the files a process
stays below 2 GB"""
Found = tuple[Scope, dict[str, list[Record]]]
"""what is to be scored, and the shards of its ``sums`` and ``totals``, both without any where they
were not made"""
_GROUPS_AT_ONCE = 2**22
"""(concept, step, feature) of one window of steps, at most, unless the window is a single step: of
twice as many DuckDB ran out of its memory where all of them fire"""
_ROWS_PER_GROUP = 2**16
"""a row group of ``sums`` holds whole concepts, and as many as make this many rows"""
SHOWN_ROWS = 50_000_000
"""of statistics, from which on it is shown how far the making of a table is"""
_COUNTS, _STEPS = b"featurestore.counts", b"featurestore.steps"
"""schema metadata of totals: ``[concept, encoded samples]`` and ``[step, timestep]``, each a JSON
list in order"""


def find_sums(
    store: Store, sae: str, family: str, branch: str, *, make: bool = True, progress: bool = False
) -> Found:
    """Return what is to be scored, and the shards of its ``sums`` and ``totals``: those of the
    present samples, or new ones.

    ``make``: whether they are made where they are missing; without it both lists are then empty.

    Raises:
        QueryError: the family, the branch or the codes are not there, or the family has one concept
            only.
        SAEError: there is no such SAE.
        DamageError: a file is not what its record says.
        DiskError: the operating system refused.
    """
    check_scored(store, sae, family, branch)
    made_by = source(store, sae)
    name = shard_name(made_by, family, branch)
    record = store.record(f"totals/{sae}", name)
    sums = _shards(store, sae, name)
    if not sums or (record is not None and record.schema != schema_id(TOTALS)):
        record = None
    scope = find_scope(
        store, sae, family, branch, known=None if record is None else _known(store, record)
    )
    if record is None and make:
        record, sums = _make(scope, made_by, name, progress), _shards(store, sae, name)
    if record is None:
        return scope, {"sums": [], "totals": []}
    return scope, {"sums": sums, "totals": [record]}


def find_every_sums(store: Store, sae: str, branch: str) -> list[Record]:
    """Return the shards of the sums of all families of the present samples, if those of every
    family are kept; else none."""
    made_by, found = source(store, sae), list[Record]()
    for family in store.families():
        name = shard_name(made_by, family, branch)
        totals = store.record(f"totals/{sae}", name)
        if totals is None or totals.schema != schema_id(TOTALS):
            return []
        found += _shards(store, sae, name)
    return found


def keep_sums(store: Store, sae: str, progress: bool = False) -> None:
    """Make the sums and totals of every family and branch; those that are there and up to date
    stay.

    They are not made of what cannot be scored: samples without labels, a branch that is not
    encoded, a family with fewer than two concepts among the encoded samples.

    Raises:
        DamageError: a file is not what its record says.
        DiskError: the operating system refused.
    """
    for family, branch in scorable(store, sae):
        find_sums(store, sae, family, branch, progress=progress)


def scorable(store: Store, sae: str) -> Iterator[tuple[str, str]]:
    """Yield each family and branch that an SAE's features can be scored for."""
    for family in store.families() if store.records("samples") else []:
        for branch in BRANCHES:
            try:
                find_scope(store, sae, family, branch)
            except QueryError:
                continue
            yield family, branch


def source(store: Store, sae: str, *, labelled: bool = True) -> dict[str, Any]:
    """Return the hashes of all that sums and scores are computed from; not ``labelled``: of what
    is computed from the codes and statistics alone."""
    tables = {"codes": f"codes/{sae}", "stats": f"stats/{sae}"}
    if labelled:
        tables = {"samples": "samples", **tables}
    hashes = {
        key: [record.files[0].sha256 for record in store.records(table)]
        for key, table in tables.items()
    }
    relabelled = [record.files[0].sha256 for record in store.records("labels")] if labelled else []
    return {
        "sae_hash": sae_hash(sae_record(store, sae)),
        **hashes,
        **({"labels": relabelled} if relabelled else {}),
    }


def shard_name(made_by: dict[str, Any], *about: str) -> str:
    """Return the name of the shard that holds what is derived from a :func:`source`, about a
    family and a branch."""
    return "-".join([*about, sha256_text(canonical_json(made_by))[:16]])


def remove_older(store: Store, table: str, name: str, schema: pa.Schema) -> None:
    """Remove the shards of a derived table that hold the same family and branch of another
    :func:`source`, or other columns."""
    same = name.rpartition("-")[0] + "-"
    for record in store.records(table):
        older = record.shard.startswith(same) and not record.shard.startswith(name)
        if older or record.schema != schema_id(schema):
            store.remove(record)


def windows(scope: Scope, rows_per_step: int, rows: int) -> Iterator[dict[str, int]]:
    """Yield ``first_step`` and ``last_step`` of consecutive steps that have at most so many rows
    together."""
    steps = list(scope.steps)
    size = _steps_within(rows, rows_per_step)
    for first in range(0, len(steps), size):
        yield {"first_step": steps[first], "last_step": steps[min(first + size, len(steps)) - 1]}


def _steps_within(rows: int, rows_per_step: int) -> int:
    """Return how many steps have at most so many rows together: one at least."""
    return max(1, rows // max(1, rows_per_step))


def _shards(store: Store, sae: str, name: str) -> list[Record]:
    return [record for record in store.records(f"sums/{sae}") if record.shard.startswith(name)]


def _known(store: Store, record: Record) -> tuple[list[str], Steps]:
    """Return the concepts and steps that kept totals are of."""
    store.check([record])
    path = store.root / record.files[0].path
    with reading(path):
        metadata = read_schema(path).metadata
        counts, steps = json.loads(metadata[_COUNTS]), json.loads(metadata[_STEPS])
        return [concept for concept, _ in counts], {
            int(step): float(timestep) for step, timestep in steps
        }


def _make(scope: Scope, made_by: dict[str, Any], name: str, progress: bool) -> Record:
    """Commit the sums, a window of steps a shard, and last the totals: they are there only when all
    sums are."""
    store, sae = scope.store, scope.sae
    remove_older(store, f"totals/{sae}", name, TOTALS)
    remove_older(store, f"sums/{sae}", name, SUMS)
    members, _ = labelled(store, sae, scope.family, scope.branch)
    values = {
        "sae": sae,
        "branch": scope.branch,
        "family": scope.family,
        "map_positions": scope.n_positions,
        "unit": UNIT,
    }
    totals = []
    n_rows = sum(record.rows for record in store.records(f"stats/{sae}"))
    quiet = None if progress and n_rows >= SHOWN_ROWS else True
    with (
        connect(store, tables=[f"stats/{sae}"], memory_limit=MEMORY) as connection,
        tqdm(
            total=len(scope.steps), desc=f"sums of {scope.family}", unit=" steps", disable=quiet
        ) as bar,
    ):
        connection.register("labelled", members)
        for steps, sums, part in _by_window(connection, scope, values):
            check_features(store, sae, scope.n_latents, part["feature"])
            totals.append(part)
            shard = f"{name}-{steps[0]:05d}"
            store.append_parts(f"sums/{sae}", shard, SUMS, by_concept(sums), made_by=made_by)
            bar.update(len(steps))
    counts = sorted(
        members["concept"].value_counts().to_pylist(), key=lambda row: row["values"].encode()
    )
    told = {_COUNTS: canonical_json([[row["values"], row["counts"]] for row in counts])}
    told[_STEPS] = canonical_json(list(scope.steps.items()))
    record = store.append_parts(
        f"totals/{sae}", name, TOTALS.with_metadata(told), totals, made_by=made_by
    )
    write_card(store)
    return record


def _by_window(
    connection: duckdb.DuckDBPyConnection, scope: Scope, values: Mapping[str, Any]
) -> Iterator[tuple[list[int], pa.Table, pa.Table]]:
    """Yield consecutive steps, as many as memory allows, and their rows of ``sums`` and of
    ``totals``.

    How many groups fit into memory depends on how many rows each is made of, so windows become
    smaller where one did not.

    Raises:
        QueryError: not even one step did.
    """
    waiting = [*scope.steps]
    at_once = _steps_within(_GROUPS_AT_ONCE, len(scope.concepts) * scope.n_latents)
    while waiting:
        steps = waiting[:at_once]
        window = {**values, "first_step": steps[0], "last_step": steps[-1]}
        try:
            sums, part = _window(connection, window)
        except duckdb.OutOfMemoryException as error:
            if len(steps) == 1:
                raise QueryError(one_line(error)) from error
            at_once = len(steps) // 2
        except duckdb.Error as error:
            raise QueryError(one_line(error)) from error
        else:
            yield steps, sums, part
            waiting = waiting[at_once:]


def _window(
    connection: duckdb.DuckDBPyConnection, values: Mapping[str, Any]
) -> tuple[pa.Table, pa.Table]:
    """Return the rows of ``sums`` and of ``totals`` of a window of steps; raises duckdb.Error."""

    def rows(name: str, schema: pa.Schema) -> pa.Table:
        text = sql_text(name)
        used = {key: value for key, value in values.items() if f"${key}" in text}
        return connection.sql(text, params=used).to_arrow_table().cast(schema)

    sums = rows("sums", SUMS)
    connection.register("window", sums)
    sae = quote_text(values["sae"])
    connection.execute(f'create or replace temp view sums as select {sae} as sae, * from "window"')
    return sums, rows("totals", TOTALS)


def by_concept(sums: pa.Table) -> Iterator[pa.Table]:
    """Yield the rows, which are ordered by concept, in slices of whole concepts."""
    concept = sums["concept"].combine_chunks().dictionary_encode().indices.to_numpy()
    starts = [*(np.flatnonzero(concept[1:] != concept[:-1]) + 1).tolist(), len(concept)]
    first = 0
    for end in starts:
        if end - first >= _ROWS_PER_GROUP or end == len(concept):
            yield sums.slice(first, end - first)
            first = end


def check_features(store: Store, sae: str, n_latents: int, features: pa.ChunkedArray) -> None:
    """Refuse statistics of features that the SAE does not have; raises DamageError."""
    feature = features.to_numpy()
    if len(feature) and not 0 <= feature.min() <= feature.max() < n_latents:
        where = f"{store.root}/stats/{sae}/"
        raise DamageError(
            f"{where} holds features outside 0…{n_latents - 1}. Run 'featurestore verify --deep'."
        )
