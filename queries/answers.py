"""Ask a question of the library over a store: name its relations, bind its parameters, return its answer."""

import math
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import duckdb
import numpy as np
import pyarrow as pa

from featurestore.errors import QueryError, UsageError
from featurestore.quantiles import student_t
from featurestore.saes import load_config
from featurestore.store import Store
from queries.importance import DELTA
from queries.labelled import add_importance, labelled_session
from queries.questions import Question, Value, find_question
from queries.session import add_other, one_line, open_database

LEVEL = 0.95
ENOUGH_SAMPLES = 20
"""of a concept, below which intervals of scores are warned of: from there on simulated ones cover 94 to 95 of 100 if activations
vary by no more than their mean, with fewer 88 to 99, and more of them too few"""
_SCORED = {"importance", "scored"}
_MADE = _SCORED | {"shuffled"}
"""relations that are not views of the store's files"""


def ask(
    store: Store, name: str, parameters: Mapping[str, Value] | None = None, *, other: Store | None = None,
    memory_limit: str | None = None,
) -> pa.Table:  # fmt: skip
    """Return the answer to the question ``name``, its columns as ``questions.toml`` has them.

    ``other`` is the second store of ``compare_stores``. ``memory_limit``, such as ``"2GB"``: above it DuckDB spills to disk.

    Raises:
        UsageError: a parameter is unknown, missing or of the wrong type.
        QueryError: no such question, family, concept or feature; or there is not enough memory.
        DamageError: a file is not what its record says.
    """
    asked = find_question(name)
    values = complete(store, asked, asked.bind(parameters or {}), other)
    with session(store, asked, values, other, memory_limit) as connection:
        try:
            answer = connection.sql(asked.sql, params=used(asked.sql, values)).to_arrow_table()
        except duckdb.Error as error:
            raise QueryError(one_line(error)) from error
    return answer.cast(schema(asked))


def schema(asked: Question) -> pa.Schema:
    """Return the Arrow schema of a question's answer."""
    return pa.schema([pa.field(name, pa.type_for_alias(kind)) for name, kind in asked.columns.items()])


def used(sql: str, values: Mapping[str, Value]) -> dict[str, Value]:
    """Return the values that a statement has parameters for."""
    code = "\n".join(line for line in sql.splitlines() if not line.lstrip().startswith("--"))
    return {name: values[name] for name in sorted(set(re.findall(r"\$(\w+)", code)))}


def complete(store: Store, asked: Question, values: dict[str, Value], other: Store | None) -> dict[str, Value]:
    """Return the values with those that the store and the SAE decide; refuse what does not exist."""
    if ("other_stats" in asked.relations) != (other is not None):
        what = "needs another store: --other STORE" if other is None else "takes no other store"
        raise UsageError(f"question {asked.name!r} {what}.")
    known = store.names("codes")
    values["sae"] = values["sae"] or _only(store, known, "sae", "SAE that it was encoded with")
    if "family" in values:
        values["family"] = values["family"] or _only(store, store.families(), "family", "concept family")
    config = load_config(store, str(values["sae"]))
    n_latents, feature = config["n_latents"], values.get("feature")
    if isinstance(feature, int) and feature >= n_latents:
        raise QueryError(f"SAE {values['sae']!r} has the features 0 to {n_latents - 1}, not {feature}.")
    if values.get("percentile") is not None:
        values["top"] = None
    sizes = {"map_positions": config["height"] * config["width"], "map_width": config["width"]}
    return {**values, **sizes, "n_latents": n_latents, "delta": DELTA}


@contextmanager
def session(
    store: Store, asked: Question, values: Mapping[str, Value], other: Store | None, memory_limit: str | None
) -> Iterator[duckdb.DuckDBPyConnection]:
    """Yield a connection with the question's relations."""
    sae, branch = str(values["sae"]), str(values["branch"])
    family = None if values.get("family") is None else str(values["family"])
    saes = [sae] if values.get("other_sae") is None else [sae, str(values["other_sae"])]
    files = set(asked.relations) - _MADE
    wanted = [str(values[name]) for name in ("concept", "other_concept") if name in values]
    with ExitStack() as stack:
        try:
            connection = stack.enter_context(
                labelled_session(store, saes, family, branch, memory_limit)
                if files
                else open_database(":memory:", memory_limit)
            )
            if _SCORED & set(asked.relations):
                add_importance(connection, store, sae, str(family), branch, list(dict.fromkeys(wanted)) or None)
        except duckdb.OutOfMemoryException as error:
            raise QueryError(one_line(error)) from error
        if "scored" in asked.relations:
            connection.execute("create view scored as from importance")
        if "resamples" in asked.relations:
            connection.register(
                "resamples", resamples(_encoded(connection, values), _int(values, "replicates"), values)
            )
        if "shuffled" in asked.relations:
            connection.register("shuffled", shuffled(_int(values, "n_latents"), _int(values, "random_seed")))
        if other is not None:
            add_other(connection, other, sae)
        yield connection


def resamples(labelled: list[tuple[int, str]], replicates: int, values: Mapping[str, Value]) -> pa.Table:
    """Return ``replicate, sample_id, weight, widening``: samples drawn with replacement within their concept.

    Zero weights are left out. ``widening`` is by how much replicates' standard deviation of the concept's samples has to be
    multiplied for half an interval: Student's t of n − 1 degrees of freedom, and √(n / (n − 1)), as n samples drawn from n
    vary less than n new ones (Hesterberg 2015, section 3.2); null for a single sample, of which nothing is known.
    ``labelled`` are the samples and their concepts, ordered. The same for the same samples and ``random_seed``.

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
                f"{n} samples of {concept!r} are few for an interval: with fewer than {ENOUGH_SAMPLES} the true score is "
                f"outside of a 95 % interval in up to one of six cases. Collect more seeds or prompts of it.",
                stacklevel=2,
            )
        weights = random.multinomial(n, np.full(n, 1 / n), size=replicates)
        replicate, sample = np.nonzero(weights)
        widening = student_t(level, n - 1) * math.sqrt(n / (n - 1)) if n > 1 else None
        columns = {"replicate": replicate, "sample_id": ids[sample], "weight": weights[replicate, sample]}
        parts.append(pa.table({**columns, "widening": pa.array([widening] * len(sample), pa.float64())}))
    return pa.concat_tables(parts)


def shuffled(n_latents: int, seed: int) -> pa.Table:
    """Return ``feature, place``: the latents in a random order that ``seed`` decides."""
    order = np.random.default_rng(seed).permutation(n_latents)
    return pa.table({"feature": order.astype(np.int32), "place": np.arange(n_latents)})


def _encoded(connection: duckdb.DuckDBPyConnection, values: Mapping[str, Value]) -> list[tuple[int, str]]:
    return connection.execute(
        "select sample_id, concept from labelled semi join "
        "(select sample_id from codes where sae = $sae and branch = $branch) using (sample_id) order by sample_id",
        {"sae": values["sae"], "branch": values["branch"]},
    ).fetchall()


def _only(store: Store, names: list[str], parameter: str, what: str) -> str:
    if len(names) != 1:
        found = f"several, {', '.join(names)}: add -p {parameter}=…" if names else "none"
        raise QueryError(f"{store.root}: expected one {what}, found {found}.")
    return names[0]


def _int(values: Mapping[str, Value], name: str) -> int:
    value = values[name]
    assert isinstance(value, int)
    return value
