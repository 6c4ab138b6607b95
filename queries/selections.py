"""Selections: the features of concepts, step by step, as ``selection.sql`` chooses them; kept in
the store, named as files."""

import itertools
import math
import re
from collections import Counter
from collections.abc import Collection, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from featurestore.card import write_card
from featurestore.errors import DamageError, QueryError, UsageError
from featurestore.format.canonical import canonical_json, sha256_text
from featurestore.format.records import Record
from featurestore.format.schemas import SCORES
from featurestore.saes import load_config, sae_hash, sae_record
from featurestore.selection import Selection
from featurestore.selection_files import METADATA_KEY, ROWS
from featurestore.store import Store
from queries.answers import Answer, check_percentile, complete, opened
from queries.derived.scope import Scope, find_scope
from queries.derived.sums import MEMORY, find_sums, windows
from queries.engine import DuckDB, Engine
from queries.questions import Value, find_question

_ROWS_AT_ONCE = 2**22
"""entries of the lists of largest scores that one statement makes, at most, unless it is about a
single step"""


def select(
    store: Store, sae: str, family: str, concept: str, *, top: int | None = None,
    percentile: float | None = None, branch: str = "cond", engine: Engine | None = None,
) -> Selection:  # fmt: skip
    """Select a concept's features at every step: the ``top`` n by score, or those above a
    percentile.

    Without either rule: the top 2. ``engine``: :class:`queries.spark.Spark` instead of DuckDB.

    Raises:
        UsageError: both rules, or one out of range.
        QueryError: no encoded sample carries the concept; those that exist are named.
    """
    one = [concept]
    return select_all(
        store, sae, family, one, top=top, percentile=percentile, branch=branch, engine=engine
    )[0]


def select_all(
    store: Store, sae: str, family: str, concepts: Sequence[str] | None = None, *,
    top: int | None = None, percentile: float | None = None, branch: str = "cond",
    engine: Engine | None = None, progress: bool = False,
) -> list[Selection]:  # fmt: skip
    """Return the selections of several concepts (None: of all of the family, by name), scored once;
    see :func:`select`."""
    rule = _rule(top, percentile)
    scope, kept = find_sums(store, sae, family, branch, make=False)
    if list(scope.steps) != list(range(len(scope.steps))):
        raise QueryError(
            f"the codes of SAE {sae!r} in {store.root} do not hold every step from 0 to "
            f"{max(scope.steps)}."
        )
    wanted = list(scope.concepts if concepts is None else dict.fromkeys(concepts))
    for concept in wanted:
        scope.check_concept(concept)
    asked = find_question("selection")
    bound = asked.bind(
        {"sae": sae, "family": family, "branch": branch, "concept": wanted[0], **rule}
    )
    values = complete(store, asked, bound, None)
    found = (scope, kept) if kept["sums"] else None
    with opened(
        store,
        ["selection"],
        values,
        engine=engine or DuckDB(MEMORY),
        found=found,
        progress=progress,
    ) as answer:
        rows = [
            _chosen(answer, scope, values, concept)
            for concept in (wanted if concepts is not None else [None])
        ]
    chosen = _by_concept(pa.concat_tables(rows))
    nothing = rows[0].slice(0, 0)
    return [_selection(scope, concept, rule, chosen.get(concept, nothing)) for concept in wanted]


def select_kept(
    store: Store, saes: Sequence[str], removed: Collection[tuple[str, str]], *,
    named: Sequence[tuple[str, str]] = (), top: int, together: bool = True,
) -> list[Selection]:  # fmt: skip
    """Select what concepts that are removed can be edited towards: of each family of theirs the
    concepts that are ``named``, or else the first that is kept, by each SAE.

    ``removed`` and ``named``: (family, concept). Not ``together``: each is removed by itself, and
    the first two of its family are selected, of which one is kept. Raises as :func:`select`.
    """
    kept = []
    for family in sorted({family for family, _ in removed}):
        for sae in saes:
            own = [concept for name, concept in named if name == family]
            known = find_scope(store, sae, family, "cond").concepts
            kept_too = [c for c in known if not (together and (family, c) in removed)]
            own = own or kept_too[: 1 if together else 2]
            kept += select_all(store, sae, family, own, top=top) if own else []
    return kept


