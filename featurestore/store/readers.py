"""Read verified Parquet files as Arrow, with Polars and with datasets: what ``Store.arrow``,
``scan``, ``dataset`` do."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from featurestore.errors import TableError, nearest
from featurestore.format.footers import read_schema, read_table
from featurestore.format.records.labels import apply_labels

if TYPE_CHECKING:
    import datasets
    import polars as pl


def arrow(
    files: Sequence[Path], columns: Iterable[str] | None, labels: pa.Table | None = None
) -> pa.Table:
    """Return the rows of files in memory, with the schema metadata of the first.

    ``labels``, here and below: the labels that stand for some samples, as
    ``Store.corrected_labels`` has them.
    """
    wanted = _known(files[0], columns, labels)
    own = _own(files[0], wanted, labels)
    parts = [read_table(file, own) for file in files]
    rows = pa.concat_tables(
        [part.replace_schema_metadata(parts[0].schema.metadata) for part in parts]
    )
    if labels is None:
        return rows
    rows = apply_labels(rows, labels)
    return rows if wanted is None else rows.select(wanted)


def scan(files: Sequence[Path], labels: pa.Table | None = None) -> "pl.LazyFrame":
    """Return a Polars query over files, which has not read anything yet."""
    import polars as pl

    frame = pl.scan_parquet(list(files), glob=False, hive_partitioning=False)
    if labels is None:
        return frame
    there, families = names(files[0]), labels.column_names[1:]
    stands = (
        pl.DataFrame(labels)
        .rename({name: f"{name}:stands" for name in families})
        .with_columns(stands=True)
    )
    joined = frame.join(stands.lazy(), on="sample_id", how="left", maintain_order="left")
    columns = [
        pl.when("stands")
        .then(f"{name}:stands")
        .otherwise(name if name in there else None)
        .alias(name)
        for name in families
    ]
    return joined.with_columns(columns).select(
        *there, *(name for name in families if name not in there)
    )


def dataset(
    files: Sequence[Path],
    columns: Iterable[str] | None,
    streaming: bool,
    labels: pa.Table | None = None,
) -> "datasets.Dataset | datasets.IterableDataset":
    """Return files as one data set of the library datasets."""
    from datasets import Value, load_dataset

    wanted = _known(files[0], columns, labels)
    own = _own(files[0], wanted, labels)
    chosen: dict[str, Any] = {} if own is None else {"columns": own}
    data = load_dataset(
        "parquet", data_files=[str(f) for f in files], split="train", streaming=streaming, **chosen
    )
    if labels is None:
        return data
    families = [name for name in labels.column_names[1:] if wanted is None or name in wanted]
    inputs = ["sample_id", *(name for name in families if name in (own or data.features))]

    def stand(*values: list[Any]) -> dict[str, Any]:
        batch = pa.table([pa.array(column) for column in values], names=inputs)
        return (
            apply_labels(batch, labels.select(["sample_id", *families]))
            .select(families)
            .to_pydict()
        )

    features = data.features.copy()
    features.update({name: Value("string") for name in families})
    data = data.map(stand, batched=True, input_columns=inputs, features=features)
    return data if wanted is None else data.select_columns(wanted)


def names(file: Path) -> list[str]:
    """Return the names of a file's columns; raises DamageError."""
    return list(read_schema(file).names)


def _own(file: Path, wanted: list[str] | None, labels: pa.Table | None) -> list[str] | None:
    """Return the columns to read of the files themselves."""
    if wanted is None or labels is None:
        return wanted
    there = names(file)
    return [*dict.fromkeys(["sample_id", *(name for name in wanted if name in there)])]


def _known(file: Path, columns: Iterable[str] | None, labels: pa.Table | None) -> list[str] | None:
    """Return the columns once the file or the labels have each: not every reader would say so.

    Raises:
        TableError: they lack one.
    """
    if columns is None:
        return None
    known, wanted = names(file), list(columns)
    known += [] if labels is None else labels.column_names
    for name in wanted:
        if name not in known:
            raise TableError(f"{file.parent} has no column {name!r}.{nearest(name, known)}")
    return wanted
