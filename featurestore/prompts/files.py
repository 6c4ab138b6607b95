"""Rows of prompts from JSONL, JSON, CSV, TSV, text, Parquet, and data sets of ``datasets``."""

import csv
import io
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from featurestore.errors import PromptsError, nearest
from featurestore.prompts.rows import Row, decode, parse_json, read_bytes

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt", ".parquet")
_HUB = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(:[\w.-]+)?", re.ASCII)


def read_rows(
    source: str, split: str | None, prompt_column: str, needed: Collection[str] | None
) -> list[Row]:
    """Return the rows of a file, a directory or a data set on the hub (``owner/name`` or
    ``owner/name:config``).

    ``needed``: the columns that are read of a table that has columns of its own; None: all of them.

    Raises:
        PromptsError: it cannot be read; the message names the place.
    """
    if not source:
        raise PromptsError("the name of the prompts file is empty: name a file or a data set.")
    path = Path(source)
    suffix = path.suffix.lower()
    if path.is_dir() or (not path.exists() and suffix not in SUFFIXES and _HUB.fullmatch(source)):
        return list(_data_set_rows(source, split, needed))
    if split is not None:
        raise PromptsError(
            f"{source} is a file and has no splits: leave out --split, or name a data set."
        )
    match suffix:
        case ".csv" | ".tsv":
            rows = _separated_rows(path, "," if suffix == ".csv" else "\t")
        case ".json":
            rows = _json_rows(path, prompt_column)
        case ".parquet":
            rows = _parquet_rows(path, needed)
        case ".txt":
            rows = _text_rows(path, prompt_column)
        case _:
            rows = _jsonl_rows(path)
    return list(rows)


def _jsonl_rows(path: Path) -> Iterator[Row]:
    """Yield a row per line. Lines end with a line feed and nothing else: U+2028 and U+0085 are
    text."""
    for number, data in enumerate(read_bytes(path).split(b"\n"), 1):
        line = decode(path, data, number).strip(" \t\r")
        if not line:
            continue
        where = f"{path}, line {number}"
        body = parse_json(where, line)
        if not isinstance(body, dict):
            raise PromptsError(
                f"{where}: expected an object with a text 'prompt', found {line[:60]!r}."
            )
        yield Row(where, number, body)


def _json_rows(path: Path, prompt_column: str) -> Iterator[Row]:
    """Yield the objects of a list, or of the one list in an object whose objects have prompts (as
    COCO's captions do)."""
    body = parse_json(str(path), decode(path, read_bytes(path)))
    lists = {"": body} if isinstance(body, list) else {}
    if isinstance(body, dict):
        lists = {key: value for key, value in body.items() if _has_column(value, prompt_column)}
    if len(lists) != 1:
        found = f"{len(lists)} of them ({', '.join(lists)})" if lists else _kind(body)
        raise PromptsError(
            f"{path}: expected a list of objects, or an object with one list of objects that have "
            f"{prompt_column!r}, found {found}. --prompt-column names another."
        )
    [(key, items)] = lists.items()
    for number, item in enumerate(items, 1):
        where = f"{path}, {key + ' ' if key else ''}item {number}"
        if not isinstance(item, dict):
            raise PromptsError(
                f"{where}: expected an object with a text {prompt_column!r}, found {_kind(item)}."
            )
        yield Row(where, number, item)


def _has_column(value: Any, column: str) -> bool:
    return isinstance(value, list) and any(
        isinstance(item, dict) and column in item for item in value
    )


def _kind(value: Any) -> str:
    keys = (
        f" with the keys {', '.join(list(value)[:8])}" if isinstance(value, dict) and value else ""
    )
    return (
        "a list"
        if isinstance(value, list)
        else f"an object{keys}"
        if isinstance(value, dict)
        else repr(value)[:60]
    )


def _text_rows(path: Path, prompt_column: str) -> Iterator[Row]:
    for number, line in enumerate(decode(path, read_bytes(path)).split("\n"), 1):
        if line.strip():
            yield Row(f"{path}, line {number}", number, {prompt_column: line.removesuffix("\r")})


def _separated_rows(path: Path, delimiter: str) -> Iterator[Row]:
    """Yield the rows of a CSV file with a header (RFC 4180); every cell is text, an empty one is
    missing."""
    reader = csv.reader(
        io.StringIO(decode(path, read_bytes(path)), newline=""), delimiter=delimiter, strict=True
    )
    header: list[str] | None = None
    while True:
        number = reader.line_num + 1
        where = f"{path}, line {number}"
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise PromptsError(f"{where}: it is no row of separated cells ({error}).") from error
        if cells is None:
            return
        if not cells:
            continue
        if header is None:
            header = cells
            twice = next((name for name in header if name and header.count(name) > 1), None)
            if twice is not None:
                raise PromptsError(
                    f"{where}: the column {twice!r} is there twice: rename one of them."
                )
            continue
        if len(cells) != len(header):
            raise PromptsError(
                f"{where}: {len(cells)} cells, expected {len(header)} as in the header."
            )
        yield Row(
            where, number, {name: cell or None for name, cell in zip(header, cells, strict=True)}
        )


def _parquet_rows(path: Path, needed: Collection[str] | None) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(io.BytesIO(read_bytes(path)), page_checksum_verification=True) as file:
            found = file.schema_arrow.names
            columns = [name for name in found if needed is None or name in needed]
            number = 0
            for batch in file.iter_batches(columns=columns):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(f"{path}, row {number}", number, values)
    except (pa.ArrowException, OSError) as error:
        raise PromptsError(f"{path}: it is no Parquet file that can be read ({error}).") from error


def _data_set_rows(source: str, split: str | None, needed: Collection[str] | None) -> Iterator[Row]:
    """Yield the rows of a data set that ``datasets`` reads, without those columns that are not
    needed."""
    from datasets.exceptions import DatasetsError

    try:
        data = _one_split(source, _load_data_set(source), split)
        columns = data.column_names or list(next(iter(data), {}))
        chosen = [name for name in columns if needed is None or name in needed]
        for number, values in enumerate(data.select_columns(chosen), 1):
            yield Row(f"{source}, row {number}", number, values)
    except (OSError, ValueError, DatasetsError) as error:
        reason = " ".join(str(error).split())[:300]
        raise PromptsError(
            f"{source} is no file, and no data set that can be loaded: {reason}"
        ) from error


def _load_data_set(source: str) -> Any:
    import datasets

    if any(Path(source, name).is_file() for name in ("dataset_dict.json", "state.json")):
        return datasets.load_from_disk(source)
    name, _, config = (source, "", "") if Path(source).exists() else source.partition(":")
    return datasets.load_dataset(name, config or None, streaming=True)


def _one_split(source: str, data: Any, split: str | None) -> Any:
    if not isinstance(data, dict):
        return data
    if split is None and len(data) > 1:
        raise PromptsError(f"{source} has the splits {', '.join(data)}: choose one with --split.")
    if split is not None and split not in data:
        raise PromptsError(f"{source} has no split {split!r}.{nearest(split, data)}")
    return data[split or next(iter(data))]
