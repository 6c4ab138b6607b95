"""Selections: the features of concepts, step by step, by the rules of ``selection.sql``; kept in the store, named as files."""

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.card import write_card
from featurestore.errors import QueryError, UsageError
from featurestore.format.canonical import canonical_json, sha256_text
from featurestore.format.records import Record
from featurestore.format.schemas import SCORES
from featurestore.saes import load_config, sae_hash, sae_record
from featurestore.selection import Selection
from featurestore.selection_files import METADATA_KEY, ROWS
from featurestore.store import Store
from queries.importance import Scores, score_each
from queries.ranks import above, largest
from queries.scope import Scope
from queries.totals import find_scope


def select(
    store: Store,
    sae: str,
    family: str,
    concept: str,
    top: int | None = None,
    percentile: float | None = None,
    branch: str = "cond",
) -> Selection:
    """Select a concept's features at every step: the ``top`` n by score, or those above a percentile.

    Without either rule: the top 2.

    Raises:
        UsageError: both rules, or one out of range.
        QueryError: no encoded sample carries the concept; those that exist are named.
    """
    return select_all(store, sae, family, [concept], top, percentile, branch)[0]


def select_all(
    store: Store,
    sae: str,
    family: str,
    concepts: Sequence[str] | None = None,
    top: int | None = None,
    percentile: float | None = None,
    branch: str = "cond",
    progress: bool = False,
) -> list[Selection]:
    """Return the selections of several concepts (None: of all of the family, by name), scored once; see :func:`select`."""
    rule = _rule(top, percentile)
    scope, kept = find_scope(store, sae, family, branch)
    if list(scope.steps) != list(range(len(scope.steps))):
        raise QueryError(
            f"the codes of SAE {sae!r} in {store.root} do not hold every step from 0 to {max(scope.steps)}."
        )
    wanted = scope.concepts if concepts is None else list(dict.fromkeys(concepts))
    parts: dict[str, list[tuple[npt.NDArray, ...]]] = {concept: [] for concept in wanted}
    asked = None if concepts is None else wanted
    for concept, columns in score_each(
        scope, kept, lambda found: (found.concept, _chosen(found, rule)), asked, progress
    ):
        parts[concept].append(columns)
    return [_selection(scope, concept, rule, _rows(parts[concept])) for concept in wanted]


def _chosen(found: Scores, rule: dict[str, float]) -> tuple[npt.NDArray, ...]:
    """Return the columns of one step's rows."""
    chosen = largest(found.score, int(rule["top"])) if "top" in rule else above(found.score, rule["percentile"])
    step, timestep = np.full(len(chosen), found.step, np.int32), np.full(len(chosen), found.timestep, np.float32)
    numbers = (found.score, found.mean_concept, found.mean_other, found.mean_all)
    return step, timestep, chosen.astype(np.int32), *(array[chosen] for array in numbers)


def _rows(parts: list[tuple[npt.NDArray, ...]]) -> pa.Table:
    return pa.Table.from_arrays([pa.array(np.concatenate(column)) for column in zip(*parts, strict=True)], schema=ROWS)


def _selection(scope: Scope, concept: str, rule: dict[str, float], rows: pa.Table) -> Selection:
    store, sae = scope.store, scope.sae
    config, run = load_config(store, sae), store.run or {}
    return Selection(
        family=scope.family,
        concept=concept,
        branch=scope.branch,
        rule=rule,
        model=run["model"],
        model_hash=run["model_hash"],
        hook=config["hook"],
        io=config["io"],
        sae=sae,
        sae_hash=sae_hash(sae_record(store, sae)),
        d_in=config["d_in"],
        n_latents=config["n_latents"],
        k=config["k"],
        run=run,
        store=str(store.root.resolve()),
        timesteps=tuple(scope.steps.values()),
        rows=rows,
    )


def save_selection(store: Store, selection: Selection) -> Record:
    """Keep a selection in the table ``selections/<sae>`` of its store; the same selection again changes nothing."""
    rows = selection.rows
    same = {"family": selection.family, "concept": selection.concept, "branch": selection.branch}
    columns = {name: pa.array([value] * rows.num_rows, pa.string()) for name, value in same.items()}
    columns |= {name: rows[name].combine_chunks() for name in ROWS.names}
    header = canonical_json({**selection.header(), "store": "."})
    contents = canonical_json([header, rows.to_pylist()])
    shard = f"{_slug(selection)}-{sha256_text(contents)[:16]}"
    table = pa.Table.from_pydict(columns).select(SCORES.names).cast(SCORES)
    table = table.replace_schema_metadata({METADATA_KEY: header.encode()})
    kept = store.append(f"selections/{selection.sae}", shard, table, (), {"sae_hash": selection.sae_hash})
    write_card(store)
    return kept


def file_name(selection: Selection) -> str:
    """Return a name for a selection's file, without suffix: readable, and of its own for every concept."""
    return f"{_slug(selection)}-{sha256_text(selection.concept)[:8]}"


def _slug(selection: Selection) -> str:
    slug = re.sub(r"[^a-z0-9]+", "-", selection.concept.lower()).strip("-")[:40] or "concept"
    return f"{selection.family}-{slug}"


def split_concept(text: str) -> tuple[str, str]:
    """Return the family and the concept of ``family=concept``.

    Raises:
        UsageError: there is no ``=``.
    """
    family, equals, concept = text.partition("=")
    if not equals or not family or not concept:
        raise UsageError(f"--concept {text!r}: expected FAMILY=CONCEPT, such as style=neon.")
    return family, concept


def _rule(top: int | None, percentile: float | None) -> dict[str, float]:
    if top is not None and percentile is not None:
        raise UsageError("--top and --percentile: give one of them.")
    if percentile is not None:
        if not 0 < percentile < 100:
            raise UsageError(
                f"--percentile {percentile:g}: expected a number above 0 and below 100; nothing is above the 100th."
            )
        return {"percentile": float(percentile)}
    if top is not None and top < 1:
        raise UsageError(f"--top {top}: at least 1 is needed.")
    return {"top": 2 if top is None else top}
