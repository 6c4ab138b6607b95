"""Parquet files that contradict themselves, sealed again: what passes the gate goes through every
library that decodes it, in processes of their own. None may end, hang or take much memory."""

import multiprocessing
import os
import random
import resource
import shutil
import struct
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import polars as pl

from featurestore.errors import DamageError
from featurestore.format import footers
from featurestore.format.parquet.structure import check_structure
from tests.torture.mutate import mutate_bytes
from tests.torture.mutate_parquet import mutate_footer, mutate_pages

SPAWN = multiprocessing.get_context("spawn")
"""a fork would have the locks, but not the threads, of libraries that were used before"""
MAX_GROWTH_MB = 600
MAX_SECONDS = 600
_CHUNK = 500
_PLACE = struct.Struct("<q16s")
Change = Callable[[dict[Path, bytes], int], tuple[Path, bytes]]


@dataclass
class Decoded:
    """What became of changed files."""

    tried: int = 0
    passed: int = 0
    """the gate"""
    refused: Counter = field(default_factory=Counter)
    """library → files that it refused after the gate had let them pass"""
    broken: list[str] = field(default_factory=list)


def decode(
    work: Path,
    n: int,
    seed: int = 0,
    *,
    change: Change | None = None,
    libraries: Mapping[str, Callable[[Path], object]] | None = None,
) -> Decoded:
    """Change the Parquet files of a small store in ``n`` ways, and decode what passes the gate.

    ``change``: files and a seed → which file becomes what, by default :func:`changed`;
    ``libraries`` are by default :data:`LIBRARIES`.
    """
    from tests.torture.flips import make  # here, for it loads torch, which the processes need not

    make(work / "store")
    files = {
        path.relative_to(work / "store"): path.read_bytes()
        for path in sorted((work / "store").rglob("*.parquet"))
    }
    total, at, end = Decoded(), seed, seed + n
    shared = SPAWN.RawArray("c", _PLACE.size)
    while at < end:
        results = SPAWN.Queue()
        seeds = range(at, min(end, at + _CHUNK))
        child = SPAWN.Process(
            target=_chunk,
            args=(work / "tried", files, seeds),
            kwargs={
                "shared": shared,
                "results": results,
                "change": change,
                "libraries": libraries,
            },
        )
        child.start()
        child.join(MAX_SECONDS)
        if child.exitcode == 0:
            found: Decoded = results.get()
            at = seeds.stop
        else:
            child.kill()
            child.join()
            ended, library = _PLACE.unpack(shared.raw)
            what = f"{ended} {library.rstrip(bytes(1)).decode()}"
            found = Decoded(ended - at + 1, broken=[f"{what} ended with {child.exitcode}"])
            at = ended + 1
        total.tried += found.tried
        total.passed += found.passed
        total.refused += found.refused
        total.broken += found.broken
    shutil.rmtree(work / "tried", ignore_errors=True)
    return total


def changed(files: dict[Path, bytes], seed: int) -> tuple[Path, bytes]:
    """Return the file that a seed changes, and its new bytes."""
    rng = random.Random(seed)
    path = rng.choice(sorted(files))
    data = files[path]
    for _ in range(rng.choice([1, 1, 1, 2])):
        how = rng.choice([mutate_footer, mutate_pages, mutate_pages, mutate_bytes])
        try:
            data = how(data, rng)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):  # changed before
            data = mutate_bytes(data, rng)
    return path, data


def _chunk(
    work: Path,
    files: dict[Path, bytes],
    seeds: range,
    *,
    shared: Any,
    results: Any,
    change: Change | None,
    libraries: Mapping[str, Callable[[Path], object]] | None,
) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # Polars prints where it panics
    found = Decoded()
    for seed in seeds:
        name, data = (change or changed)(files, seed)
        path = work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        found.tried += 1
        _see(shared, seed, "gate")
        try:
            check_structure(path)
            footers.read_schema(path)
        except (DamageError, *footers.MALFORMED):
            continue
        found.passed += 1
        for library, read in (libraries or LIBRARIES).items():
            _see(shared, seed, library)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            try:
                read(path)
            except REFUSALS:
                found.refused[library] += 1
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
            if grown > MAX_GROWTH_MB:
                found.broken.append(f"{seed} {library} takes {grown} MB")
    results.put(found)


def _see(shared: Any, seed: int, library: str) -> None:
    shared.raw = _PLACE.pack(seed, library.encode())


def _duckdb(path: Path) -> None:
    with duckdb.connect(config={"threads": 2}) as connection:
        connection.sql("select * from read_parquet($path)", params={"path": str(path)}).fetchall()


LIBRARIES = {
    "pyarrow": footers.read_table,
    "duckdb": _duckdb,
    "polars": lambda path: pl.scan_parquet(path, glob=False, hive_partitioning=False).collect(),
}
REFUSALS = (
    DamageError, duckdb.Error, pl.exceptions.PolarsError, pl.exceptions.PanicException, UnicodeDecodeError,
    ValueError, OverflowError,
)  # fmt: skip
