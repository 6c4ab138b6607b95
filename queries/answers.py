"""Ask a question of the library over a store: name its relations, bind its parameters, return its
answer."""

import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import pyarrow as pa

from featurestore.errors import QueryError, UsageError
from featurestore.format.records import Record
from featurestore.format.records.listing import one_state
from featurestore.quantiles import student_t
from featurestore.saes import load_config
from featurestore.store import Store
from featurestore.vocabulary import BY_FEATURE
from queries.derived.by_feature import find_by_feature
from queries.derived.scope import check_scored, encoded, labelled
from queries.derived.sums import (
    ALL_FEATURES,
    ALL_STEPS,
    DELTA,
    UNIT,
    Found,
    find_every_sums,
    find_sums,
)
from queries.engine import DuckDB, Engine, Relations
from queries.questions import MADE, Question, Value, find_question, whole_sql
from queries.questions import tables as tables_of

Answer = Callable[[str, Mapping[str, Value]], pa.Table]
"""answers a question, by name and complete values"""
LEVEL = 0.95
LOOKED = 16
"""features of a concept and step whose scores bound what step_candidates.sql looks for"""
ENOUGH_SAMPLES = 20
"""of a concept, below which intervals of scores are warned of: from there on simulated ones cover
94 to 95 of 100 if activations vary by no more than their mean, with fewer 88 to 99, and more of
them too few"""


def ask(
    store: Store, name: str, parameters: Mapping[str, Value] | None = None, *,
    other: Store | None = None, memory_limit: str | None = None, engine: Engine | None = None,
) -> pa.Table:  # fmt: skip
    """Return the answer to the question ``name``, its columns as ``questions.toml`` has them.

    ``other`` is the second store of ``compare_stores``. ``memory_limit``, such as ``"2GB"``: above
    it DuckDB spills to disk. ``engine``: :class:`queries.spark.Spark` instead of DuckDB. Questions
    about scores read the tables ``sums`` and ``totals``, which the first of them makes and keeps in
    the store.

    Raises:
        UsageError: a parameter is unknown, missing or of the wrong type.
        QueryError: no such question, family, concept or feature; or there is not enough memory.
        DamageError: a file is not what its record says.
    """
    asked, engine = find_question(name), engine or DuckDB(memory_limit)
    with one_state():
        values = complete(store, asked, asked.bind(parameters or {}), other)
        with opened(store, [name], values, other=other, engine=engine) as answer:
            return answer(name, values)


def ask_each(
    store: Store,
    name: str,
    parameters: Sequence[Mapping[str, Value]],
    *,
    engine: Engine | None = None,
) -> Iterator[pa.Table]:
    """Yield the answer to the question ``name`` for each of many values of its parameters, over one
    connection.

    Only parameters that decide no relation may differ: ``feature``, ``sample``, ``step``, ``top``
    and the like. Raises as :func:`ask`.
    """
    asked = find_question(name)
    every = [complete(store, asked, asked.bind(one), None) for one in parameters]
    fixed = ("sae", "other_sae", "branch", "family", "concept", "other_concept")
    if len({tuple(values.get(key) for key in fixed) for values in every}) > 1:
        raise UsageError(
            f"question {name!r}, asked many times at once: {', '.join(fixed)} must be the same."
        )
    if every:
        several = {"feature": None} if len({one.get("feature") for one in every}) > 1 else {}
        tops = [_int(one, "top") for one in every if one.get("top") is not None]
        most = {"top": max(tops)} if tops else {}
        with opened(
            store, [name], {**every[0], **several, **most}, engine=engine or DuckDB(None)
        ) as answer:
            yield from (answer(name, values) for values in every)


