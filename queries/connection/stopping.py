"""Queries that Ctrl-C, SIGTERM or a time limit stop while DuckDB computes."""

import os
import select
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb

from featurestore.errors import QueryError
from queries.connection.session import SPILL_PREFIX, watched

_SIGNALS = {signal.SIGINT, signal.SIGTERM}
_PATIENCE = 0.8
"""seconds in which DuckDB, which looks for an interruption between two chunks of rows, usually
stops"""


@contextmanager
def stoppable(
    timeout: float | None = None, give_up: Callable[[int], object] | None = None
) -> Iterator[None]:
    """Have a signal, or ``timeout`` seconds, stop what the connections opened in the block compute.

    Python runs its signal handlers between two of its own instructions, and a query is one
    instruction: another thread is told of the signal at once and interrupts DuckDB, after which the
    handler runs as ever (KeyboardInterrupt). ``give_up`` is called with the signal's number, in
    that thread, if DuckDB has not stopped after a moment: it is in a single call of a function that
    takes long.

    Raises:
        QueryError: the time is up.
        KeyboardInterrupt: as the signal's handler says.
    """
    watch = _Watch(timeout, give_up)
    try:
        with watched(watch.connections.append):
            yield
    except (
        QueryError,
        duckdb.Error,
        RuntimeError,
    ) as error:  # DuckDB makes a RuntimeError of a KeyboardInterrupt
        watch.close()
        if watch.timed_out:
            raise QueryError(
                f"the query was stopped: it took longer than --timeout {timeout:g} seconds."
            ) from error
        if watch.signalled:
            raise KeyboardInterrupt from error
        raise
    finally:
        watch.close()


class _Watch:
    """A thread that waits for a signal, the end of the time, or the end of the block."""

    def __init__(self, timeout: float | None, give_up: Callable[[int], object] | None) -> None:
        self.connections: list[duckdb.DuckDBPyConnection] = []
        self.timed_out = False
        self.signalled = 0
        self._give_up = give_up
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._ended = threading.Event()
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:
            self._before = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread; whatever signal has come until now is known afterwards."""
        if self._ended.is_set():
            return
        self._ended.set()
        if self._main:
            signal.set_wakeup_fd(self._before)
        self._writer.send(b"\0")
        self._thread.join()
        self._writer.close()
        while more := self._reader.recv(64):
            self._note(more)
        self._reader.close()

    def _run(self) -> None:
        while not self._ended.is_set():
            left = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
            ready, _, _ = select.select([self._reader], [], [], left)
            self.timed_out = not ready
            if not ready or self._note(self._reader.recv(64)):
                self._stop()

    def _note(self, numbers: bytes) -> bool:
        came = _SIGNALS.intersection(numbers)
        self.signalled = max(came, default=self.signalled)
        return bool(came)

    def _stop(self) -> None:
        """Interrupt again and again: a query that has not begun, or follows, is not stopped by one
        interruption."""
        began = time.monotonic()
        while not self._ended.wait(0.02):
            for connection in self.connections:
                try:
                    connection.interrupt()
                except duckdb.Error:  # closed
                    continue
            if self.signalled and self._give_up and time.monotonic() - began > _PATIENCE:
                self._give_up(self.signalled)


def sweep(of: int | None = None) -> None:
    """Remove what queries spilled to disk and could not remove: those of the process ``of``, or of
    all that have ended."""
    for path in Path(tempfile.gettempdir()).glob(f"{SPILL_PREFIX}*"):
        pid = path.name.removeprefix(SPILL_PREFIX).partition("-")[0]
        if (
            pid.isdigit()
            and (int(pid) == of or (of is None and not _alive(int(pid))))
            and not path.is_symlink()
        ):
            shutil.rmtree(path, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
