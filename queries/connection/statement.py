"""One SELECT of a user over a store, which it can only read."""

import duckdb
import pyarrow as pa

from featurestore.errors import QueryError
from featurestore.store import Store
from featurestore.vocabulary import TABLE_KINDS
from queries.connection.pruning import (
    LABELLED,
    LATER,
    Needed,
    named,
    needed,
    planned_samples,
    told_families,
)
from queries.connection.reading import read_answer
from queries.connection.session import open_views
from queries.connection.sql_errors import explain
from queries.connection.text import quote_identifier, quote_text
from queries.connection.views import (
    EMPTY,
    SAES,
    column_types,
    create_empty,
    create_labels,
    own_column,
)


def sql(
    store: Store, statement: str, *, memory_limit: str | None = None, rows: int | None = None
) -> pa.Table:
    """Return the answer to one SELECT of a user over a store's views, which can read nothing else
    and change nothing.

    Only the shards that it can need, by what their records say, are verified, and only their files
    can be read; rows that are counted and nothing else are counted by the records. Columns of one
    name are told apart by a number. ``rows``: return the first ones only, and compute no more than
    they need.

    Raises:
        QueryError: the statement is not one SELECT, DuckDB refuses it, or its answer is too large.
        DamageError: a file is not what its record says.
    """
    shards = _needed(store, statement)
    store.check(record for of in shards.records.values() for record in of)
    with open_views(store, shards, memory_limit=memory_limit) as connection:
        try:
            _close_doors(connection, store, shards)
            relation = connection.sql(_checked(connection, statement))
            answer = read_answer(connection, relation, rows)
        except duckdb.Error as error:
            raise QueryError(explain(connection, statement, error)) from error
    return answer.rename_columns(_distinct(answer.column_names))


def _needed(store: Store, statement: str) -> Needed:
    """Return the shards that a statement can need."""
    families = told_families(store)
    with duckdb.connect(config={"threads": 1}) as planning:
        planning.execute(f"set disabled_optimizers = '{LATER}'")
        for kind in ("samples", *TABLE_KINDS):
            schema = planned_samples(families) if kind == "samples" else EMPTY[kind]
            create_empty(planning, kind, schema)
            if kind in LABELLED:
                labels = [f"{quote_identifier(family)} varchar" for family in families]
                columns = [*own_column(kind), *column_types(schema), *labels]
                planning.execute(f"create table labelled_{kind} ({', '.join(columns)})")
        create_labels(planning, labelled=False)
        planning.execute(SAES)
        _lock(planning)
        try:
            return needed(store, _checked(planning, statement).query, planning, families)
        except duckdb.Error:  # said of the statement itself, in a moment
            return named(store, statement)


def _checked(connection: duckdb.DuckDBPyConnection, statement: str) -> duckdb.Statement:
    """Return the one SELECT in ``statement``.

    To DuckDB's parser ``with x as (copy … to …) select …`` is a SELECT, and a path that may be read
    may be written. Its binder refuses whatever changes anything in the definition of a view, so the
    statement must pass as one first.
    """
    parsed = connection.extract_statements(statement)
    if len(parsed) != 1 or parsed[0].type != duckdb.StatementType.SELECT:
        kinds = ", ".join(s.type.name for s in parsed) or "nothing"
        raise QueryError(
            f"expected one SELECT, found {kinds}: a store is only read. Use 'featurestore export' "
            f"to write files."
        )
    connection.execute(f"create temp view checked as\n{parsed[0].query}")
    connection.execute("drop view temp.checked")
    return parsed[0]


def _close_doors(connection: duckdb.DuckDBPyConnection, store: Store, shards: Needed) -> None:
    records = (record for of in shards.records.values() for record in of)
    files = [str(path.resolve()) for record in records for path in store.paths(record)]
    connection.execute(f"set allowed_paths = [{', '.join(map(quote_text, files))}]")
    _lock(connection)


def _lock(connection: duckdb.DuckDBPyConnection) -> None:
    """Let a connection reach nothing outside that it was not allowed to, from now on."""
    connection.execute("set autoinstall_known_extensions = false")
    connection.execute("set enable_external_access = false")
    connection.execute("set lock_configuration = true")


def _distinct(names: list[str]) -> list[str]:
    """Return the names with ``_1``, ``_2``, … behind those that stood before."""
    result: list[str] = []
    for name in names:
        number, candidate = 0, name
        while candidate in result:
            number += 1
            candidate = f"{name}_{number}"
        result.append(candidate)
    return result
