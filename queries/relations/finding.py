"""What a question reads: which tables are kept, which are made before it, and which Python
computes."""

import os
from collections.abc import Mapping, Sequence

import pyarrow as pa

from featurestore.errors import QueryError
from featurestore.format.records import Record
from featurestore.store import Store
from featurestore.vocabulary import BY_FEATURE, CANDIDATES
from queries.derived.by_feature import find_by_feature
from queries.derived.candidates import TOP, find_candidates
from queries.derived.scope import check_scored, encoded, labelled
from queries.derived.sums import (
    ALL_FEATURES,
    ALL_STEPS,
    Found,
    find_every_sums,
    find_sums,
)
from queries.engine import Engine, Relations
from queries.questions import (
    MADE,
    Question,
    Value,
    find_question,
    tables,
    whole,
    whole_sql,
)
from queries.relations.drawn import resamples, shuffled

Kept = dict[str, Sequence[Record]]
Made = dict[str, tuple[str, Mapping[str, Value]]]


def find_relations(
    store: Store, names: Sequence[str], values: Mapping[str, Value], *, engine: Engine,
    other: Store | None = None, found: Found | None = None, progress: bool = False,
) -> Relations:  # fmt: skip
    """Return what some questions read, given their complete values; tables that are derived from
    statistics are made first where they are missing and may be kept.

    ``found``: what :func:`queries.derived.sums.find_sums` has found before, with sums. Raises as
    :func:`queries.ask`.
    """
    for name in set(names) & set(engine.cannot):
        raise QueryError(
            f"question {name!r} cannot run on Spark: {engine.cannot[name]}. Ask it without "
            f"--engine spark."
        )
    asked = [find_question(name) for name in names]
    sae, branch, family = str(values["sae"]), str(values["branch"]), values.get("family")
    saes = [sae] if values.get("other_sae") is None else [sae, str(values["other_sae"])]
    for name in saes if family is None else saes[1:]:  # find_sums checks the one with a family
        check_scored(store, name, None, branch)
    keeps = engine.keeps and os.access(store.root, os.W_OK)
    derived, made = Kept(), Made()
    if family is not None:
        make = keeps and "sums" in _tables_of(asked)
        found = found or find_sums(store, sae, str(family), branch, make=make, progress=progress)
        derived, made = _of_family(store, found, asked, values, keeps=keeps)
    wanted = _tables_of(asked, derived) | _relations_of(made)
    if wanted & {*BY_FEATURE, "feature_sums"}:
        every = any(one.all_features for one in asked)
        kept, missing = _by_feature(store, wanted, values, every=every, keeps=keeps)
        derived |= kept
        made |= missing
        wanted |= _relations_of(missing)
    if family is None and not derived:  # what is derived is of an encoded branch
        for name in saes:
            encoded(store, name, branch)
    made |= {
        kind: (whole_sql(find_question(kind)), values)
        for kind in MADE
        if kind in wanted and kind not in derived
    }
    computed = _computed(store, wanted, values)
    return Relations(store, frozenset(wanted), saes, branch, derived, made, computed, other)


def _tables_of(asked: Sequence[Question], kept: Kept | None = None) -> set[str]:
    return {table for one in asked for table in tables(one, kept or ())}


def _relations_of(made: Made) -> set[str]:
    return {relation for kind in made for relation in find_question(kind).relations}


def _of_family(
    store: Store,
    found: Found,
    asked: Sequence[Question],
    values: Mapping[str, Value],
    *,
    keeps: bool,
) -> tuple[Kept, Made]:
    """Return what of sums, totals and candidates is kept, and what makes the others; refuse a
    concept that the family does not have."""
    for key in ("concept", "other_concept"):
        if values.get(key) is not None:
            found[0].check_concept(str(values[key]))
    derived = _candidates(store, found, _tables_of(asked), values, make=keeps)
    kept, made = _sums(found, _tables_of(asked, derived), values)
    return {**derived, **kept}, made


def _candidates(
    store: Store, found: Found, wanted: set[str], values: Mapping[str, Value], *, make: bool
) -> Kept:
    """Return the candidates that are kept, or made now, for so many best as are asked for; not made
    for a single concept, whose own are found sooner."""
    top, make = values.get("top"), make and values.get("concept") is None
    kinds = [
        kind for kind in CANDIDATES if kind in wanted and isinstance(top, int) and top <= TOP[kind]
    ]
    records = {kind: find_candidates(store, found, kind, make=make) for kind in kinds}
    return {kind: kept for kind, kept in records.items() if kept}


def _sums(found: Found, wanted: set[str], values: Mapping[str, Value]) -> tuple[Kept, Made]:
    """Return sums and totals, where they are kept, and what makes them where they are not."""
    kinds = [kind for kind in ("sums", "totals") if kind in wanted]
    if found[1]["totals"]:
        return {kind: found[1][kind] for kind in kinds}, {}
    kinds = ["sums", "totals"] if "totals" in kinds else kinds
    return {}, {kind: (find_question(kind).sql, {**values, **ALL_STEPS}) for kind in kinds}


def _by_feature(
    store: Store, wanted: set[str], values: Mapping[str, Value], *, every: bool, keeps: bool
) -> tuple[Kept, Made]:
    """Return the tables by feature, and sums of all families, that are kept, and what makes the
    others for a question: of its feature alone, unless it needs ``every`` feature; then the tables
    are made at once, and kept."""
    sae, branch = str(values["sae"]), str(values["branch"])
    kept: Kept = {}
    if wanted & set(BY_FEATURE):
        kept |= find_by_feature(store, sae, branch, make=every and keeps)
    if "feature_sums" in wanted and (sums := find_every_sums(store, sae, branch)):
        kept["feature_sums"] = sums
    kinds = sorted(wanted & {*BY_FEATURE, "feature_sums"})
    feature = None if every else values.get("feature")
    range_ = {} if feature is None else {"first_feature": feature, "last_feature": feature}
    given = {**values, **ALL_FEATURES, **range_}
    there = {kind: kept[kind] for kind in kinds if kind in kept}
    return there, {kind: (find_question(kind).sql, given) for kind in kinds if kind not in kept}


def _computed(store: Store, wanted: set[str], values: Mapping[str, Value]) -> dict[str, pa.Table]:
    """Return the relations that Python computes."""
    tables = {}
    if wanted & {"labelled", "resamples"}:
        sae, family, branch = (str(values[key]) for key in ("sae", "family", "branch"))
        tables["labelled"], _ = labelled(store, sae, family, branch)
    if "resamples" in wanted:
        pairs = list(
            zip(*(column.to_pylist() for column in tables["labelled"].columns), strict=True)
        )
        tables["resamples"] = resamples(pairs, whole(values, "replicates"), values)
    if "shuffled" in wanted:
        tables["shuffled"] = shuffled(whole(values, "n_latents"), whole(values, "random_seed"))
    return tables
