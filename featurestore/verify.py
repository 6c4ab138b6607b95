"""Verification of a store against its commit records (docs/format.md, section 4)."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.errors import DamageError, VersionError
from featurestore.format import schemas
from featurestore.format.activations import read_shard
from featurestore.format.checksums import check_file
from featurestore.format.durable import TEMPORARY_SUFFIX
from featurestore.format.records import FileEntry, Record, read_record, read_sealed
from featurestore.store import Store

_WORK = ".work"


class Problem(NamedTuple):
    """Something in a store that is not as its records say."""

    path: str
    """relative to the store"""
    what: str
    damage: bool
    """False for leftovers, which readers ignore"""


def verify(store: Store, deep: bool = False, progress: Callable[[str], object] = lambda path: None) -> list[Problem]:
    """Check every record and every file of a store; ``deep`` also reads every value.

    ``progress`` is called with the path of each record before it is checked. Reports all problems, never raises for one.
    """
    problems: list[Problem] = []
    records: list[Record] = []
    for path in _sealed_files(store.root):
        progress(str(path.relative_to(store.root)))
        record, problem = _read(path, store.root)
        problems += [problem] if problem else []
        records += [record] if record else []
    for record in records:
        problems += [Problem(path, what, True) for path, what in _check_shard(store, record, deep)]
    expected = {entry.path for record in records for entry in record.files}
    damaged = {problem.path for problem in problems}
    problems += [problem for problem in _leftovers(store.root, expected) if problem.path not in damaged]
    return problems


def _sealed_files(root: Path) -> list[Path]:
    return sorted((root / "manifest").rglob("*.json"))


def _read(path: Path, root: Path) -> tuple[Record | None, Problem | None]:
    relative = path.relative_to(root)
    try:
        if relative == Path("manifest/store.json"):
            read_sealed(path)
            return None, None
        record = read_record(path)
    except (DamageError, VersionError) as error:
        return None, Problem(str(relative), str(error).removeprefix(f"{path}: "), True)
    if record.location != relative:
        return None, Problem(str(relative), f"is the record of {record.location}", True)
    return record, None


def _check_shard(store: Store, record: Record, deep: bool) -> Iterator[tuple[str, str]]:
    for entry in record.files:
        wrong = check_file(store.root, entry)
        if wrong:
            yield entry.path, wrong
        elif entry.path.endswith(".parquet"):
            for what in _check_parquet(store, record, entry, deep):
                yield entry.path, what


def _check_parquet(store: Store, record: Record, entry: FileEntry, deep: bool) -> Iterator[str]:
    try:
        with pq.ParquetFile(store.root / entry.path) as file:
            rows, schema = file.metadata.num_rows, file.schema_arrow
        if rows != record.rows:
            yield f"has {rows} rows, its record says {record.rows}"
        if schemas.schema_id(schema) != record.schema:
            yield f"has schema {schemas.schema_id(schema)}, its record says {record.schema}"
        if deep:
            yield from _check_values(store, record, entry)
    except pa.ArrowException as error:
        yield f"is no Parquet file that can be read ({error})"


def _check_values(store: Store, record: Record, entry: FileEntry) -> Iterator[str]:
    table = pq.read_table(store.root / entry.path, page_checksum_verification=True, partitioning=None)
    if record.sample_ids:
        ids = table["sample_id"].to_numpy()
        if record.table.startswith("stats/"):
            fits = set(ids.tolist()) <= set(record.sample_ids)
        else:
            fits = list(dict.fromkeys(ids.tolist())) == list(record.sample_ids)
        if not fits:
            yield "holds other samples than its record lists"
    kind = record.table.split("/")[0]
    if kind == "activations":
        yield from _check_activations(store, record)
    if kind in ("codes", "stats"):
        yield from _check_features(table, kind)
    if kind == "stats":
        yield from _check_sums(store, record, table)


def _check_activations(store: Store, record: Record) -> Iterator[str]:
    shard = read_shard(store.root, record)
    for group in shard.groups:
        if not np.isfinite(group).all():
            yield "holds activations that are not finite"
            return


def _check_features(table: pa.Table, kind: str) -> Iterator[str]:
    n_latents = int((table.schema.metadata or {}).get(b"featurestore.n_latents", b"0"))
    column = table["features"].combine_chunks().flatten().flatten() if kind == "codes" else table["feature"]
    features = column.to_numpy()
    if len(features) and not (features.min() >= 0 and features.max() < n_latents):
        yield f"holds features outside 0…{n_latents - 1}"


def _check_sums(store: Store, record: Record, stats: pa.Table) -> Iterator[str]:
    """Compare how often each (sample, step, branch) fired with its codes, which hold the same events."""
    codes_record = store.record(record.table.replace("stats/", "codes/", 1), record.shard)
    if codes_record is None:
        return
    path = store.root / codes_record.files[0].path
    if not path.is_file():
        return
    codes = pq.read_table(path, columns=["sample_id", "step", "branch", "features"], partitioning=None)
    fired = codes["features"].combine_chunks()
    offsets = fired.values.offsets.to_numpy()[fired.offsets.to_numpy()]
    keys = zip(*(codes[name].to_pylist() for name in ("sample_id", "step", "branch")), strict=True)
    expected = {key: int(n) for key, n in zip(keys, np.diff(offsets), strict=True) if n}
    grouped = stats.group_by(["sample_id", "step", "branch"]).aggregate([("n_positions", "sum")])
    found_keys = zip(*(grouped[name].to_pylist() for name in ("sample_id", "step", "branch")), strict=True)
    found = dict(zip(found_keys, grouped["n_positions_sum"].to_pylist(), strict=True))
    if found != expected:
        n = len({key for key in set(found) | set(expected) if found.get(key) != expected.get(key)})
        yield f"disagrees with the codes in {n} of {len(expected)} (sample, step, branch)"


def _leftovers(root: Path, expected: set[str]) -> Iterator[Problem]:
    for directory, folders, names in os.walk(root):
        folders[:] = sorted(f for f in folders if f not in (_WORK, ".git", ".cache"))
        for name in sorted(names):
            path = (Path(directory) / name).relative_to(root).as_posix()
            if name.endswith(TEMPORARY_SUFFIX) and name.startswith("."):
                yield Problem(path, "is a temporary file of an interrupted write: it can be deleted", False)
            elif name.endswith(".parquet") and path not in expected:
                yield Problem(
                    path, "has no commit record: readers ignore it; running its command again replaces it", False
                )
