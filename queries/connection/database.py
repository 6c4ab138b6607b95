"""A small DuckDB database of views over a store, for clients that know nothing of stores."""

import tempfile
from pathlib import Path

from featurestore.format import durable
from featurestore.store import Store
from queries.connection.session import connect


def export_database(store: Store, path: Path) -> list[str]:
    """Write a database with the views of :func:`queries.connect`, in place of any file at ``path``;
    return their names.

    The views name the store's committed files by absolute path: what is collected later, or a store
    that is moved, needs a new export. The files are verified first. Any DuckDB that reads this
    version's files can open it, also read-only.

    Raises:
        DamageError: a file is not what its record says.
        DiskError: the operating system refused.
    """
    durable.check_file(path)
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "store.duckdb")
        with connect(store, database=file) as connection:
            names = connection.execute(
                "select table_name from information_schema.tables where table_schema = 'main' "
                "order by 1"
            ).fetchall()
            connection.execute("checkpoint")
        durable.write_bytes(path, file.read_bytes())
    return [name for (name,) in names]
