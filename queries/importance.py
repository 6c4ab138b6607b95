"""Scores and selections: the SQL of ``importance.sql`` and ``selection.sql`` over a store."""

import difflib
import re
from collections.abc import Sequence
from typing import Any

import duckdb
import pyarrow as pa

from featurestore.canonical import canonical_json, sha256_text
from featurestore.card import write_card
from featurestore.errors import QueryError, UsageError, nearest
from featurestore.records import Record
from featurestore.saes import load_config, sae_hash, sae_record
from featurestore.schemas import BRANCHES, SCORES
from featurestore.selection import METADATA_KEY, ROWS, Selection
from featurestore.store import Store
from queries.session import connect, question, quote_identifier

DELTA = 1e-8


def importance(store: Store, sae: str, family: str, branch: str = "cond") -> pa.Table:
    """Return the scores of all features for all concepts of a family (docs/format.md, section 1.5).

    Raises:
        QueryError: the family, the branch or the codes are not there, or the family has one concept only.
        SAEError: there is no such SAE.
    """
    with scored_session(store, sae, family, branch) as connection:
        table = connection.sql("select * from importance order by concept, step, feature").to_arrow_table()
    return table.cast(SCORES)


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
) -> list[Selection]:
    """Return the selections of several concepts (None: of all of the family, by name), scored once; see :func:`select`."""
    rule = _rule(top, percentile)
    config = load_config(store, sae)
    rows = {}
    with scored_session(store, sae, family, branch) as connection:
        found = connection.execute("select distinct concept from importance order by 1").fetchall()
        known = [name for (name,) in found]
        for concept in known if concepts is None else concepts:
            check_concept(known, store, family, concept)
            parameters = {"concept": concept, "n_latents": config["n_latents"], "top": None, "percentile": None, **rule}
            rows[concept] = connection.sql(question("selection"), params=parameters).to_arrow_table().cast(ROWS)
        steps = connection.execute(
            "select step, min(timestep) from codes where branch = $branch group by step order by step",
            {"branch": branch},
        ).fetchall()
    if [step for step, _ in steps] != list(range(len(steps))):
        raise QueryError(f"the codes of SAE {sae!r} in {store.root} do not hold every step from 0 to {steps[-1][0]}.")
    timesteps = tuple(timestep for _, timestep in steps)
    return [_selection(store, sae, family, concept, branch, rule, timesteps, rows[concept]) for concept in rows]


def _selection(
    store: Store,
    sae: str,
    family: str,
    concept: str,
    branch: str,
    rule: dict[str, float],
    timesteps: tuple[float, ...],
    rows: pa.Table,
) -> Selection:
    config, run = load_config(store, sae), store.run or {}
    return Selection(
        family=family,
        concept=concept,
        branch=branch,
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
        timesteps=timesteps,
        rows=rows.replace_schema_metadata(None),
    )


def save_scores(store: Store, sae: str, family: str, branch: str = "cond") -> pa.Table:
    """Compute the scores of a family and keep them in the table ``scores/<sae>``; return them.

    Scores of the same family and branch that were computed from other samples are removed first; the same scores again
    change nothing. Raises as :func:`importance`.
    """
    table, source = f"scores/{sae}", _source(store, sae)
    shard = f"{family}-{branch}-{sha256_text(canonical_json(source))[:16]}"
    scores = importance(store, sae, family, branch)
    for record in store.records(table):
        if record.shard.startswith(f"{family}-{branch}-") and record.shard != shard:
            store.remove(record)
    store.append(table, shard, scores, (), source)
    write_card(store)
    return scores


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
            raise UsageError(f"--percentile {percentile:g}: expected a number between 0 and 100.")
        return {"percentile": float(percentile)}
    if top is not None and top < 1:
        raise UsageError(f"--top {top}: at least 1 is needed.")
    return {"top": 2 if top is None else top}


