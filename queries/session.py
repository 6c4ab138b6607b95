"""A DuckDB connection over a store's committed, verified files."""

from pathlib import Path

import duckdb
import pyarrow as pa

from featurestore.errors import DamageError, QueryError, nearest
from featurestore.saes import load_config, sae_hash
from featurestore.schemas import CODES, SCORES, STATS
from featurestore.store import Store
from featurestore.verify import check_file

_SQL = Path(__file__).parent / "sql"
_EMPTY = {"codes": CODES, "stats": STATS, "scores": SCORES}
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


def connect(store: Store, verify: bool = True, memory_limit: str | None = None) -> duckdb.DuckDBPyConnection:
    """Return an in-memory DuckDB connection with a view of each kind of table.

    ``samples``; ``activations`` with a column ``hook``; ``codes``, ``stats``, ``scores`` and ``selections`` with a column ``sae``; and ``saes``.
    Only committed files are seen. ``verify`` compares each file's SHA-256 with its record, once in a process, since DuckDB reads a
    damaged file without noticing. The caller closes the connection.

    Raises:
        DamageError: a file is not what its record says; all such files are named.
    """
    if verify:
        _verify(store)
    connection = duckdb.connect(config={"memory_limit": memory_limit} if memory_limit else {})
    connection.execute("set python_enable_replacements = false")
    _create_views(connection, store)
    return connection


def run_sql(store: Store, statement: str) -> pa.Table:
    """Run one SELECT of a user over a store's views; it can read nothing else and change nothing.

    Raises:
        QueryError: it is not one SELECT, or DuckDB refuses it.
        DamageError: a file is not what its record says.
    """
    with connect(store) as connection:
        _close_doors(connection, store)
        try:
            parsed = connection.extract_statements(statement)
            if len(parsed) != 1 or parsed[0].type != duckdb.StatementType.SELECT:
                kinds = ", ".join(s.type.name for s in parsed) or "nothing"
                raise QueryError(f"expected one SELECT, found {kinds}: a store is only read. Use 'featurestore export' to write files.")
            return connection.sql(parsed[0]).to_arrow_table()
        except (duckdb.BinderException, duckdb.CatalogException) as error:
            raise QueryError(f"{_first_line(error)}{_hint(connection, str(error))}") from error
        except duckdb.Error as error:
            raise QueryError(_first_line(error)) from error


def _verify(store: Store) -> None:
    problems = []
    for table in store.tables():
        for record in store.records(table):
            for entry in record.files:
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


def _create_views(connection: duckdb.DuckDBPyConnection, store: Store) -> None:
    tables = store.tables()
    if "samples" in tables:
        connection.execute(f"create view samples as select * from {_files(store, 'samples')}")
    for kind, column in (("activations", "hook"), *((k, "sae") for k in ("codes", "stats", "scores", "selections"))):
        names = [table.split("/", 1)[1] for table in tables if table.startswith(f"{kind}/")]
        parts = [f"select {quote_text(n)} as {column}, * from {_files(store, f'{kind}/{n}')}" for n in names]
        if parts:
            connection.execute(f"create view {kind} as {' union all by name '.join(parts)}")
        elif kind in _EMPTY:
            _create_empty(connection, kind)
    _create_saes(connection, store)


def _files(store: Store, table: str) -> str:
    files = ", ".join(quote_text(str(path.resolve())) for path in store.files(table))
    return f"read_parquet([{files}], hive_partitioning = false)"


def _create_empty(connection: duckdb.DuckDBPyConnection, kind: str) -> None:
    types = {"int64": "bigint", "int32": "integer", "float": "float", "double": "double", "string": "varchar"}
    columns = ["sae varchar"]
    for field in _EMPTY[kind]:
        ragged = {"features": "integer[][]", "values": "float[][]"}
        columns.append(f"{quote_identifier(field.name)} {ragged.get(field.name) or types[str(field.type)]}")
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


def _close_doors(connection: duckdb.DuckDBPyConnection, store: Store) -> None:
    files = [str(path.resolve()) for table in store.tables() for path in store.files(table)]
    connection.execute(f"set allowed_paths = [{', '.join(map(quote_text, files))}]")
    connection.execute("set enable_external_access = false")
    connection.execute("set lock_configuration = true")


def _first_line(error: duckdb.Error) -> str:
    return str(error).strip().splitlines()[0]


def _hint(connection: duckdb.DuckDBPyConnection, message: str) -> str:
    """Return the columns and tables that are near to a quoted name in DuckDB's message."""
    quoted = [part for part in message.splitlines()[0].split('"')[1::2] if part]
    missing = quoted[0] if quoted else message.splitlines()[0].split("name ")[-1].split(" ")[0]
    rows = connection.execute(
        "select distinct column_name from duckdb_columns() where not internal union select view_name from duckdb_views() where not "
        "internal union select table_name from duckdb_tables()"
    ).fetchall()
    return nearest(missing, sorted(name for (name,) in rows))
