"""Scores of a family's concepts, kept in the store, and of features that were selected."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from featurestore.card import write_card
from featurestore.format.records import Record
from featurestore.format.schemas import SCORES
from featurestore.selection import Selection
from featurestore.store import Store
from queries.answers import ask, complete, opened
from queries.derived.sums import MEMORY, find_sums, remove_older, shard_name, source, windows
from queries.engine import DuckDB, Engine
from queries.questions import find_question

_ROWS_AT_ONCE = 2**22
"""scores on their way into the file, at most, unless those of a single step are more"""


def score(
    store: Store, sae: str, family: str, branch: str = "cond", *, top: int = 5,
    engine: Engine | None = None, progress: bool = False,
) -> tuple[Record, pa.Table]:  # fmt: skip
    """Compute the scores of a family (``importance.sql``) and keep them in the table
    ``scores/<sae>``.

    What was computed from other samples, labels or statistics is removed first; the same again
    changes nothing. ``engine``: :class:`queries.spark.Spark` instead of DuckDB.

    Returns the record of the shard, and the ``top`` features of each concept by mean score
    (``best_features.sql``).

    Raises:
        QueryError: the family, the branch or the codes are not there, or the family has one concept
            only.
        SAEError: there is no such SAE.
        DamageError: a file is not what its record says.
        DiskError: the operating system refused.
    """
    engine = engine or DuckDB(MEMORY)
    given = {"sae": sae, "family": family, "branch": branch}
    asked = find_question("importance")
    values = complete(store, asked, asked.bind(given), None)
    scope, _ = find_sums(store, sae, family, branch, make=False)
    made_by = source(store, sae)
    name = shard_name(made_by, family, branch)
    record = store.record(f"scores/{sae}", name)
    if record is None:
        remove_older(store, f"scores/{sae}", name, SCORES)
        with opened(store, ["importance"], values, engine=engine, progress=progress) as answer:

            def parts() -> Iterator[pa.Table]:
                for window in windows(scope, len(scope.concepts) * scope.n_latents, _ROWS_AT_ONCE):
                    yield answer("importance", {**values, **window}).cast(SCORES)

            record = store.append_parts(f"scores/{sae}", name, SCORES, parts(), made_by=made_by)
        write_card(store)
    return record, ask(store, "best_features", {**given, "top": top}, engine=engine)


def suspects(family: str, concept: str, selections: Sequence[Selection]) -> list[tuple[str, int]]:
    """Return the features of some selections, those that belong most to another concept first: by
    the sum of their scores for it at the steps at which they are selected
    (``feature_scores.sql``).

    A feature is ``(sae_hash, feature)``; scores are those of the store that its selection names.

    Raises:
        NotAStoreError: there is no such store.
        QueryError: the family or the concept is not there.
    """
    added: dict[tuple[str, int], float] = {}
    for sae_hash in dict.fromkeys(one.sae_hash for one in selections):
        own = [one for one in selections if one.sae_hash == sae_hash]
        taken = {
            pair
            for one in own
            for pair in zip(
                one.rows["step"].to_pylist(), one.rows["feature"].to_pylist(), strict=True
            )
        }
        asked = {
            "sae": own[0].sae,
            "branch": own[0].branch,
            "family": family,
            "concept": concept,
            "features": ",".join(map(str, sorted({feature for _, feature in taken}))),
        }
        for row in ask(Store.open(Path(own[0].store)), "feature_scores", asked).to_pylist():
            if (row["step"], row["feature"]) in taken:
                key = sae_hash, row["feature"]
                added[key] = added.get(key, 0.0) + row["score"]
    return sorted(added, key=lambda key: (-added[key], key))
