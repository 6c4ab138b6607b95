"""One SELECT of a user over a store, which it can only read."""

from collections.abc import Iterable

import duckdb
import pyarrow as pa

from featurestore.errors import QueryError
from featurestore.store import Store
from queries.session import connect, quote_text, verify_files
from queries.sql_errors import explain


def sql(
    store: Store, statement: str, *, memory_limit: str | None = None, rows: int | None = None
) -> pa.Table:
    """Return the answer to one SELECT of a user over a store's views; it can read nothing else and
    change nothing.

    Only the tables that the statement names are verified, and only their files can be read. Columns
    of one name are told apart by a number. ``rows``: return the first ones only, and compute no
    more than they need.

    Raises:
        QueryError: it is not one SELECT, or DuckDB refuses it.
        DamageError: a file is not what its record says.
    """
    words = statement.lower() + (" samples" if "label" in statement.lower() else "")
    named = [table for table in store.tables() if table.split("/")[0] in words]
    verify_files(store, named)
    with connect(store, verify=False, memory_limit=memory_limit) as connection:
        try:
            _close_doors(connection, store, named)
            relation = connection.sql(_checked(connection, statement))
            answer = (
                relation.to_arrow_table()
                if rows is None
                else _first(relation.to_arrow_reader(rows), rows)
            )
        except duckdb.Error as error:
            raise QueryError(explain(connection, statement, error)) from error
    return answer.rename_columns(_distinct(answer.column_names))


def _first(reader: pa.RecordBatchReader, rows: int) -> pa.Table:
    """Return the first rows of an answer that is computed as it is read."""
    parts, missing = [], rows
    while missing > 0 and (batch := next(reader, None)) is not None:
        parts.append(batch.slice(0, missing))
        missing -= parts[-1].num_rows
    return pa.Table.from_batches(parts, reader.schema)


def _checked(connection: duckdb.DuckDBPyConnection, statement: str) -> duckdb.Statement:
    """Return the one SELECT in ``statement``.

    To DuckDB's parser ``with x as (copy … to …) select …`` is a SELECT, and a path that may be read
    may be written. Its binder refuses whatever changes anything in the definition of a view: as
    that the statement must pass first.
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


def _close_doors(
    connection: duckdb.DuckDBPyConnection, store: Store, tables: Iterable[str]
) -> None:
    files = [str(path.resolve()) for table in tables for path in store.files(table)]
    connection.execute(f"set allowed_paths = [{', '.join(map(quote_text, files))}]")
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
