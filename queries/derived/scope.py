"""What a score is about: the concepts of a family, their encoded samples, the steps; read without
``codes``."""

import difflib
import json
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from featurestore.errors import DamageError, QueryError, nearest
from featurestore.format.records import Record
from featurestore.saes import load_config
from featurestore.store import Store
from featurestore.vocabulary import BRANCHES

Steps = dict[int, float]
"""step → timestep"""


@dataclass(frozen=True)
class Scope:
    """A family of a store, of which one branch was encoded with an SAE."""

    store: Store
    sae: str
    family: str
    branch: str
    concepts: tuple[str, ...]
    """those of at least one encoded sample, in the order of their UTF-8 bytes, as SQL has them"""
    steps: Steps
    """every encoded step, ascending"""
    n_latents: int
    n_positions: int

    def check_concept(self, concept: str) -> None:
        """Refuse a concept that no encoded sample carries, naming those that exist.

        Raises:
            QueryError: it is not among them.
        """
        if concept not in self.concepts:
            near = nearest(concept, difflib.get_close_matches(concept, self.concepts))
            where = f"no encoded sample of {self.store.root} carries {self.family}={concept}"
            raise QueryError(f"{where}.{near} Known: {', '.join(self.concepts)}.")


def find_scope(
    store: Store,
    sae: str,
    family: str,
    branch: str,
    *,
    known: tuple[list[str], Steps] | None = None,
) -> Scope:
    """Return what is to be scored; ``known`` are its concepts and steps where a derived table has
    kept them, after :func:`check_scored`.

    Raises:
        QueryError: the family, the branch or the codes are not there, or the family has one concept
            only.
        SAEError: there is no such SAE.
        DamageError: a file is not what its record says.
    """
    if known is None:
        check_scored(store, sae, family, branch)
        members, steps = labelled(store, sae, family, branch)
        known = sorted(members["concept"].unique().to_pylist(), key=str.encode), steps
    concepts, steps = known
    if len(concepts) < 2:
        what = f"only {concepts[0]!r}" if concepts else "none"
        raise QueryError(
            f"family {family!r} of {store.root} needs at least two concepts among the encoded "
            f"samples, found {what}."
        )
    config = load_config(store, sae)
    n_positions = config["height"] * config["width"]
    return Scope(
        store, sae, family, branch, tuple(concepts), steps, config["n_latents"], n_positions
    )


def labelled(store: Store, sae: str, family: str, branch: str) -> tuple[pa.Table, Steps]:
    """Return ``sample_id, concept`` of the encoded samples that carry a label of the family, by id,
    and the steps.

    Raises as :func:`encoded`.
    """
    ids, steps = encoded(store, sae, branch)
    rows = store.arrow("samples", ["sample_id", family]).drop_null().sort_by("sample_id")
    rows = rows.filter(pc.is_in(rows["sample_id"], pa.array(sorted(ids), pa.int64())))
    return pa.table({"sample_id": rows["sample_id"], "concept": rows[family]}), steps


def encoded(store: Store, sae: str, branch: str) -> tuple[set[int], Steps]:
    """Return the samples that are encoded for a branch, and its steps.

    Every ``stats`` shard says in its metadata which steps its samples have; where one does not,
    ``codes`` are read. The files of ``stats`` are not verified here: whoever reads their rows does.

    Raises:
        QueryError: the branch is not encoded.
        DamageError: a file cannot be opened.
    """
    records = store.require(f"stats/{sae}")
    told = [_told_steps(store, record) for record in records]
    if any(steps is None for steps in told):
        samples, steps = _from_codes(store, sae)
    else:
        samples, steps = {}, {}
        for record, mine in zip(records, told, strict=True):
            for name, pairs in (mine or {}).items():
                samples.setdefault(name, set()).update(record.sample_ids)
                steps.setdefault(name, {}).update(pairs)
    if branch not in samples:
        raise QueryError(
            f"SAE {sae!r} was encoded for branch {', '.join(sorted(samples))}, not {branch}."
        )
    return samples[branch], dict(sorted(steps[branch].items()))


def _told_steps(store: Store, record: Record) -> dict[str, Steps] | None:
    path = store.root / record.files[0].path
    try:
        metadata = pq.read_schema(path).metadata or {}
        told = json.loads(metadata.get(b"featurestore.steps", b"null"))
        return told and {
            branch: {int(step): float(timestep) for step, timestep in told[branch]}
            for branch in told
        }
    except (OSError, pa.ArrowException, ValueError) as error:
        raise DamageError(
            f"{path} cannot be opened ({str(error).splitlines()[0]}). Run 'featurestore verify "
            f"{store.root}'."
        ) from error


def _from_codes(store: Store, sae: str) -> tuple[dict[str, set[int]], dict[str, Steps]]:
    keys = store.arrow(f"codes/{sae}", ["sample_id", "branch", "step", "timestep"])
    samples: dict[str, set[int]] = {}
    steps: dict[str, Steps] = {}
    for row in keys.group_by(["branch", "sample_id"]).aggregate([]).to_pylist():
        samples.setdefault(row["branch"], set()).add(row["sample_id"])
    for row in keys.group_by(["branch", "step"]).aggregate([("timestep", "min")]).to_pylist():
        steps.setdefault(row["branch"], {})[row["step"]] = row["timestep_min"]
    return samples, steps


def check_scored(store: Store, sae: str, family: str | None, branch: str) -> None:
    """Refuse what the records alone show to be impossible.

    Raises:
        QueryError: the family, the branch or the codes are not there.
        SAEError: there is no such SAE.
    """
    load_config(store, sae)
    if branch not in BRANCHES:
        raise QueryError(f"no branch {branch!r}: it is one of {', '.join(BRANCHES)}.")
    families = [] if family is None else store.families()
    if family is not None and family not in families:
        known = nearest(family, families) or " Its prompts have no labels."
        raise QueryError(f"{store.root} has no concept family {family!r}.{known}")
    check_encoded(store, sae)


def check_encoded(store: Store, sae: str) -> None:
    """Refuse an SAE without codes, and codes whose statistics are missing: their samples would
    count as silent."""
    codes, stats = (store.shard_names(f"{kind}/{sae}") for kind in ("codes", "stats"))
    run = f"run 'featurestore encode --store {store.root} --sae {sae}'"
    if not codes:
        raise QueryError(f"{store.root} has no codes of SAE {sae!r}: {run}.")
    if codes != stats:
        n = len(codes ^ stats)
        raise QueryError(
            f"encoding {store.root} with SAE {sae!r} was interrupted ({n} of its shards half "
            f"done): {run}."
        )