@contextmanager
def opened(
    store: Store, names: Sequence[str], values: Mapping[str, Value], *, engine: Engine,
    other: Store | None = None, found: Found | None = None, progress: bool = False,
) -> Iterator[Answer]:  # fmt: skip
    """Have what answers some questions, by name and complete values, for the time of the block.

    ``found``: what :func:`queries.derived.sums.find_sums` has found before, with sums. Raises as
    :func:`ask`.
    """
    for name in set(names) & set(engine.cannot):
        raise QueryError(
            f"question {name!r} cannot run on Spark: {engine.cannot[name]}. Ask it without "
            f"--engine spark."
        )
    wanted = {table for name in names for table in tables_of(find_question(name))}
    derived: dict[str, Sequence[Record]] = {}
    sae, branch, family = str(values["sae"]), str(values["branch"]), values.get("family")
    saes = [sae] if values.get("other_sae") is None else [sae, str(values["other_sae"])]
    for name in saes if family is None else saes[1:]:  # find_sums checks the one with a family
        check_scored(store, name, None, branch)
    made: dict[str, tuple[str, Mapping[str, Value]]] = {}
    if family is not None:
        make = engine.keeps and os.access(store.root, os.W_OK)
        scope, kept = found or find_sums(
            store, sae, str(family), branch, make=make and "sums" in wanted, progress=progress
        )
        for key in ("concept", "other_concept"):
            if values.get(key) is not None:
                scope.check_concept(str(values[key]))
        for kind in ("sums", "totals"):
            if kind in wanted and kept["totals"]:
                derived[kind] = kept[kind]
            elif kind in wanted:
                made[kind] = find_question(kind).sql, {**values, **ALL_STEPS}
                wanted |= set(find_question(kind).relations)
    if wanted & {*BY_FEATURE, "feature_sums"}:
        every = any(find_question(name).all_features for name in names)
        by_feature, missing = _by_feature(store, engine, wanted, values, every=every)
        derived |= by_feature
        made |= missing
        wanted |= {relation for kind in missing for relation in find_question(kind).relations}
    if family is None and not derived:  # what is derived is of an encoded branch
        for name in saes:
            encoded(store, name, branch)
    made |= {kind: (find_question(kind).sql, values) for kind in MADE if kind in wanted}
    tables = _tables(store, wanted, values)
    relations = Relations(store, frozenset(wanted), saes, branch, derived, made, tables, other)
    with engine.open(relations) as run:

        def answer(name: str, given: Mapping[str, Value]) -> pa.Table:
            asked = find_question(name)
            rows = run(whole_sql(asked), given)
            return rows.select(list(asked.columns)).cast(schema(asked))

        yield answer


def _by_feature(
    store: Store, engine: Engine, wanted: set[str], values: Mapping[str, Value], *, every: bool
) -> tuple[dict[str, Sequence[Record]], dict[str, tuple[str, Mapping[str, Value]]]]:
    """Return the tables by feature, and sums of all families, that are kept, and what makes the
    others for a question: of its feature alone, unless it needs ``every`` feature; then the tables
    are made at once, and kept."""
    sae, branch = str(values["sae"]), str(values["branch"])
    make = every and engine.keeps and os.access(store.root, os.W_OK)
    kept: dict[str, Sequence[Record]] = {}
    if wanted & set(BY_FEATURE):
        kept |= find_by_feature(store, sae, branch, make=make)
    if "feature_sums" in wanted and (sums := find_every_sums(store, sae, branch)):
        kept["feature_sums"] = sums
    kinds = sorted(wanted & {*BY_FEATURE, "feature_sums"})
    feature = None if every else values.get("feature")
    range_ = {} if feature is None else {"first_feature": feature, "last_feature": feature}
    given = {**values, **ALL_FEATURES, **range_}
    there = {kind: kept[kind] for kind in kinds if kind in kept}
    return there, {kind: (find_question(kind).sql, given) for kind in kinds if kind not in kept}


def schema(asked: Question) -> pa.Schema:
    """Return the Arrow schema of a question's answer."""
    return pa.schema(
        [pa.field(name, pa.type_for_alias(kind)) for name, kind in asked.columns.items()]
    )


def check_percentile(percentile: float) -> float:
    """Return a percentile of the latents' scores; raises UsageError where it leaves none, or
    all."""
    if not 0 < percentile < 100:
        raise UsageError(
            f"--percentile {percentile:g}: expected a number above 0 and below 100; nothing is "
            f"above the 100th."
        )
    return float(percentile)


