"""Ask a question of the library over a store: complete its parameters, return its answer."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import pyarrow as pa

from featurestore.errors import QueryError, UsageError
from featurestore.format.records.listing import one_state
from featurestore.saes import load_config
from featurestore.store import Store
from queries.derived.candidates import LOOKED
from queries.derived.sums import ALL_FEATURES, ALL_STEPS, DELTA, UNIT, Found
from queries.engine import DuckDB, Engine
from queries.questions import Question, Value, find_question, whole, whole_sql
from queries.relations.finding import find_relations

Answer = Callable[[str, Mapping[str, Value]], pa.Table]
"""answers a question, by name and complete values"""


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
        tops = [whole(one, "top") for one in every if one.get("top") is not None]
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
    relations = find_relations(
        store, names, values, engine=engine, other=other, found=found, progress=progress
    )
    with engine.open(relations) as run:

        def answer(name: str, given: Mapping[str, Value]) -> pa.Table:
            asked = find_question(name)
            rows = run(whole_sql(asked), given)
            return rows.select(list(asked.columns)).cast(schema(asked))

        yield answer


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


def _only(store: Store, names: list[str], parameter: str, what: str) -> str:
    if len(names) != 1:
        found = f"several, {', '.join(names)}: add -p {parameter}=…" if names else "none"
        raise QueryError(f"{store.root}: expected one {what}, found {found}.")
    return names[0]
