"""What a question is asked over, and DuckDB, which answers it; Spark stands in ``spark.py``."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import duckdb
import pyarrow as pa

from featurestore.errors import QueryError
from featurestore.format.records import Record
from featurestore.store import Store
from queries.connection.reading import read_answer
from queries.connection.session import add_other, connect
from queries.connection.sql_errors import one_line
from queries.connection.text import quote_text
from queries.connection.views import files_of, opening
from queries.questions import Value, code, without_order

Run = Callable[[str, Mapping[str, Value]], pa.Table]
"""runs a statement with its parameters' values"""


@dataclass(frozen=True)
class Relations:
    """The relations of a statement, and where they come from."""

    store: Store
    names: frozenset[str]
    saes: Sequence[str]
    """whose ``codes`` and ``stats`` are meant"""
    branch: str
    derived: Mapping[str, Sequence[Record]] = field(default_factory=dict)
    """shards of tables that are kept, of ``saes[0]``"""
    made: Mapping[str, tuple[str, Mapping[str, Value]]] = field(default_factory=dict)
    """relation → statement over those before it and its values: what is made for this question
    alone"""
    tables: Mapping[str, pa.Table] = field(default_factory=dict)
    """what is computed by Python"""
    other: Store | None = None
    """the second store of ``compare_stores``"""


class Engine(Protocol):
    """Runs statements over a store."""

    @property
    def keeps(self) -> bool:
        """Whether sums that are missing are made here and kept in the store."""

    @property
    def cannot(self) -> Mapping[str, str]:
        """Say of each question that does not run why."""

    def open(self, relations: Relations) -> AbstractContextManager[Run]:
        """Have the relations for the time of the block; every file that is read is verified
        first."""


@dataclass(frozen=True)
class DuckDB:
    """DuckDB in this process; above ``memory_limit``, such as ``"2GB"``, it spills to the temporary
    directory."""

    memory_limit: str | None = None
    keeps = True
    cannot: Mapping[str, str] = field(default_factory=dict)

    @contextmanager
    def open(self, relations: Relations) -> Iterator[Run]:
        """Have the relations as views for the time of the block.

        Raises:
            UsageError: the memory limit is not a size.
            DamageError: a file is not what its record says.
        """
        store, names = relations.store, relations.names
        tables = [
            f"{kind}/{sae}"
            for kind in ("codes", "stats")
            if kind in names
            for sae in relations.saes
        ]
        tables += ["samples"] if names & {"samples", "labels"} else []
        for records in relations.derived.values():
            store.check(records)
        with connect(store, tables=tables, memory_limit=self.memory_limit) as connection:
            for name, records in relations.derived.items():
                kept = (
                    f"select {quote_text(relations.saes[0])} as sae, * from "
                    f"{files_of(store, records)}"
                )
                with opening(store, name):
                    connection.execute(f"create temp view {name} as {kept}")
            for name, table in relations.tables.items():
                connection.register(name, table)
            if relations.other is not None:
                add_other(connection, relations.other, relations.saes[0])

            def run(statement: str, values: Mapping[str, Value]) -> pa.Table:
                try:
                    params = used(statement, values)
                    return read_answer(connection, connection.sql(statement, params=params))
                except duckdb.Error as error:
                    raise QueryError(one_line(error)) from error

            for name, (statement, values) in relations.made.items():
                made = f"select $sae as sae, * from (\n{without_order(statement)}\n)"
                try:
                    connection.execute(f"create temp table {name} as {made}", used(made, values))
                except duckdb.Error as error:
                    raise QueryError(one_line(error)) from error
            yield run


def used(statement: str, values: Mapping[str, Value]) -> dict[str, Value]:
    """Return the values that a statement has parameters for."""
    return {name: values[name] for name in sorted(set(re.findall(r"\$(\w+)", code(statement))))}