def labelled_session(
    store: Store, saes: Sequence[str], family: str | None, branch: str, memory_limit: str | None = None
) -> duckdb.DuckDBPyConnection:
    """Return a connection over the codes of ``saes``, with the view ``labelled(sample_id, concept)`` of a family if one is named.

    Raises:
        QueryError: the family, the branch or the codes are not there, or the family has one concept only.
        SAEError: there is no such SAE.
    """
    for sae in saes:
        load_config(store, sae)
    if branch not in BRANCHES:
        raise QueryError(f"no branch {branch!r}: it is one of {', '.join(BRANCHES)}.")
    families = store.families()
    if family is not None and family not in families:
        known = nearest(family, families) or " Its prompts have no labels."
        raise QueryError(f"{store.root} has no concept family {family!r}.{known}")
    for sae in saes:
        check_encoded(store, sae)
    tables = [f"{kind}/{sae}" for sae in saes for kind in ("codes", "stats")]
    connection = connect(store, tables=["samples", *tables], memory_limit=memory_limit)
    try:
        for sae in saes:
            _check_branch(connection, sae, branch)
        if family is not None:
            column = quote_identifier(family)
            connection.execute(
                f"create view labelled as select sample_id, {column} as concept from samples where {column} is not null"
            )
            _check_concepts(connection, store, saes[0], family, branch)
    except BaseException:
        connection.close()
        raise
    return connection


def scored_session(
    store: Store, sae: str, family: str, branch: str, memory_limit: str | None = None
) -> duckdb.DuckDBPyConnection:
    """Return a connection with the view ``labelled`` and the table ``importance``; raises as :func:`importance`."""
    connection = labelled_session(store, [sae], family, branch, memory_limit)
    try:
        config = load_config(store, sae)
        parameters: dict[str, Any] = {"sae": sae, "branch": branch, "family": family, "delta": DELTA}
        parameters["map_positions"] = config["height"] * config["width"]
        connection.execute(f"create table importance as {question('importance')}", parameters)
    except BaseException:
        connection.close()
        raise
    return connection


def check_encoded(store: Store, sae: str) -> None:
    """Refuse an SAE without codes, and codes whose statistics are missing: their samples would count as silent."""
    codes, stats = ({record.shard for record in store.records(f"{kind}/{sae}")} for kind in ("codes", "stats"))
    run = f"run 'featurestore encode --store {store.root} --sae {sae}'"
    if not codes:
        raise QueryError(f"{store.root} has no codes of SAE {sae!r}: {run}.")
    if codes != stats:
        n = len(codes ^ stats)
        raise QueryError(
            f"encoding {store.root} with SAE {sae!r} was interrupted ({n} of its shards half done): {run}."
        )


def _check_branch(connection: duckdb.DuckDBPyConnection, sae: str, branch: str) -> None:
    branches = connection.execute("select distinct branch from codes where sae = ? order by 1", [sae]).fetchall()
    found = [name for (name,) in branches]
    if branch not in found:
        raise QueryError(f"SAE {sae!r} was encoded for branch {', '.join(found)}, not {branch}.")


def _check_concepts(connection: duckdb.DuckDBPyConnection, store: Store, sae: str, family: str, branch: str) -> None:
    concepts = connection.execute(
        "select distinct concept from labelled semi join "
        "(select sample_id from codes where sae = $sae and branch = $branch) using (sample_id)",
        {"sae": sae, "branch": branch},
    ).fetchall()
    if len(concepts) < 2:
        found = f"only {concepts[0][0]!r}" if concepts else "none"
        raise QueryError(
            f"family {family!r} of {store.root} needs at least two concepts among the encoded samples, found {found}."
        )


def check_concept(known: Sequence[str], store: Store, family: str, concept: str) -> None:
    """Refuse a concept that is not among the scored ones, naming those.

    Raises:
        QueryError: it is not.
    """
    if concept not in known:
        near = nearest(concept, difflib.get_close_matches(concept, known))
        raise QueryError(
            f"no encoded sample of {store.root} carries {family}={concept}.{near} Known: {', '.join(known)}."
        )


def _source(store: Store, sae: str) -> dict[str, Any]:
    """Return the hashes of all that scores are computed from."""
    tables = {"samples": "samples", "codes": f"codes/{sae}", "stats": f"stats/{sae}"}
    hashes = {key: [record.files[0].sha256 for record in store.records(table)] for key, table in tables.items()}
    return {"sae_hash": sae_hash(sae_record(store, sae)), **hashes}
