"""An answer of DuckDB, read as it is computed."""

import duckdb
import pyarrow as pa

from featurestore.errors import QueryError

_ROWS = 100_000
"""per batch"""


def read_answer(
    connection: duckdb.DuckDBPyConnection,
    relation: duckdb.DuckDBPyRelation,
    rows: int | None = None,
) -> pa.Table:
    """Return an answer, or its first ``rows``, and compute no more than they need.

    DuckDB's memory limit is of what it computes with; what it has answered lies outside of it.

    Raises:
        QueryError: the answer takes more than half of the memory limit.
    """
    limit = "select parse_formatted_bytes(current_setting('memory_limit'))"
    [(most,)] = connection.execute(limit).fetchall()
    reader = relation.to_arrow_reader(_ROWS if rows is None else min(max(rows, 1), _ROWS))
    parts, n_rows, n_bytes = [], 0, 0
    while (rows is None or n_rows < rows) and (batch := next(reader, None)) is not None:
        parts.append(batch if rows is None else batch.slice(0, rows - n_rows))
        n_rows, n_bytes = n_rows + parts[-1].num_rows, n_bytes + batch.nbytes
        if n_bytes > most // 2:
            raise QueryError(
                f"the answer has more than {n_rows:,} rows and takes more than {most // 2:,} "
                f"bytes, half of the memory limit: ask for less (one concept, one feature, fewer "
                f"steps, a limit, a sum of rows), or set a larger limit."
            )
    return pa.Table.from_batches(parts, reader.schema)
