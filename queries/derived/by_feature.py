"""The derived tables ``feature_masks``, ``feature_samples`` and ``feature_steps``: statistics that
are ordered by feature, made by the SQL files of their names and kept as ``sums`` are."""

import contextlib
from collections.abc import Generator, Iterator, Mapping
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from tqdm import tqdm

from featurestore.card import write_card
from featurestore.errors import QueryError
from featurestore.format.records import Record
from featurestore.format.schemas import FEATURE_MASKS, FEATURE_SAMPLES, FEATURE_STEPS, schema_id
from featurestore.saes import load_config
from featurestore.store import Store
from featurestore.vocabulary import BRANCHES, BY_FEATURE
from queries.connection.session import connect
from queries.connection.sql_errors import one_line
from queries.connection.text import sql_text
from queries.derived.scope import check_scored, encoded
from queries.derived.sums import (
    ALL_FEATURES,
    MEMORY,
    SHOWN_ROWS,
    UNIT,
    check_features,
    remove_older,
    shard_name,
    source,
)

SCHEMAS = dict(zip(BY_FEATURE, (FEATURE_MASKS, FEATURE_SAMPLES, FEATURE_STEPS), strict=True))
_ROWS_PER_GROUP = 2**16
"""a row group holds whole features, and as many as make this many rows"""
_ROWS_AT_ONCE = 2**20
"""of an answer on its way into the file"""


def find_by_feature(
    store: Store, sae: str, branch: str, *, make: bool = True, progress: bool = False
) -> dict[str, list[Record]]:
    """Return the shards of the three tables: those of the present statistics, or new ones.

    ``make``: whether missing tables are made; without, the answer is then empty.

    Raises:
        QueryError: the branch or the codes are not there.
        SAEError: there is no such SAE.
        DamageError: a file is not what its record says.
        DiskError: the operating system refused.
    """
    made_by = source(store, sae, labelled=False)
    name = shard_name(made_by, branch)
    found = {kind: store.record(f"{kind}/{sae}", name) for kind in BY_FEATURE}
    there = {
        kind: [record]
        for kind, record in found.items()
        if record is not None and record.schema == schema_id(SCHEMAS[kind])
    }
    if len(there) == len(BY_FEATURE):
        return there
    if not make:
        return {}
    return _make(store, sae, branch, made_by=made_by, name=name, progress=progress)


def keep_by_feature(store: Store, sae: str, progress: bool = False) -> None:
    """Make the tables of every branch that is encoded; those that are there and up to date stay.

    Raises:
        DamageError: a file is not what its record says.
        DiskError: the operating system refused.
    """
    for branch in BRANCHES:
        try:
            encoded(store, sae, branch)
        except QueryError:
            continue
        find_by_feature(store, sae, branch, progress=progress)


def _make(
    store: Store, sae: str, branch: str, *, made_by: dict[str, Any], name: str, progress: bool
) -> dict[str, list[Record]]:
    check_scored(store, sae, None, branch)
    encoded(store, sae, branch)
    for kind, schema in SCHEMAS.items():
        remove_older(store, f"{kind}/{sae}", name, schema)
    values = {"sae": sae, "branch": branch, "unit": UNIT, **ALL_FEATURES}
    n_latents = load_config(store, sae)["n_latents"]
    n_rows = sum(record.rows for record in store.records(f"stats/{sae}"))
    quiet = None if progress and n_rows >= SHOWN_ROWS else True
    made = {}
    with connect(store, tables=[f"stats/{sae}"], memory_limit=MEMORY) as connection:
        for kind in tqdm(BY_FEATURE, desc="by feature", unit=" tables", disable=quiet):
            with contextlib.closing(_rows(connection, kind, values)) as rows:
                parts = _checked(store, sae, n_latents, rows)
                made[kind] = [
                    store.append_parts(f"{kind}/{sae}", name, SCHEMAS[kind], parts, made_by=made_by)
                ]
    write_card(store)
    return made


def _rows(
    connection: duckdb.DuckDBPyConnection, kind: str, values: Mapping[str, Any]
) -> Generator[pa.Table, None, None]:
    """Yield the rows of a table, which are ordered by feature, in slices of whole features."""
    text = sql_text(kind)
    used = {key: value for key, value in values.items() if f"${key}" in text}
    waiting = SCHEMAS[kind].empty_table()
    try:
        reader = connection.sql(text, params=used).to_arrow_reader(_ROWS_AT_ONCE)
        for batch in reader:
            rows = pa.Table.from_batches([batch]).cast(SCHEMAS[kind])
            waiting = pa.concat_tables([waiting, rows])
            ends = _ends(waiting["feature"].to_numpy())
            for first, end in zip([0, *ends], ends, strict=False):
                yield waiting.slice(first, end - first)
            waiting = waiting.slice(ends[-1] if ends else 0)
    except duckdb.Error as error:
        raise QueryError(one_line(error)) from error
    if waiting.num_rows:
        yield waiting


def _checked(
    store: Store, sae: str, n_latents: int, parts: Iterator[pa.Table]
) -> Iterator[pa.Table]:
    for part in parts:
        check_features(store, sae, n_latents, part["feature"])
        yield part


def _ends(feature: np.ndarray) -> list[int]:
    """Return where slices of whole features end; the last feature may have more rows to come."""
    ends: list[int] = []
    last = int(np.searchsorted(feature, feature[-1]))
    while last - (first := ends[-1] if ends else 0) >= _ROWS_PER_GROUP:
        chosen = feature[first + _ROWS_PER_GROUP - 1]
        ends.append(int(np.searchsorted(feature, chosen, side="right")))
    return ends
