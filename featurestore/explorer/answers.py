"""Answers for a page: computed in a pool, kept while the store stays as it is, cancelled when
nobody waits any more."""

import asyncio
import contextlib
import hashlib
import os
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from featurestore.errors import QueryError
from featurestore.store import Store
from featurestore.vocabulary import BY_FEATURE, CANDIDATES

THREADS = 3
KEPT_BYTES = 128 * 2**20
_STATE_SECONDS = 1.0
_LOOK_SECONDS = 0.1
_DERIVED = frozenset({"sums", "totals", *BY_FEATURE, *CANDIDATES})
"""made when a question first needs them: they change no answer"""

T = TypeVar("T")
Gone = Callable[[], Awaitable[bool]]
"""says whether the one who asked has left"""


class CancelledError(QueryError):
    """An answer that was stopped: nobody waits for it, or it took too long."""


class _Job:
    """One computation, and whoever waits for it."""

    def __init__(self) -> None:
        self.future: Future[Any] = Future()
        self.waiting = 0
        self.reason = ""
        self._connections: list[Any] = []

    def run(self, compute: Callable[[], Any]) -> Any:
        """Compute on a thread of the pool; every DuckDB connection that it opens can be
        interrupted."""
        from queries.connection.session import watched

        with watched(self._opened):
            return compute()

    def _opened(self, connection: Any) -> None:
        self._connections.append(connection)
        if self.reason:
            raise CancelledError(self.reason)

    def interrupt(self) -> None:
        """Interrupt whatever statement runs now; between statements this does nothing, so it is
        called until it helped."""
        import duckdb

        for connection in self._connections:
            with contextlib.suppress(duckdb.Error):
                connection.interrupt()


class Answers:
    """Computes each answer once for a state of the store."""

    def __init__(self, store: Store, threads: int = THREADS, kept_bytes: int = KEPT_BYTES) -> None:
        self.store = store
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="answer")
        self._kept: OrderedDict[tuple[Any, ...], tuple[Any, int]] = OrderedDict()
        self._kept_bytes, self._limit = 0, kept_bytes
        self._running: dict[tuple[Any, ...], _Job] = {}
        self._state, self._looked = "", -_STATE_SECONDS

    def state(self) -> str:
        """Return a name for what is committed now; looked at once a second at most."""
        now = time.monotonic()
        if now - self._looked >= _STATE_SECONDS:
            self._state, self._looked = _fingerprint(self.store.root / "manifest"), now
        return self._state

    async def get(
        self,
        key: tuple[Any, ...],
        compute: Callable[[], T],
        *,
        gone: Gone | None = None,
        seconds: float | None = None,
        size: Callable[[T], int] | None = None,
    ) -> T:
        """Return what ``compute`` returns, computed once for all that ask under this key while the
        store stays as it is.

        ``gone`` says whether the one who asked has left: a computation that nobody waits for is
        stopped. ``size`` is an answer's bytes; without it an answer is not kept.

        Raises:
            CancelledError: it was stopped, or took longer than ``seconds``.
        """
        whole = (self.state(), *key)
        if whole in self._kept:
            self._kept.move_to_end(whole)
            return self._kept[whole][0]
        job = self._running.get(whole)
        if job is None or job.reason:  # one that is being stopped answers nobody
            job = self._start(whole, compute)
        job.waiting += 1
        try:
            value = await _wait(job, gone, seconds)
        finally:
            job.waiting -= 1
            if job.waiting == 0 and not job.future.done():
                await _stop(job, job.reason or "nobody waits for this answer any more.")
        if size is not None:
            self._keep(whole, value, size(value))
        return value

    def _start(self, key: tuple[Any, ...], compute: Callable[[], Any]) -> _Job:
        job = _Job()
        job.future = self._pool.submit(job.run, compute)
        self._running[key] = job
        job.future.add_done_callback(lambda _: self._ended(key, job))
        return job

    def _ended(self, key: tuple[Any, ...], job: _Job) -> None:
        if self._running.get(key) is job:
            del self._running[key]

    def _keep(self, key: tuple[Any, ...], value: Any, n_bytes: int) -> None:
        if key in self._kept or n_bytes > self._limit // 4:
            return
        self._kept[key] = (value, n_bytes)
        self._kept_bytes += n_bytes
        while self._kept_bytes > self._limit:
            _, (_, oldest) = self._kept.popitem(last=False)
            self._kept_bytes -= oldest

    def close(self) -> None:
        """Stop what runs and let the threads end."""
        for job in list(self._running.values()):
            job.reason = job.reason or "the explorer was closed."
            job.interrupt()
        self._pool.shutdown(wait=False, cancel_futures=True)


async def _wait(job: _Job, gone: Gone | None, seconds: float | None) -> Any:
    waiter = asyncio.wrap_future(job.future)
    waiter.add_done_callback(
        lambda done: done.cancelled() or done.exception()
    )  # whoever left does not look
    began = time.monotonic()
    while True:
        done, _ = await asyncio.wait({waiter}, timeout=_LOOK_SECONDS)
        if done:
            if job.reason and (waiter.cancelled() or waiter.exception() is not None):
                raise CancelledError(job.reason)
            return waiter.result()
        if gone is not None and await gone():
            raise CancelledError("nobody waits for this answer any more.")
        if seconds is not None and time.monotonic() - began > seconds:
            job.reason = (
                f"stopped after {seconds:g} s: ask for less, or run it with "
                f"'featurestore sql' in a terminal."
            )
            raise CancelledError(job.reason)


async def _stop(job: _Job, reason: str) -> None:
    """Cancel a job that waits in the queue, or interrupt it until it ends."""
    job.reason = reason
    job.future.cancel()
    for _ in range(200):
        if job.future.done():
            return
        job.interrupt()
        await asyncio.sleep(0.05)


def _fingerprint(manifest: Path) -> str:
    digest = hashlib.sha256()
    for path, stat in _entries(manifest, _DERIVED):
        digest.update(f"{path}\n{stat.st_mtime_ns}\n{stat.st_ino}\n".encode())
    return digest.hexdigest()[:16]


def _entries(
    directory: Path, left_out: frozenset[str] = frozenset()
) -> Iterator[tuple[str, os.stat_result]]:
    with contextlib.suppress(FileNotFoundError), os.scandir(directory) as found:
        for entry in sorted(found, key=lambda e: e.name):
            if entry.name in left_out:
                continue
            if entry.is_dir():
                yield from _entries(Path(entry.path))
            elif entry.name.endswith(".json"):
                with contextlib.suppress(FileNotFoundError):
                    yield entry.path, entry.stat()
