"""Sums over all samples of a family, kept in the store: with them a concept's scores need the concept's own samples only."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.card import write_card
from featurestore.errors import QueryError
from featurestore.format.canonical import canonical_json, sha256_text
from featurestore.format.footers import read_table
from featurestore.format.records import Record
from featurestore.format.schemas import BRANCHES, TOTALS
from featurestore.saes import load_config, sae_hash, sae_record
from featurestore.store import Store
from queries.scope import Scope, Steps, check_concepts, check_scored, encoded, labels
from queries.sums import STEPS_AT_ONCE, THREADS, concept_sums, windows

COUNTS, STEPS = b"featurestore.counts", b"featurestore.steps"
"""schema metadata of kept totals: ``[concept, encoded samples]`` and ``[step, timestep]``, each a JSON list in order"""


class Totals(NamedTuple):
    """What the scores of every concept need, ``[step, latent]``."""

    total: npt.NDArray[np.float64]
    """sum over the labelled samples and their positions"""
    mean_all: npt.NDArray[np.float64]
    """μ(i, t, D): mean over concepts of their means"""


def find_scope(store: Store, sae: str, family: str, branch: str) -> tuple[Scope, Record | None]:
    """Return what is to be scored, and the record of its kept totals if they are of the present samples and statistics.

    Raises:
        QueryError: the family, the branch or the codes are not there, or the family has one concept only.
        SAEError: there is no such SAE.
        DamageError: a file is not what its record says.
    """
    check_scored(store, sae, family, branch)
    config, (ids, named) = load_config(store, sae), labels(store, family)
    record = store.record(f"totals/{sae}", shard_name(source(store, sae), family, branch))
    counts, steps = _counted(store, record) if record else _count(store, sae, branch, ids.tolist(), named)
    check_concepts(store, family, list(counts))
    numbers = {name: number for number, name in enumerate(counts)}
    places = np.array([numbers.get(name, -1) for name in named], np.int64)
    scope = Scope(
        store, sae, family, branch, tuple(counts), tuple(counts.values()), steps, ids, places,
        config["n_latents"], config["height"] * config["width"],
    )  # fmt: skip
    return scope, record


def _count(store: Store, sae: str, branch: str, ids: list[int], named: list[str]) -> tuple[dict[str, int], Steps]:
    """Return how many encoded samples carry each concept, in the order of their UTF-8 bytes, and the encoded steps."""
    sample_ids, steps = encoded(store, sae, branch)
    counts = Counter(name for i, name in zip(ids, named, strict=True) if i in sample_ids)
    return {name: counts[name] for name in sorted(counts, key=str.encode)}, steps


def _counted(store: Store, record: Record) -> tuple[dict[str, int], Steps]:
    """Return the same as kept totals have it."""
    store.check([record])
    metadata = pq.read_schema(store.root / record.files[0].path).metadata
    counts, steps = json.loads(metadata[COUNTS]), json.loads(metadata[STEPS])
    return dict(counts), {int(step): float(timestep) for step, timestep in steps}


def source(store: Store, sae: str) -> dict[str, Any]:
    """Return the hashes of all that scores are computed from."""
    tables = {"samples": "samples", "codes": f"codes/{sae}", "stats": f"stats/{sae}"}
    hashes = {key: [record.files[0].sha256 for record in store.records(table)] for key, table in tables.items()}
    relabelled = [record.files[0].sha256 for record in store.records("labels")]
    return {"sae_hash": sae_hash(sae_record(store, sae)), **hashes, **({"labels": relabelled} if relabelled else {})}


def shard_name(made_by: dict[str, Any], family: str, branch: str) -> str:
    """Return the name of the shard that holds what is derived from a :func:`source`."""
    return f"{family}-{branch}-{sha256_text(canonical_json(made_by))[:16]}"


def totals(scope: Scope, sums: npt.NDArray[np.float64]) -> Totals:
    """Return the totals of a window from the sums of all concepts ``[concept, step, latent]``, added in their order."""
    found = Totals(np.zeros(sums.shape[1:]), np.zeros(sums.shape[1:]))

    def add(first: int) -> None:
        part = slice(first, first + STEPS_AT_ONCE)
        total, mean_all = found.total[part], found.mean_all[part]
        for mine, n in zip(sums[:, part], scope.counts, strict=True):
            total += mine
            mean = mine / n
            mean /= scope.n_positions
            mean_all += mean
        mean_all /= len(scope.concepts)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(add, range(0, sums.shape[1], STEPS_AT_ONCE)))
    return found


def read_totals(scope: Scope, record: Record) -> Totals:
    """Return kept totals of all steps; raises DamageError."""
    scope.store.check([record])
    columns = ["step", "feature", "total", "mean_all"]
    table = read_table(scope.store.root / record.files[0].path, columns)
    step, feature, total, mean_all = (table[name].to_numpy() for name in columns)
    row = np.searchsorted(list(scope.steps), step)
    kept = Totals(*(np.zeros((len(scope.steps), scope.n_latents)) for _ in range(2)))
    kept.total[row, feature], kept.mean_all[row, feature] = total, mean_all
    return kept


def keep_totals(store: Store, sae: str, progress: bool = False) -> list[Record]:
    """Keep the totals of every family and branch in ``totals/<sae>``; those that are there and up to date stay.

    What cannot be scored has none: samples without labels, a branch that is not encoded, a family with fewer than two concepts
    among the encoded samples.
    Returns the records.

    Raises:
        DamageError: a file is not what its record says.
        DiskError: the operating system refused.
    """
    kept = []
    for family in store.families() if store.records("samples") else []:
        for branch in BRANCHES:
            try:
                scope, record = find_scope(store, sae, family, branch)
            except QueryError:
                continue
            kept.append(record or append_totals(scope, list(_all_totals(scope, progress))))
    write_card(store)
    return kept


def append_totals(scope: Scope, parts: list[tuple[range, Totals]]) -> Record:
    """Commit the totals of all windows in place of any older ones of the family and branch."""
    counts = list(zip(scope.concepts, scope.counts, strict=True))
    metadata = {COUNTS: canonical_json(counts), STEPS: canonical_json(list(scope.steps.items()))}
    return append_derived(scope, "totals", TOTALS.with_metadata(metadata), (_table(scope, *part) for part in parts))


def append_derived(scope: Scope, kind: str, schema: pa.Schema, parts: Iterable[pa.Table]) -> Record:
    """Commit what was computed from a scope, in place of what is there of its family and branch (docs/format.md, 1.5)."""
    store, table = scope.store, f"{kind}/{scope.sae}"
    made_by = source(store, scope.sae)
    shard = shard_name(made_by, scope.family, scope.branch)
    for record in store.records(table):
        if record.shard.startswith(f"{scope.family}-{scope.branch}-") and record.shard != shard:
            store.remove(record)
    return store.append_parts(table, shard, schema, parts, made_by)


def _all_totals(scope: Scope, progress: bool) -> Iterator[tuple[range, Totals]]:
    every = range(len(scope.concepts))
    for window in windows(scope, len(every)):
        yield window, totals(scope, concept_sums(scope, every, window, progress))


def _table(scope: Scope, window: range, part: Totals) -> pa.Table:
    row, feature = np.nonzero(part.total)
    numbers, timesteps = (
        np.array(list(x))[window.start : window.stop][row] for x in (scope.steps, scope.steps.values())
    )
    columns = [pa.repeat(text, len(row)) for text in (scope.family, scope.branch)]
    columns += [pa.array(numbers, pa.int32()), pa.array(timesteps, pa.float32()), pa.array(feature, pa.int32())]
    columns += [pa.array(part.total[row, feature]), pa.array(part.mean_all[row, feature])]
    return pa.Table.from_arrays(columns, schema=TOTALS)
