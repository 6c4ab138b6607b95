"""Scores, condensed for reading."""

import duckdb
import pyarrow as pa

from queries.session import question


def best_features(scores: pa.Table, top: int = 5) -> pa.Table:
    """Return the ``top`` features of each concept by mean score over the steps; ``scores`` are those of one family."""
    with duckdb.connect() as connection:
        connection.register("scored", scores)
        return connection.sql(question("best_features"), params={"top": top}).to_arrow_table()
