"""Write work items beside the generation of the next."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass


@dataclass
class Timing:
    """Where the time of a collection went, in seconds."""

    total: float = 0.0
    waiting: float = 0.0
    """generation stood still because the item before was still being written"""
    writing: float = 0.0
    """the writer was busy"""

    def summary(self, n_bytes: int) -> str:
        """Return one line for people."""
        if self.total <= 0 or self.writing <= 0:
            return ""
        waited, wrote, speed = self.waiting / self.total, self.writing / self.total, n_bytes / self.writing / 1e6
        return (
            f"generating {1 - waited:.0%} of the time, waiting for the writer {waited:.0%}; "
            f"the writer busy {wrote:.0%}, {speed:,.0f} MB/s."
        )


class BackgroundWriter:
    """Runs one job at a time in a thread of its own; ``submit`` waits for the job before, so at most two items are in memory."""

    def __init__(self, timing: Timing) -> None:
        self._pool = ThreadPoolExecutor(1, "writer")
        self._last: Future[None] | None = None
        self._timing = timing

    def submit(self, job: Callable[[], None]) -> None:
        """Start a job when the one before has ended; raises what that one raised."""
        self.wait()
        self._last = self._pool.submit(self._run, job)

    def _run(self, job: Callable[[], None]) -> None:
        began = time.perf_counter()
        try:
            job()
        finally:
            self._timing.writing += time.perf_counter() - began

    def wait(self) -> None:
        """Wait for the last job; raises what it raised."""
        last, self._last = self._last, None
        if last is not None:
            began = time.perf_counter()
            try:
                last.result()
            finally:
                self._timing.waiting += time.perf_counter() - began

    def close(self) -> None:
        """Wait for the last job, whatever came of it, and end the thread."""
        self._pool.shutdown()
