"""Stores of as many shards of samples as are wanted, whose files hold little."""

import hashlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from featurestore import Store
from featurestore.format import durable
from featurestore.format.canonical import sample_id, sealed, shard_name
from featurestore.format.ledger import DERIVED
from featurestore.format.parquet import layout
from featurestore.format.records import Record
from featurestore.format.schemas import samples_schema
from featurestore.store import shards

SHARDS, SAMPLES = 5200, 16
"""of the published recipe: 83,200 prompts, 16 of a shard"""
STYLES = 50
_RUN = {
    "model": "m", "model_hash": "f16:0", "scheduler": {"class": "D", "config": {}}, "n_steps": 50,
    "guidance": 9.0, "negative_prompt": "", "height": 512, "width": 512, "dtype": "float16",
}  # fmt: skip


def make_shards(root: Path, n: int, *, linked: bool = False) -> None:
    """Make a store of ``n`` shards of samples if it is not whole: a fiftieth of them of each style,
    one style after another, all files of a style with the same bytes.

    ``linked``: they are one file of many names, which is quick to make and needs little disk.
    """
    if (root / "whole").exists():
        return
    shutil.rmtree(root, ignore_errors=True)
    Store.create(root, _RUN)
    first: dict[int, tuple[Record, Path]] = {}
    for number in range(n):
        style = number * STYLES // n
        if style not in first:
            first[style] = _first_shard(root, number, style)
            continue
        like, source = first[style]
        path = root / "samples" / f"{shard_of(number)}.parquet"
        if linked:
            path.hardlink_to(source)
        else:
            path.write_bytes(source.read_bytes())
        _write_record(root, number, like)
    old = time.time() - 60
    os.utime(root / "manifest/store.json", (old, old))
    (root / "whole").touch()


def shard_of(number: int) -> str:
    """Return the name of a shard."""
    return shard_name(number * SAMPLES, ids_of(number))


def ids_of(number: int) -> list[int]:
    """Return the ids of a shard's samples."""
    return [sample_id("benchmark", f"p{number}", seed) for seed in range(SAMPLES)]


def _write_record(root: Path, number: int, like: Record) -> None:
    """Write the record of a shard that differs from another by its name and its samples."""
    shard, entry = shard_of(number), like.files[0]
    files = (entry.__class__(f"samples/{shard}.parquet", entry.bytes, entry.sha256),)
    ids = tuple(ids_of(number))
    made_by = {"v": "1"}
    record = Record("samples", shard, like.schema, like.rows, ids, files, made_by, like.contents)
    (root / record.location).write_bytes(record.to_bytes())


def _first_shard(root: Path, number: int, style: int) -> tuple[Record, Path]:
    n, ids = SAMPLES, ids_of(number)
    columns: dict[str, Any] = {
        "sample_id": ids, "prompt": ["p"] * n, "seed": list(range(n)), "style": [f"style {style}"] * n,
        "object": [f"thing {i}" for i in range(n)], "guidance": [9.0] * n, "n_steps": [50] * n,
        "scheduler": ["D"] * n, "model": ["m"] * n, "model_hash": ["f16:0"] * n, "height": [512] * n,
        "width": [512] * n,
    }  # fmt: skip
    rows = pa.Table.from_pydict(columns, schema=samples_schema(["style", "object"]))
    path = root / "samples" / f"{shard_of(number)}.parquet"
    for folder in (path.parent, root / "manifest/samples"):
        folder.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        layout.write_table(file, rows)
    data = path.read_bytes()
    written = durable.Written(len(data), hashlib.sha256(data).hexdigest())
    new = shards.NewShard("samples", path.stem, tuple(ids), {"v": "1"})
    record = shards._record(root, new, rows.schema, written)
    _write_record(root, number, record)
    return record, path


def as_former(root: Path) -> Path:
    """Return a store of the same files whose records version 0.1 reads, without the tables that it
    does not know."""
    former = root.with_name(f"{root.name}-former")
    if not (former / "whole").exists():
        shutil.rmtree(former, ignore_errors=True)
        later = shutil.ignore_patterns(".work", "SHA256SUMS", *DERIVED)
        shutil.copytree(root, former, ignore=later, copy_function=os.link)
        for path in (former / "manifest").rglob("*.json"):
            body = json.loads(path.read_bytes())
            for key in ("contents", "sha256"):
                body.pop(key, None)
            path.unlink()
            path.write_bytes(sealed(body | {"format_version": 1}))
        (former / "whole").touch()
    return former
