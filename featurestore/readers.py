"""Read verified Parquet files as Arrow, with Polars and with datasets: what ``Store.arrow``, ``scan``, ``dataset`` do."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.errors import TableError, nearest

if TYPE_CHECKING:
    import datasets
    import polars as pl


def arrow(files: Sequence[Path], columns: Iterable[str] | None) -> pa.Table:
    """Return the rows of files in memory, with the schema metadata of the first."""
    wanted = _known(files[0], columns)
    parts = [pq.read_table(file, columns=wanted, page_checksum_verification=True, partitioning=None) for file in files]
    return pa.concat_tables([part.replace_schema_metadata(parts[0].schema.metadata) for part in parts])


def scan(files: Sequence[Path]) -> "pl.LazyFrame":
    """Return a Polars query over files, which has not read anything yet."""
    import polars as pl

    return pl.scan_parquet(list(files), glob=False, hive_partitioning=False)


def dataset(
    files: Sequence[Path], columns: Iterable[str] | None, streaming: bool
) -> "datasets.Dataset | datasets.IterableDataset":
    """Return files as one data set of the library datasets."""
    from datasets import load_dataset

    wanted = _known(files[0], columns)
    chosen: dict[str, Any] = {} if wanted is None else {"columns": wanted}
    return load_dataset("parquet", data_files=[str(f) for f in files], split="train", streaming=streaming, **chosen)


def _known(file: Path, columns: Iterable[str] | None) -> list[str] | None:
    """Return columns, all of which a file must have: not every reader would say so.

    Raises:
        TableError: it lacks one.
    """
    if columns is None:
        return None
    known, wanted = pq.read_schema(file).names, list(columns)
    for name in wanted:
        if name not in known:
            raise TableError(f"{file.parent} has no column {name!r}.{nearest(name, known)}")
    return wanted