def complete(
    store: Store, asked: Question, values: dict[str, Value], other: Store | None
) -> dict[str, Value]:
    """Return the values with those that the store and the SAE decide; refuse what does not
    exist."""
    if ("other_stats" in asked.relations) != (other is not None):
        what = "needs another store: --other STORE" if other is None else "takes no other store"
        raise UsageError(f"question {asked.name!r} {what}.")
    known = store.names("codes")
    values["sae"] = values["sae"] or _only(store, known, "sae", "SAE that it was encoded with")
    if "family" in values:
        values["family"] = values["family"] or _only(
            store, store.families(), "family", "concept family"
        )
    config = load_config(store, str(values["sae"]))
    n_latents, feature = config["n_latents"], values.get("feature")
    if isinstance(feature, int) and feature >= n_latents:
        raise QueryError(
            f"SAE {values['sae']!r} has the features 0 to {n_latents - 1}, not {feature}."
        )
    if (percentile := values.get("percentile")) is not None:
        check_percentile(float(percentile))
        values["top"] = None
    sizes = {
        "map_positions": config["height"] * config["width"],
        "map_width": config["width"],
        "n_latents": n_latents,
    }
    by_top = values.get("percentile") is None
    fixed = {
        "delta": DELTA,
        "unit": UNIT,
        "looked": LOOKED,
        "only_positive": by_top,
        "only_fired": asked.only_fired and by_top,
    }
    at = values.get("at_step")
    steps = ALL_STEPS if at is None else {"first_step": at, "last_step": at}
    return {"concept": None, **values, **sizes, **fixed, **steps, **ALL_FEATURES}


def _tables(store: Store, wanted: set[str], values: Mapping[str, Value]) -> dict[str, pa.Table]:
    """Return the relations that Python computes."""
    tables = {}
    if wanted & {"labelled", "resamples"}:
        sae, family, branch = (str(values[key]) for key in ("sae", "family", "branch"))
        tables["labelled"], _ = labelled(store, sae, family, branch)
    if "resamples" in wanted:
        pairs = list(
            zip(*(column.to_pylist() for column in tables["labelled"].columns), strict=True)
        )
        tables["resamples"] = resamples(pairs, _int(values, "replicates"), values)
    if "shuffled" in wanted:
        tables["shuffled"] = shuffled(_int(values, "n_latents"), _int(values, "random_seed"))
    return tables


def resamples(
    labelled: list[tuple[int, str]], replicates: int, values: Mapping[str, Value]
) -> pa.Table:
    """Return ``replicate, sample_id, weight, widening``: samples drawn with replacement within
    their concept.

    Zero weights are left out. ``widening`` is by how much replicates' standard deviation of the
    concept's samples has to be multiplied for half an interval: Student's t of n − 1 degrees of
    freedom, and √(n / (n − 1)), as n samples drawn from n vary less than n new ones (Hesterberg
    2015, section 3.2); null for a single sample, of which nothing is known. ``labelled`` are the
    samples and their concepts, ordered. The same for the same samples and ``random_seed``.

    Warns where the concept asked about has fewer than :data:`ENOUGH_SAMPLES`.
    """
    random = np.random.default_rng(_int(values, "random_seed"))
    level, asked = float(values.get("level", LEVEL) or 0), values.get("concept")
    parts = []
    for concept in sorted({concept for _, concept in labelled}):
        ids = np.array([sample_id for sample_id, other in labelled if other == concept], np.int64)
        n = len(ids)
        if concept == asked and n < ENOUGH_SAMPLES:
            warnings.warn(
                f"{n} samples of {concept!r} are few for an interval: with fewer than "
                f"{ENOUGH_SAMPLES} the true score is "
                f"outside of a 95 % interval in up to one of six cases. Collect more seeds or "
                f"prompts of it.",
                stacklevel=2,
            )
        weights = random.multinomial(n, np.full(n, 1 / n), size=replicates)
        replicate, sample = np.nonzero(weights)
        widening = student_t(level, n - 1) * math.sqrt(n / (n - 1)) if n > 1 else None
        columns = {
            "replicate": replicate,
            "sample_id": ids[sample],
            "weight": weights[replicate, sample],
        }
        parts.append(
            pa.table({**columns, "widening": pa.array([widening] * len(sample), pa.float64())})
        )
    return pa.concat_tables(parts)


def shuffled(n_latents: int, seed: int) -> pa.Table:
    """Return ``feature, place``: the latents in a random order that ``seed`` decides."""
    order = np.random.default_rng(seed).permutation(n_latents)
    return pa.table({"feature": order.astype(np.int32), "place": np.arange(n_latents)})


def _only(store: Store, names: list[str], parameter: str, what: str) -> str:
    if len(names) != 1:
        found = f"several, {', '.join(names)}: add -p {parameter}=…" if names else "none"
        raise QueryError(f"{store.root}: expected one {what}, found {found}.")
    return names[0]


def _int(values: Mapping[str, Value], name: str) -> int:
    value = values[name]
    assert isinstance(value, int)
    return value