def _chosen(
    answer: Answer, scope: Scope, values: dict[str, Value], concept: str | None
) -> pa.Table:
    """Return the rows of ``selection.sql`` for a concept (None: for all), a window of steps at a
    time.

    Scores that are not positive decide nothing if the percentile is positive. Where it may not be,
    as fewer features were chosen at some step than it leaves above itself, the concept is asked
    about again with all its scores.
    """
    if values["top"] is not None:
        values = {**values, "top": min(int(values["top"]), scope.n_latents)}
    top, rank = values["top"], float(values["percentile"] or 0) / 100 * (scope.n_latents - 1)
    n_best = scope.n_latents - math.floor(rank) if top is None else int(top)
    concepts = list(scope.concepts) if concept is None else [concept]
    parts = []
    for window in windows(scope, len(concepts) * n_best, _ROWS_AT_ONCE):
        given = {**values, **window, "concept": concept}
        rows = answer("selection", {**given, "only_positive": True, "only_fired": True})
        again = (
            _fewer(rows, scope, window, concepts, n=scope.n_latents - math.ceil(rank))
            if top is None
            else []
        )
        if again:
            whole = [
                answer(
                    "selection",
                    {**given, "concept": name, "only_positive": False, "only_fired": False},
                )
                for name in again
            ]
            rows = pa.concat_tables(
                [rows.filter(pc.invert(pc.is_in(rows["concept"], pa.array(again)))), *whole]
            )
        parts.append(rows)
    return pa.concat_tables(parts).sort_by(
        [
            ("concept", "ascending"),
            ("step", "ascending"),
            ("score", "descending"),
            ("feature", "ascending"),
        ]
    )


def _by_concept(rows: pa.Table) -> dict[str, pa.Table]:
    """Return the rows of each concept, where those of a concept stand together.

    Cut out by their numbers: comparing with a value of Python has pyarrow import pandas, which
    takes longer than all the rest, as do the groups of a table.
    """
    parts, first = {}, 0
    for concept, same in itertools.groupby(rows["concept"].to_pylist()):
        n = sum(1 for _ in same)
        parts[concept] = rows.slice(first, n)
        first += n
    return parts


def _fewer(
    rows: pa.Table, scope: Scope, window: dict[str, int], concepts: Sequence[str], *, n: int
) -> list[str]:
    """Return the concepts that have fewer than ``n`` rows at some step of a window."""
    found = Counter(zip(rows["concept"].to_pylist(), rows["step"].to_pylist(), strict=True))
    steps = [step for step in scope.steps if window["first_step"] <= step <= window["last_step"]]
    return [concept for concept in concepts if any(found[concept, step] < n for step in steps)]


def _selection(scope: Scope, concept: str, rule: dict[str, float], rows: pa.Table) -> Selection:
    store, sae = scope.store, scope.sae
    config, run = load_config(store, sae), store.run or {}
    if not {"model", "model_hash"} <= run.keys():
        raise DamageError(
            f"{store.root}: its run does not name the model and its weights (model, model_hash)."
        )
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
        rows=pa.Table.from_arrays(
            [rows[name].combine_chunks() for name in ROWS.names], schema=ROWS
        ),
    )


def save_selection(store: Store, selection: Selection) -> Record:
    """Keep a selection in the table ``selections/<sae>`` of its store; the same selection again
    changes nothing."""
    rows = selection.rows
    same = {"family": selection.family, "concept": selection.concept, "branch": selection.branch}
    columns = {name: pa.array([value] * rows.num_rows, pa.string()) for name, value in same.items()}
    columns |= {name: rows[name].combine_chunks() for name in ROWS.names}
    header = canonical_json({**selection.header(), "store": "."})
    contents = canonical_json([header, rows.to_pylist()])
    shard = f"{_slug(selection)}-{sha256_text(contents)[:16]}"
    table = pa.Table.from_pydict(columns).select(SCORES.names).cast(SCORES)
    table = table.replace_schema_metadata({METADATA_KEY: header.encode()})
    kept = store.append(
        f"selections/{selection.sae}", shard, table, (), made_by={"sae_hash": selection.sae_hash}
    )
    write_card(store)
    return kept


def file_name(selection: Selection) -> str:
    """Return a name for a selection's file, without suffix: readable, and of its own for every
    concept."""
    return f"{_slug(selection)}-{sha256_text(selection.concept)[:8]}"


def _slug(selection: Selection) -> str:
    slug = re.sub(r"[^a-z0-9]+", "-", selection.concept.lower()).strip("-")[:40] or "concept"
    return f"{selection.family}-{slug}"


def split_concept(text: str, option: str = "--concept") -> tuple[str, str]:
    """Return the family and the concept of ``family=concept``, which a user gave to ``option``.

    Raises:
        UsageError: there is no ``=``.
    """
    family, equals, concept = text.partition("=")
    if not equals or not family or not concept:
        raise UsageError(f"{option} {text!r}: expected FAMILY=CONCEPT, such as style=neon.")
    return family, concept


def _rule(top: int | None, percentile: float | None) -> dict[str, float]:
    if top is not None and percentile is not None:
        raise UsageError("--top and --percentile: give one of them.")
    if percentile is not None:
        return {"percentile": check_percentile(percentile)}
    if top is not None and top < 1:
        raise UsageError(f"--top {top}: at least 1 is needed.")
    return {"top": 2 if top is None else top}
