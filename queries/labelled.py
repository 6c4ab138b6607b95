"""DuckDB connections with what the questions of the library need: labelled samples, scores."""

from collections.abc import Sequence

import duckdb

from featurestore.errors import QueryError
from featurestore.format.schemas import SCORES
from featurestore.store import Store
from queries.importance import score, tables
from queries.scope import check_concepts, check_scored
from queries.session import column_types, connect, quote_identifier
from queries.totals import find_scope


def labelled_session(
    store: Store, saes: Sequence[str], family: str | None, branch: str, memory_limit: str | None = None
) -> duckdb.DuckDBPyConnection:
    """Return a connection over the codes of ``saes``, with the view ``labelled(sample_id, concept)`` of a family if one is named.

    Raises:
        QueryError: the family, the branch or the codes are not there, or the family has one concept only.
        SAEError: there is no such SAE.
    """
    for sae in saes:
        check_scored(store, sae, family, branch)
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
            check_concepts(store, family, _concepts(connection, saes[0], branch))
    except BaseException:
        connection.close()
        raise
    return connection


def add_importance(
    connection: duckdb.DuckDBPyConnection,
    store: Store,
    sae: str,
    family: str,
    branch: str,
    concepts: Sequence[str] | None,
) -> None:
    """Create the table ``importance`` with the scores of some concepts of a family (None: all), a part at a time.

    Raises as :func:`queries.importance.importance`.
    """
    connection.execute(f"create table importance ({', '.join(column_types(SCORES))})")
    scope, kept = find_scope(store, sae, family, branch)
    for _, part in tables(scope, score(scope, kept, concepts)):
        connection.register("part", part)
        connection.execute("insert into importance from part")
        connection.unregister("part")


def _check_branch(connection: duckdb.DuckDBPyConnection, sae: str, branch: str) -> None:
    branches = connection.execute("select distinct branch from codes where sae = ? order by 1", [sae]).fetchall()
    found = [name for (name,) in branches]
    if branch not in found:
        raise QueryError(f"SAE {sae!r} was encoded for branch {', '.join(found)}, not {branch}.")


def _concepts(connection: duckdb.DuckDBPyConnection, sae: str, branch: str) -> list[str]:
    """Return the concepts that the view ``labelled`` has among the encoded samples."""
    concepts = connection.execute(
        "select distinct concept from labelled semi join "
        "(select sample_id from codes where sae = $sae and branch = $branch) using (sample_id)",
        {"sae": sae, "branch": branch},
    ).fetchall()
    return [name for (name,) in concepts]
