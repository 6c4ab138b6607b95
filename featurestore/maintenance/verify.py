"""Verification of a store against its commit records (docs/format.md, section 4)."""

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.errors import DamageError, SAEError, VersionError
from featurestore.format import durable, footers
from featurestore.format.activations import read_shard
from featurestore.format.checksums import check_shard
from featurestore.format.ledger import LEDGER, read_ledger
from featurestore.format.records import (
    MARK,
    FileEntry,
    Record,
    read_mark,
    read_record,
    stranger,
)
from featurestore.saes import load_config
from featurestore.store import Store

APART = (".work", ".git", ".cache", ".set-aside")
"""directories in a store's directory that are not part of the store"""


class Problem(NamedTuple):
    """Something in a store that is not as its records say."""

    path: str
    """relative to the store"""
    what: str
    damage: bool
    """False for leftovers, which readers ignore"""


def verify(
    store: Store, deep: bool = False, progress: Callable[[str], object] = lambda path: None
) -> list[Problem]:
    """Check every record and every file of a store; ``deep`` also reads every value.

    ``progress`` is called with the path of each record before it is checked. Reports all problems
    and never raises for one, whatever lies in the store: a file that cannot be read is a problem
    like any other.
    """
    problems, records = _read_records(store.root, progress)
    for record in records:
        problems += [Problem(path, what, True) for path, what in _check_shard(store, record, deep)]
    problems += _check_ledger(store.root, records, {problem.path for problem in problems})
    expected = {entry.path for record in records for entry in record.files}
    damaged = {problem.path for problem in problems}
    return problems + [
        problem for problem in _walk(store.root, expected) if problem.path not in damaged
    ]


def _read_records(
    root: Path, progress: Callable[[str], object]
) -> tuple[list[Problem], list[Record]]:
    """Return what is wrong with the mark and the records, and the records that hold."""
    problems: list[Problem] = []
    records: list[Record] = []
    for relative in _sealed_files(root):
        progress(relative)
        strange = stranger(relative)
        if strange is not None:
            problem = Problem(
                strange, "belongs to no table and shard that this version knows", True
            )
            problems += [problem] if problem not in problems else []
            continue
        table, _, name = relative.removeprefix("manifest/").rpartition("/")
        try:
            if relative == str(MARK):
                read_mark(root)
            else:
                records.append(read_record(root, table, name.removesuffix(".json")))
        except (DamageError, VersionError) as error:
            problems.append(
                Problem(relative, str(error).removeprefix(f"{root / relative}").lstrip(": "), True)
            )
    return problems, records


def _sealed_files(root: Path) -> list[str]:
    """Return the files under ``manifest/`` that should be sealed JSON, relative to the root, in
    order."""
    found = []
    for directory, folders, names in os.walk(root / "manifest"):
        folders.sort()
        found += [
            Path(directory, name).relative_to(root).as_posix()
            for name in names
            if name.endswith(".json")
        ]
    return sorted(name for name in found if not name.rpartition("/")[2].startswith("."))


def _check_ledger(root: Path, records: list[Record], damaged: set[str]) -> Iterator[Problem]:
    """Compare the records that are there with those that were committed (docs/format.md, section
    2)."""
    try:
        committed = read_ledger(root)
    except DamageError as error:
        yield Problem(
            LEDGER, f"{error}: it is derived; 'featurestore repair' writes it anew", False
        )
        return
    there = {record.location.as_posix(): record for record in records}
    replaced = {f"manifest/{r.table}/{name}.json" for r in records for name in r.covers}
    for path, digest in committed.items():
        if path in damaged or (path not in there and path in replaced):
            continue
        if path not in there:
            yield Problem(
                path, "is missing: this record was committed, and nothing has removed it", True
            )
        elif hashlib.sha256(there[path].to_bytes()).hexdigest() != digest:
            yield Problem(path, "is not the record that was committed", True)


