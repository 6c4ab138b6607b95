"""Answers that took long, kept in this user's cache for the next start of the explorer.

An answer is kept under the state of the store, the question, its parameters and the SQL of all
questions, with a checksum before it. Missing, damaged or another user's, it is computed again.
"""

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from featurestore.errors import DiskError
from featurestore.format import durable
from featurestore.format.canonical import canonical_json
from featurestore.format.verified import cache_directory, why_not

SLOW_SECONDS = 0.3
"""of computing, from which on an answer is kept"""
LARGEST, LIMIT = 16 * 2**20, 256 * 2**20
"""bytes of one answer, and of all"""
_DIGEST = 32


class Kept:
    """The answers about one store that are on disk."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._directory = cache_directory() / "answers"

    def get(
        self, state: str, name: str, given: Mapping[str, Any], compute: Callable[[], pa.Table]
    ) -> pa.Table:
        """Return the answer to a question, from disk where it is there."""
        if why_not(self._root) is not None:
            return compute()
        about = [str(self._root.resolve()), state, name, dict(given), _library()]
        path = self._directory / f"{hashlib.sha256(canonical_json(about).encode()).hexdigest()}"
        found = _read(path)
        if found is not None:
            return found
        began = time.perf_counter()
        table = compute()
        if time.perf_counter() - began >= SLOW_SECONDS and table.nbytes <= LARGEST:
            self._keep(path, table)
        return table

    def _keep(self, path: Path, table: pa.Table) -> None:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        data = sink.getvalue().to_pybytes()
        with contextlib.suppress(OSError, DiskError):  # full or read-only: nothing of it is needed
            self._directory.mkdir(mode=0o700, exist_ok=True)
            durable.write_bytes(path, hashlib.sha256(data).digest() + data)
            self._make_room()

    def _make_room(self) -> None:
        """Remove the answers that were used longest ago, until the rest is small enough."""
        with os.scandir(self._directory) as entries:
            files = sorted((e.stat().st_mtime_ns, e.path, e.stat().st_size) for e in entries)
        too_much = sum(size for *_, size in files) - LIMIT
        for _, path, size in files:
            if too_much <= 0:
                break
            Path(path).unlink(missing_ok=True)
            too_much -= size


def _read(path: Path) -> pa.Table | None:
    try:
        if path.is_symlink():
            return None
        data = path.read_bytes()
        if hashlib.sha256(data[_DIGEST:]).digest() != data[:_DIGEST]:
            return None
        os.utime(path)
    except OSError:
        return None
    return pa.ipc.open_stream(data[_DIGEST:]).read_all()


@cache
def _library() -> str:
    """Return a name for what all questions say, and for what answers them."""
    from importlib.metadata import version

    from queries.questions import questions

    texts = [[name, asked.sql, dict(asked.columns)] for name, asked in questions().items()]
    about = [texts, version("featurestore"), version("duckdb")]
    return hashlib.sha256(canonical_json(about).encode()).hexdigest()
