"""The five file formats of a selection (docs/selection.md). All load back to the identical selection."""

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
from featurestore.format import durable
from featurestore.format.canonical import canonical_json

METADATA_KEY = b"featurestore.selection"
ROWS = pa.schema(
    [
        pa.field(name, kind, nullable=False)
        for name, kind in {
            "step": pa.int32(),
            "timestep": pa.float32(),
            "feature": pa.int32(),
            "score": pa.float64(),
            "mean_concept": pa.float64(),
            "mean_other": pa.float64(),
            "mean_all": pa.float64(),
        }.items()
    ]
)
_MALFORMED = (ValueError, KeyError, TypeError, AttributeError, OverflowError, pa.ArrowException, zstandard.ZstdError)
_VALUES = ("feature", "score", "mean_concept", "mean_other", "mean_all")


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
        data = path.read_bytes()
    except OSError as error:
        raise SelectionError(f"selection file {path} cannot be read: {error.strerror}.") from error
    try:
        return decode(data, path)
    except _MALFORMED as error:
        raise SelectionError(f"{path} is no selection: {' '.join(str(error).split())}.") from error


def parse_header(text: str, path: Path) -> Any:
    """Return a header from its JSON.

    Raises:
        SelectionError: it is none.
    """
    try:
        return json.loads(text)
    except ValueError as error:
        raise SelectionError(f"{path} is no selection: its header is not JSON ({error}).") from error


def _to_json(header: dict[str, Any], rows: pa.Table) -> bytes:
    by_step: dict[int, list[dict[str, Any]]] = {}
    for row in rows.to_pylist():
        by_step.setdefault(row["step"], []).append({name: row[name] for name in _VALUES})
    timesteps = [
        {"step": step, "timestep": t, "features": by_step.get(step, [])} for step, t in enumerate(header["timesteps"])
    ]
    return (
        json.dumps({**header, "timesteps": timesteps}, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    ).encode()


def _from_json(data: bytes, path: Path) -> tuple[Any, pa.Table]:
    header = parse_header(data.decode(), path)
    steps = header["timesteps"]
    if [s["step"] for s in steps] != list(range(len(steps))):
        raise SelectionError(f"{path} is no selection: the steps of its timesteps must be 0, 1, 2, … in this order.")
    rows = [{"step": s["step"], "timestep": s["timestep"], **row} for s in steps for row in s["features"]]
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
    reader = csv.DictReader(io.StringIO(body, newline=""))
    if reader.fieldnames != ROWS.names:
        raise SelectionError(f"{path}: expected the columns {', '.join(ROWS.names)}, found {reader.fieldnames}.")
    whole = ("step", "feature")
    rows = [{k: int(v) if k in whole else float(v) for k, v in row.items()} for row in reader]
    if len(rows) != header["n_rows"] or not body.endswith("\n"):
        raise SelectionError(
            f"{path} is no selection: its header counts {header['n_rows']} rows, {len(rows)} are there; "
            f"it was cut short, or edited without its n_rows."
        )
    return header, _table(rows)


def _to_parquet(header: dict[str, Any], rows: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    metadata = {METADATA_KEY: canonical_json(header).encode()}
    pq.write_table(rows.replace_schema_metadata(metadata), sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def _from_parquet(data: bytes, path: Path) -> tuple[Any, pa.Table]:
    table = pq.read_table(pa.BufferReader(data), page_checksum_verification=True)
    header = parse_header((table.schema.metadata or {}).get(METADATA_KEY, b"").decode(), path)
    return header, table.select(ROWS.names).cast(ROWS).replace_schema_metadata(None)


def _to_jsonl_zst(header: dict[str, Any], rows: pa.Table) -> bytes:
    lines = [canonical_json(header), *map(canonical_json, rows.to_pylist())]
    compressor = zstandard.ZstdCompressor(write_checksum=True)
    return compressor.compress("".join(f"{line}\n" for line in lines).encode())


def _from_jsonl_zst(data: bytes, path: Path) -> tuple[Any, pa.Table]:
    decompressor = zstandard.ZstdDecompressor().decompressobj()
    text = decompressor.decompress(data).decode()
    if not decompressor.eof:
        raise SelectionError(f"{path} is no selection: it was cut short.")
    header, *rows = text.removesuffix("\n").split("\n")
    return parse_header(header, path), _table([json.loads(row) for row in rows])


def _to_markdown(header: dict[str, Any], rows: pa.Table) -> bytes:
    counted = canonical_json({**header, "n_rows": rows.num_rows})
    title = f"# {header['family']} = {canonical_json(header['concept'])}\n"
    lines = [title, "```json", counted, "```\n", f"| {' | '.join(ROWS.names)} |", "|" + " ---: |" * len(ROWS.names)]
    lines += [f"| {' | '.join(repr(value) for value in row.values())} |" for row in rows.to_pylist()]
    return "".join(f"{line}\n" for line in lines).encode()


def _from_markdown(data: bytes, path: Path) -> tuple[Any, pa.Table]:
    _, _, fenced = data.decode().partition("\n```json\n")
    first, _, body = fenced.partition("\n```\n")
    header = parse_header(first, path)
    names, _, *lines = [line for line in body.split("\n") if line.startswith("|")]
    if [cell.strip() for cell in names.strip("|").split("|")] != ROWS.names:
        raise SelectionError(f"{path}: expected the columns {', '.join(ROWS.names)}, found {names}.")
    whole = ("step", "feature")
    cells = [zip(ROWS.names, line.strip().strip("|").split("|"), strict=True) for line in lines]
    rows = [{k: int(v) if k in whole else float(v) for k, v in row} for row in cells]
    if len(rows) != header["n_rows"] or not body.endswith("\n"):
        raise SelectionError(
            f"{path} is no selection: its header counts {header['n_rows']} rows, {len(rows)} are there; "
            f"it was cut short, or edited without its n_rows."
        )
    return header, _table(rows)


def _table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pydict({name: [row[name] for row in rows] for name in ROWS.names}, schema=ROWS)


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
    raise SelectionError(f"{path}: a selection is one of {', '.join(FORMATS)}; the suffix says which.")