def _check_shard(store: Store, record: Record, deep: bool) -> Iterator[tuple[str, str]]:
    for entry in record.files:
        wrong = check_shard(store.root, record, entry)
        if wrong:
            yield entry.path, wrong
        elif deep and entry.path.endswith(".parquet"):
            try:
                yield from ((entry.path, what) for what in _check_values(store, record, entry))
            except DamageError as error:
                yield entry.path, str(error).removeprefix(f"{store.root / entry.path}: ")
            except footers.MALFORMED as error:
                yield entry.path, footers.unreadable(error)
        elif deep and entry.path.endswith("/config.json"):
            try:
                load_config(store, record.shard)
            except SAEError as error:
                yield entry.path, str(error).removeprefix(f"{store.root / entry.path}").lstrip(": ")


def _check_values(store: Store, record: Record, entry: FileEntry) -> Iterator[str]:
    table = footers.read_table(store.root / entry.path)
    if record.sample_ids:
        ids = table["sample_id"].to_numpy()
        if record.table.startswith(("stats/", "attention/")):
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
    column = (
        table["features"].combine_chunks().flatten().flatten()
        if kind == "codes"
        else table["feature"]
    )
    features = column.to_numpy()
    if len(features) and not (features.min() >= 0 and features.max() < n_latents):
        yield f"holds features outside 0…{n_latents - 1}"


def _check_sums(store: Store, record: Record, stats: pa.Table) -> Iterator[str]:
    """Compare how often each (sample, step, branch) fired with its codes, which hold the same
    events, wherever they were put since."""
    ids = set(record.sample_ids)
    table = record.table.replace("stats/", "codes/", 1)
    same = store.record(table, record.shard)
    holders = [same] if same is not None else _holders(store, table, ids)
    if not ids or not ids <= {i for one in holders for i in one.sample_ids}:
        return  # not encoded: readers say so
    if any(check_shard(store.root, one, one.files[0]) for one in holders):
        return  # said of the codes themselves
    columns = ["sample_id", "step", "branch", "features"]
    parts = [footers.read_table(store.root / one.files[0].path, columns) for one in holders]
    codes = pa.concat_tables([part.replace_schema_metadata(None) for part in parts])
    codes = codes.filter(pc.is_in(codes["sample_id"], pa.array(sorted(ids), pa.int64())))
    fired = codes["features"].combine_chunks()
    offsets = fired.values.offsets.to_numpy()[fired.offsets.to_numpy()]
    keys = zip(*(codes[name].to_pylist() for name in ("sample_id", "step", "branch")), strict=True)
    expected = {key: int(n) for key, n in zip(keys, np.diff(offsets), strict=True) if n}
    grouped = stats.group_by(["sample_id", "step", "branch"]).aggregate([("n_positions", "sum")])
    found_keys = zip(
        *(grouped[name].to_pylist() for name in ("sample_id", "step", "branch")), strict=True
    )
    found = dict(zip(found_keys, grouped["n_positions_sum"].to_pylist(), strict=True))
    if found != expected:
        n = len({key for key in set(found) | set(expected) if found.get(key) != expected.get(key)})
        yield f"disagrees with the codes in {n} of {len(expected)} (sample, step, branch)"


def _holders(store: Store, table: str, ids: set[int]) -> list[Record]:
    """Return the shards of a table that hold some samples; none if a record is damaged, which is
    reported elsewhere."""
    try:
        return [one for one in store.records(table) if not ids.isdisjoint(one.sample_ids)]
    except (DamageError, VersionError):
        return []


def _walk(root: Path, expected: set[str]) -> Iterator[Problem]:
    """Yield what lies in a store without belonging to it: links, leftovers, directories that cannot
    be read."""
    refused: list[OSError] = []
    for directory, folders, names in os.walk(root, onerror=refused.append):
        folders[:] = sorted(f for f in folders if f not in APART)
        for name in sorted([*names, *folders]):
            path = Path(directory, name)
            relative = path.relative_to(root).as_posix()
            if path.is_symlink():
                yield Problem(relative, "is a symbolic link: no link in a store is followed", True)
            elif durable.TEMPORARY.fullmatch(name):
                yield Problem(
                    relative,
                    "is a temporary file of an interrupted write: it can be deleted",
                    False,
                )
            elif name.endswith(".parquet") and relative not in expected:
                yield Problem(
                    relative,
                    "has no commit record: readers ignore it; running its command again replaces "
                    "it",
                    False,
                )
    for error in refused:
        where = Path(os.fsdecode(error.filename)).relative_to(root).as_posix()
        yield Problem(where, f"cannot be read ({error.strerror})", True)
