"""The derived tables ``candidates`` and ``step_candidates``: the sums of what scores best, made by
``best_sums.sql`` and ``best_step_sums.sql`` and kept as ``sums`` are.

They stand for the answers of ``candidates.sql`` and ``step_candidates.sql``, of which they are what
is best: to find it in them takes a fraction of the time, and finds the same.
"""

from collections.abc import Iterator

import pyarrow as pa

from featurestore.card import write_card
from featurestore.format.records import Record
from featurestore.format.schemas import SUMS, schema_id
from featurestore.store import Store
from featurestore.vocabulary import CANDIDATES
from queries.derived.by_feature import find_by_feature
from queries.derived.scope import labelled
from queries.derived.sums import (
    ALL_STEPS,
    DELTA,
    MEMORY,
    UNIT,
    Found,
    by_concept,
    find_sums,
    remove_older,
    scorable,
    shard_name,
    source,
    windows,
)
from queries.engine import DuckDB, Relations
from queries.questions import MADE, Value, find_question, tables, whole_sql

TOP = {"candidates": 32, "step_candidates": 10}
"""how many best features of a concept, or of a concept at a step, are kept; more are found anew"""
_QUESTIONS = {"candidates": "best_sums", "step_candidates": "best_step_sums"}
LOOKED = 16
"""features of a concept and step whose scores bound what step_candidates.sql looks for"""
_ROWS_AT_ONCE = 2**20
"""of an answer on its way into the file, at most, unless they are of a single step"""


def find_candidates(store: Store, found: Found, kind: str, *, make: bool = True) -> list[Record]:
    """Return the shard of one of the two tables: that of the present sums, or a new one; none where
    it, or the sums, are missing and not made.

    Raises:
        QueryError: the branch or the codes are not there.
        DamageError: a file is not what its record says.
        DiskError: the operating system refused.
    """
    scope, sums = found
    made_by = {**source(store, scope.sae), "top": TOP[kind]}
    name = shard_name(made_by, scope.family, scope.branch)
    table = f"{kind}/{scope.sae}"
    record = store.record(table, name)
    if record is not None and record.schema == schema_id(SUMS):
        return [record]
    if not make or not sums["totals"]:
        return []
    remove_older(store, table, name, SUMS)
    record = store.append_parts(table, name, SUMS, _rows(store, found, kind), made_by=made_by)
    write_card(store)
    return [record]


def keep_candidates(store: Store, sae: str) -> None:
    """Make both tables of every family and branch that can be scored; those that are there and up
    to date stay.

    Raises:
        DamageError: a file is not what its record says.
        DiskError: the operating system refused.
    """
    for family, branch in scorable(store, sae):
        found = find_sums(store, sae, family, branch)
        for kind in CANDIDATES:
            find_candidates(store, found, kind)


def _rows(store: Store, found: Found, kind: str) -> Iterator[pa.Table]:
    """Yield the rows of a table, a window of steps after another, in slices of whole concepts."""
    scope, sums = found
    asked, top = find_question(_QUESTIONS[kind]), TOP[kind]
    about = {"sae": scope.sae, "branch": scope.branch, "family": scope.family, "concept": None}
    numbers = {
        "map_positions": scope.n_positions,
        "delta": DELTA,
        "looked": LOOKED,
        "top": top,
        "unit": UNIT,
    }
    values: dict[str, Value] = {**about, **numbers, **ALL_STEPS}
    wanted = tables(asked)
    derived, computed = dict(sums), {}
    if "feature_samples" in wanted:
        derived |= {
            "feature_samples": find_by_feature(store, scope.sae, scope.branch)["feature_samples"]
        }
        computed["labelled"], _ = labelled(store, scope.sae, scope.family, scope.branch)
    made = {name: (whole_sql(find_question(name)), values) for name in MADE if name in wanted}
    relations = Relations(
        store, frozenset(wanted), [scope.sae], scope.branch, derived, made, computed
    )
    same = {"family": scope.family, "branch": scope.branch}
    with DuckDB(MEMORY).open(relations) as run:
        # A mean is over all steps; the best of a step are the same in any window.
        by_step = windows(scope, len(scope.concepts) * top, _ROWS_AT_ONCE)
        for window in [ALL_STEPS] if kind == "candidates" else by_step:
            rows = run(whole_sql(asked), {**values, **window})
            for name, value in same.items():
                rows = rows.append_column(name, pa.array([value] * rows.num_rows, pa.string()))
            yield from by_concept(rows.select(SUMS.names).cast(SUMS))
