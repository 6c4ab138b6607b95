"""A DuckDB connection over a store's committed, verified files."""

import os
import platform
import re
import secrets
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import duckdb

from featurestore.errors import QueryError, UsageError
from featurestore.store import Store
from queries.connection.pruning import Needed
from queries.connection.sql_errors import one_line
from queries.connection.text import quote_text
from queries.connection.views import create_views, files_of

SPILL_PREFIX = f"featurestore-spill-{re.sub(r'[^A-Za-z0-9]', '', platform.node())}-"
"""of the directories that queries spill into, before the number of their process"""
_opened: ContextVar[Callable[[duckdb.DuckDBPyConnection], None] | None] = ContextVar(
    "opened", default=None
)


@contextmanager
def watched(tell: Callable[[duckdb.DuckDBPyConnection], None]) -> Iterator[None]:
    """Call ``tell`` with every connection that this thread opens in the block, so that another
    thread can interrupt it."""
    before = _opened.set(tell)
    try:
        yield
    finally:
        _opened.reset(before)


def connect(
    store: Store,
    *,
    tables: Iterable[str] | None = None,
    verify: bool = True,
    memory_limit: str | None = None,
    database: str | Path = ":memory:",
) -> duckdb.DuckDBPyConnection:
    """Return a DuckDB connection, in memory or to a new ``database``, with views over the store;
    the caller closes it.

    ``samples``; ``activations`` with a column ``hook``; ``codes``, ``stats``, ``sums``, ``totals``,
    ``scores`` and ``selections`` with a column ``sae``; ``saes``;
    ``labels(sample_id, family, concept)``; and ``labelled_activations``, ``labelled_codes`` and
    ``labelled_stats``, each with one column more a concept family. Only committed files are seen,
    of ``tables`` (such as ``stats/neon``) if that is given; a view without files is empty.
    ``verify`` compares each file's SHA-256 with its record, once in a process: DuckDB reads a
    damaged file without noticing. Above ``memory_limit``, such as ``"2GB"``, a query spills to the
    system's temporary directory. A result is an Arrow table by ``.to_arrow_table()``, Polars by
    ``.pl()``, pandas by ``.df()``.

    Raises:
        UsageError: the memory limit is not a size.
        DamageError: a file is not what its record says; the first five such files are named.
    """
    seen = [table for table in store.tables() if tables is None or table in set(tables)]
    records = {table: store.records(table) for table in seen}
    if verify:
        store.check(record for of in records.values() for record in of)
    return open_views(store, Needed(records, {}, {}), memory_limit=memory_limit, database=database)


def open_views(
    store: Store,
    shards: Needed,
    *,
    memory_limit: str | None,
    database: str | Path = ":memory:",
) -> duckdb.DuckDBPyConnection:
    """Return a connection with the views of :func:`connect` over some shards, which nothing
    verifies."""
    connection = open_database(database, memory_limit)
    try:
        connection.execute("set python_enable_replacements = false")
        create_views(connection, store, shards)
    except duckdb.InterruptException as error:
        connection.close()
        raise QueryError(one_line(error)) from error
    except BaseException:
        connection.close()
        raise
    return connection


def add_other(connection: duckdb.DuckDBPyConnection, other: Store, sae: str) -> None:
    """Add the views ``other_codes`` and ``other_stats`` of another store to a connection; raises as
    :func:`connect`."""
    tables = [f"codes/{sae}", f"stats/{sae}"]
    for table in tables:
        other.require(table)
    verify_files(other, tables)
    for table in tables:
        kind = table.partition("/")[0]
        selected = (
            f"select {quote_text(sae)} as sae, * from {files_of(other, other.records(table))}"
        )
        connection.execute(f"create view other_{kind} as {selected}")


def open_database(database: str | Path, memory_limit: str | None) -> duckdb.DuckDBPyConnection:
    """Return a connection without views that spills above ``memory_limit``; raises UsageError if
    that is not a size."""
    spill = Path(tempfile.gettempdir(), f"{SPILL_PREFIX}{os.getpid()}-{secrets.token_hex(6)}")
    config: dict[str, str | bool | int | float | list[str]] = {"temp_directory": str(spill)}
    if memory_limit is not None:
        config["memory_limit"] = memory_limit
    try:
        connection = duckdb.connect(str(database), config=config)
    except (duckdb.ParserException, duckdb.InvalidInputException) as error:
        raise UsageError(
            f"memory limit {memory_limit!r}: expected a size such as 2GB ({one_line(error)})."
        ) from error
    if (tell := _opened.get()) is not None:
        tell(connection)
    return connection


def verify_files(store: Store, tables: Iterable[str]) -> None:
    """Compare the SHA-256 of every file of the tables with its record, once in a process.

    Raises:
        DamageError: a file is not what its record says; the first five such files are named.
    """
    store.check(record for table in tables for record in store.records(table))
