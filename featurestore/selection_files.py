"""The five file formats of a selection (docs/selection.md). All load back to the identical
selection."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from featurestore.errors import SelectionError
from featurestore.format import durable, footers
from featurestore.format.canonical import canonical_json
from featurestore.format.gate import (
    Field,
    MalformedError,
    closed,
    parse_json,
    read_regular,
    real,
    whole,
)
from featurestore.format.schemas import SCORES

METADATA_KEY = b"featurestore.selection"
_VALUES = ("feature", "score", "mean_concept", "mean_other", "mean_all")
ROWS = pa.schema([SCORES.field(name) for name in ("step", "timestep", *_VALUES)])
_MALFORMED = (*footers.MALFORMED, zstandard.ZstdError)
MAX_BYTES = 256 * 2**20
"""of a selection's text; that of a compressed one is also at most ``_MAX_RATIO`` times its file,
and 1 MiB"""
_MAX_RATIO = 100
_MAX_ROWS = 2**24
LIMIT = 1e38
"""largest magnitude of a number in a selection: ablating computes with them in float32"""
_ROW = {
    "step": whole(0, 2**31 - 1),
    "timestep": real(LIMIT),
    "feature": whole(0, 2**31 - 1),
    **dict.fromkeys(("score", "mean_concept", "mean_other", "mean_all"), real(LIMIT)),
}
_STEP = {
    "step": whole(0, 2**31 - 1),
    "timestep": real(LIMIT),
    "features": Field(lambda value: isinstance(value, list), "a list"),
}


def check_place(path: Path) -> None:
    """Refuse a path where :func:`write` could not write, before there is a selection; raises as
    it."""
    _format(path)
    durable.check_file(path)


def write(path: Path, header: dict[str, Any], rows: pa.Table) -> None:
    """Write a selection's header and rows in the format that the path's suffix names.

    Raises:
        SelectionError: the suffix names no format.
        DiskError: the operating system refused.
    """
    encode, _ = _format(path)
    durable.write_bytes(path, encode(header, rows))


def read(path: Path) -> tuple[Any, pa.Table]:
    """Read a selection's header, not yet checked, and its rows, whose columns are ``ROWS``.

    Raises:
        SelectionError: the file cannot be read, or is not in the format that its suffix names.
    """
    _, decode = _format(path)
    try:
        # The path is the user's own, who may have put a link there.
        data = read_regular(path.resolve(), MAX_BYTES)
    except OSError as error:
        raise SelectionError(f"selection file {path} cannot be read: {error.strerror}.") from error
    except MalformedError as error:
        raise SelectionError(f"{path} is no selection: {error}.") from error
    try:
        return decode(data, path)
    except _MALFORMED as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise SelectionError(f"{path} is no selection: {reason}.") from error


def parse_header(text: str, path: Path) -> Any:
    """Return a header from its JSON.

    Raises:
        SelectionError: it is not one.
    """
    try:
        return parse_json(text)
    except MalformedError as error:
        raise SelectionError(f"{path} is no selection: its header: {error}.") from error


def _to_json(header: dict[str, Any], rows: pa.Table) -> bytes:
    by_step: dict[int, list[dict[str, Any]]] = {}
    for row in rows.to_pylist():
        by_step.setdefault(row["step"], []).append({name: row[name] for name in _VALUES})
    timesteps = [
        {"step": step, "timestep": t, "features": by_step.get(step, [])}
        for step, t in enumerate(header["timesteps"])
    ]
    return (
        json.dumps(
            {**header, "timesteps": timesteps}, indent=1, ensure_ascii=False, allow_nan=False
        )
        + "\n"
    ).encode()


def _from_json(data: bytes, path: Path) -> tuple[Any, pa.Table]:
    header = parse_header(data.decode(), path)
    steps = header["timesteps"] if isinstance(header, dict) and "timesteps" in header else None
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise ValueError("timesteps is not a list of objects")
    if [s.get("step") for s in steps] != list(range(len(steps))):
        raise SelectionError(
            f"{path} is no selection: the steps of its timesteps must be 0, 1, 2, … in this order."
        )
    for step in steps:
        closed(step, _STEP)
        for row in step["features"]:
            closed(row, {name: _ROW[name] for name in _VALUES})
    rows = [
        {"step": s["step"], "timestep": s["timestep"], **row}
        for s in steps
        for row in s["features"]
    ]
    return {**header, "timesteps": [s["timestep"] for s in steps]}, _table(rows)


def _to_csv(header: dict[str, Any], rows: pa.Table) -> bytes:
    text = io.StringIO(newline="")
    # Text that ends too early looks whole, so the number of rows is written down.
    text.write(f"# {canonical_json({**header, 'n_rows': rows.num_rows})}\n")
    writer = csv.DictWriter(text, ROWS.names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows.to_pylist())
    return text.getvalue().encode()


def _from_csv(data: bytes, path: Path) -> tuple[Any, pa.Table]:
    first, _, body = data.decode().partition("\n")
    header = parse_header(first.removeprefix("#"), path)
    cells = [row for row in csv.reader(io.StringIO(body, newline="")) if row]
    return _counted(path, header, cells, body.endswith("\n"))


def _counted(path: Path, header: Any, cells: list[list[str]], ended: bool) -> tuple[Any, pa.Table]:
    """Return the header and the rows of a file of text: the names of the columns, then as many rows
    as the header counts; ``ended`` says whether the last line is whole."""
    names = cells[0] if cells else []
    if names != ROWS.names:
        raise SelectionError(
            f"{path}: expected the columns {', '.join(ROWS.names)}, found {', '.join(names)}."
        )
    n_rows = header.get("n_rows") if isinstance(header, dict) else None
    if len(cells) - 1 != n_rows or not ended or len(cells[-1]) != len(names):
        raise SelectionError(
            f"{path} is no selection: its header counts {n_rows} rows, {len(cells) - 1} are there; "
            f"it was cut short, or edited without its n_rows."
        )
    kinds = [int if name in ("step", "feature") else float for name in names]
    rows = [
        {name: kind(cell) for name, kind, cell in zip(names, kinds, row, strict=True)}
        for row in cells[1:]
    ]
    return header, _table(rows)


def _to_parquet(header: dict[str, Any], rows: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    metadata = {METADATA_KEY: canonical_json(header).encode()}
    pq.write_table(rows.replace_schema_metadata(metadata), sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def _from_parquet(data: bytes, path: Path) -> tuple[Any, pa.Table]:
    with pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True) as file:
        n_bytes = sum(
            file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups)
        )
        if file.metadata.num_rows > _MAX_ROWS or n_bytes > MAX_BYTES:
            raise ValueError(f"its footer counts {file.metadata.num_rows} rows of {n_bytes} bytes")
        table = file.read()
    header = parse_header((table.schema.metadata or {}).get(METADATA_KEY, b"").decode(), path)
    return header, table.select(ROWS.names).cast(ROWS).replace_schema_metadata(None)


def _to_jsonl_zst(header: dict[str, Any], rows: pa.Table) -> bytes:
    lines = [canonical_json(header), *map(canonical_json, rows.to_pylist())]
    compressor = zstandard.ZstdCompressor(write_checksum=True)
    return compressor.compress("".join(f"{line}\n" for line in lines).encode())


def _from_jsonl_zst(data: bytes, path: Path) -> tuple[Any, pa.Table]:
    text = _decompressed(data, path).decode()
    header, *rows = text.removesuffix("\n").split("\n")
    return parse_header(header, path), _table([parse_json(row) for row in rows])


def _decompressed(data: bytes, path: Path) -> bytes:
    """Return what a compressed file holds, bounded before it is made."""
    limit = min(MAX_BYTES, 2**20 + _MAX_RATIO * len(data))
    source, parts, size = io.BytesIO(data), list[bytes](), 0
    with zstandard.ZstdDecompressor(max_window_size=2**27).stream_reader(source) as stream:
        while part := stream.read(2**20):
            parts.append(part)
            size += len(part)
            if size > limit:
                raise SelectionError(
                    f"{path} is no selection: its {len(data):,} bytes hold more than {limit:,} "
                    f"when unpacked."
                )
    if zstandard.frame_content_size(data) not in (-1, size):
        raise SelectionError(f"{path} is no selection: it was cut short.")
    return b"".join(parts)


def _to_markdown(header: dict[str, Any], rows: pa.Table) -> bytes:
    counted = canonical_json({**header, "n_rows": rows.num_rows})
    title = f"# {header['family']} = {canonical_json(header['concept'])}\n"
    lines = [
        title,
        "```json",
        counted,
        "```\n",
        f"| {' | '.join(ROWS.names)} |",
        "|" + " ---: |" * len(ROWS.names),
    ]
    lines += [
        f"| {' | '.join(repr(value) for value in row.values())} |" for row in rows.to_pylist()
    ]
    return "".join(f"{line}\n" for line in lines).encode()


def _from_markdown(data: bytes, path: Path) -> tuple[Any, pa.Table]:
    _, _, fenced = data.decode().partition("\n```json\n")
    first, _, body = fenced.partition("\n```\n")
    header = parse_header(first, path)
    lines = [line.strip().strip("|") for line in body.split("\n") if line.startswith("|")]
    cells = [[cell.strip() for cell in line.split("|")] for line in lines]
    del cells[1:2]  # the rule below the names
    return _counted(path, header, cells, body.endswith("\n"))


def _table(rows: list[dict[str, Any]]) -> pa.Table:
    for row in rows:
        closed(row, _ROW)
    return pa.Table.from_pydict(
        {name: [row[name] for row in rows] for name in ROWS.names}, schema=ROWS
    )


_Encode = Callable[[dict[str, Any], pa.Table], bytes]
_Decode = Callable[[bytes, Path], tuple[Any, pa.Table]]
FORMATS: dict[str, tuple[_Encode, _Decode]] = {
    ".json": (_to_json, _from_json),
    ".csv": (_to_csv, _from_csv),
    ".parquet": (_to_parquet, _from_parquet),
    ".jsonl.zst": (_to_jsonl_zst, _from_jsonl_zst),
    ".md": (_to_markdown, _from_markdown),
}


def _format(path: Path) -> tuple[_Encode, _Decode]:
    for suffix, functions in FORMATS.items():
        if path.name.endswith(suffix):
            return functions
    raise SelectionError(
        f"{path}: a selection is one of {', '.join(FORMATS)}; the suffix says which."
    )
