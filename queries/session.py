"""A DuckDB connection over a store's committed, verified files."""

import difflib
import re
from collections.abc import Iterable
from pathlib import Path

import duckdb
import pyarrow as pa

from featurestore.errors import DamageError, QueryError, nearest
from featurestore.saes import load_config, sae_hash
from featurestore.schemas import CODES, KINDS, SCORES, STATS, activations_schema, samples_schema
from featurestore.store import Store
from featurestore.verify import check_file

_SQL = Path(__file__).parent / "sql"
_EMPTY = {
    "samples": samples_schema([]),
    "activations": activations_schema(1, 1),
    "codes": CODES,
    "stats": STATS,
    "scores": SCORES,
    "selections": SCORES,
}
_TYPES = {"int64": "bigint", "int32": "integer", "float": "float", "double": "double", "string": "varchar"}
_NESTED = {"features": "integer[][]", "values": "float[][]", "activation": "float[][]"}
_verified: set[tuple[str, int, int, str]] = set()


def question(name: str) -> str:
    """Return the text of ``queries/sql/<name>.sql``."""
    return (_SQL / f"{name}.sql").read_text(encoding="utf-8")


def quote_identifier(name: str) -> str:
    """Return a name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def quote_text(text: str) -> str:
    """Return a text as an SQL literal, for the places that take no parameter."""
    return "'" + text.replace("'", "''") + "'"


def connect(
    store: Store, *, tables: Iterable[str] | None = None, verify: bool = True, memory_limit: str | None = None
) -> duckdb.DuckDBPyConnection:
    """Return an in-memory DuckDB connection with a view of each kind of table; the caller closes it.

    ``samples``; ``activations`` with a column ``hook``; ``codes``, ``stats``, ``scores`` and ``selections`` with a
    column ``sae``; and ``saes``. Only committed files are seen, of ``tables`` (such as ``stats/neon``) if that is given;
    a view without files is empty. ``verify`` compares each file's SHA-256 with its record, once in a process:
    DuckDB reads a damaged file without noticing.

    Raises:
        DamageError: a file is not what its record says; the first five such files are named.
    """
    seen = [table for table in store.tables() if tables is None or table in set(tables)]
    if verify:
        _verify(store, seen)
    connection = duckdb.connect(config={"memory_limit": memory_limit} if memory_limit else {})
    try:
        connection.execute("set python_enable_replacements = false")
        for kind in ("samples", *KINDS):
            _create_view(connection, store, kind, [table for table in seen if table.split("/")[0] == kind])
        _create_saes(connection, store)
    except BaseException:
        connection.close()
        raise
    return connection


def run_sql(store: Store, statement: str) -> pa.Table:
    """Run one SELECT of a user over a store's views; it can read nothing else and change nothing.

    Only the tables that the statement names are verified, and only their files can be read. Columns of one name are
    told apart by a number.

    Raises:
        QueryError: it is not one SELECT, or DuckDB refuses it.
        DamageError: a file is not what its record says.
    """
    named = [table for table in store.tables() if table.split("/")[0] in statement.lower()]
    _verify(store, named)
    with connect(store, verify=False) as connection:
        _close_doors(connection, store, named)
        try:
            answer = connection.sql(_checked(connection, statement)).to_arrow_table()
        except duckdb.BinderException as error:
            raise QueryError(_with_near_columns(connection, statement, error)) from error
        except duckdb.Error as error:
            raise QueryError(_one_line(error)) from error
    return answer.rename_columns(_distinct(answer.column_names))


def _checked(connection: duckdb.DuckDBPyConnection, statement: str) -> duckdb.Statement:
    """Return the one SELECT in ``statement``.

    To DuckDB's parser ``with x as (copy … to …) select …`` is a SELECT, and a path that may be read may be written.
    Its binder refuses whatever changes anything in the definition of a view: as that the statement must pass first.
    """
    parsed = connection.extract_statements(statement)
    if len(parsed) != 1 or parsed[0].type != duckdb.StatementType.SELECT:
        kinds = ", ".join(s.type.name for s in parsed) or "nothing"
        raise QueryError(
            f"expected one SELECT, found {kinds}: a store is only read. Use 'featurestore export' to write files."
        )
    connection.execute(f"create temp view checked as {parsed[0].query}")
    connection.execute("drop view temp.checked")
    return parsed[0]


def _verify(store: Store, tables: Iterable[str]) -> None:
    problems = []
    for entry in (entry for table in tables for record in store.records(table) for entry in record.files):
        path = store.root / entry.path
        stat = path.stat() if path.is_file() else None
        key = (str(path.resolve()), stat.st_size, stat.st_mtime_ns, entry.sha256) if stat else None
        if key in _verified:
            continue
        wrong = check_file(store.root, entry)
        if wrong:
            problems.append(f"{entry.path} {wrong}")
        elif key:
            _verified.add(key)
    if problems:
        more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
        raise DamageError(f"{store.root}: {'; '.join(problems[:5])}{more}. Run 'featurestore verify {store.root}'.")


def _create_view(connection: duckdb.DuckDBPyConnection, store: Store, kind: str, tables: list[str]) -> None:
    column = {"samples": "", "activations": "hook"}.get(kind, "sae")
    parts = []
    for table in tables:
        name = f"{quote_text(table.partition('/')[2])} as {column}, " if column else ""
        parts.append(f"select {name}* from {_files(store, table)}")
    if not parts:
        _create_empty(connection, kind, [f"{column} varchar"] if column else [])
        return
    try:
        connection.execute(f"create view {kind} as {' union all by name '.join(parts)}")
    except duckdb.Error as error:
        raise DamageError(
            f"{store.root}: table {kind} cannot be opened ({_one_line(error)}). Run 'featurestore verify {store.root}'."
        ) from error


def _files(store: Store, table: str) -> str:
    files = ", ".join(quote_text(str(path.resolve())) for path in store.files(table))
    return f"read_parquet([{files}], hive_partitioning = false)"


def _create_empty(connection: duckdb.DuckDBPyConnection, kind: str, columns: list[str]) -> None:
    for field in _EMPTY[kind]:
        columns.append(f"{quote_identifier(field.name)} {_NESTED.get(field.name) or _TYPES[str(field.type)]}")
    connection.execute(f"create table {kind} ({', '.join(columns)})")


def _create_saes(connection: duckdb.DuckDBPyConnection, store: Store) -> None:
    connection.execute(
        "create table saes (sae varchar, hook varchar, io varchar, d_in integer, n_latents integer, k integer, "
        "map_positions integer, sae_hash varchar)"
    )
    for record in store.records("saes"):
        config = load_config(store, record.shard)
        values = [record.shard, *(config[key] for key in ("hook", "io", "d_in", "n_latents", "k"))]
        values += [config["height"] * config["width"], sae_hash(record)]
        connection.execute("insert into saes values (?, ?, ?, ?, ?, ?, ?, ?)", values)


def _close_doors(connection: duckdb.DuckDBPyConnection, store: Store, tables: Iterable[str]) -> None:
    files = [str(path.resolve()) for table in tables for path in store.files(table)]
    connection.execute(f"set allowed_paths = [{', '.join(map(quote_text, files))}]")
    connection.execute("set autoinstall_known_extensions = false")
    connection.execute("set enable_external_access = false")
    connection.execute("set lock_configuration = true")


def _one_line(error: duckdb.Error) -> str:
    """Return DuckDB's message with its hint, without the picture of the statement that follows them."""
    return " ".join(str(error).partition("\n\n")[0].split())


def _with_near_columns(connection: duckdb.DuckDBPyConnection, statement: str, error: duckdb.Error) -> str:
    """Return DuckDB's message with the columns that are near to the name it complains of, else with DuckDB's own hint."""
    catalog = "select table_name, column_name from duckdb_columns() where not internal"
    tables, columns = map(set, zip(*connection.execute(catalog).fetchall(), strict=True))
    first = str(error).partition("\n")[0]
    for word in re.findall(r"\w+", statement):
        unknown = word not in tables | columns and f'"{word}"' in first
        close = difflib.get_close_matches(word, sorted(columns)) if unknown else []
        if close:
            return f"{first}{nearest(word, close)}"
    return _one_line(error)


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
