"""Stopping: SIGTERM as Ctrl-C, queries that a signal stops within a second, output that nobody
reads any more."""

import contextlib
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, TextIO

import click

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

INTERRUPTED = "Interrupted. What was committed stays; run the same command again to go on."


class Terminated(KeyboardInterrupt):
    """SIGTERM has come, which schedulers send."""


@contextlib.contextmanager
def terminable() -> Iterator[list[int]]:
    """Have SIGTERM do what Ctrl-C does, as :class:`Terminated`; the list is no longer empty when it
    has come."""
    came: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        came.append(number)
        handler = signal.getsignal(signal.SIGINT)
        # In the background a shell has SIGINT ignored; a training has a handler of its own, to
        # finish a step first.
        if not callable(handler) or handler is signal.default_int_handler:
            raise Terminated
        handler(signal.SIGINT, frame)

    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield came
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def stoppable(timeout: float | None = None) -> Iterator[None]:
    """Have a signal, or ``timeout`` seconds, stop the queries of the block; what they spilled to
    disk is removed."""
    from queries.connection.stopping import stoppable as stopping
    from queries.connection.stopping import sweep

    def leave(number: int) -> None:
        """End the process: the query is in a function that nothing can interrupt."""
        click.echo(INTERRUPTED, err=True)
        sys.stderr.flush()
        sweep(of=os.getpid())
        os._exit(128 + number)

    sweep()
    with stopping(timeout, leave):
        yield


class _Pipe(io.RawIOBase):
    """A file descriptor that swallows everything once its reader has gone, as ``| head -1``
    does."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def write(self, data: "Buffer") -> int:
        try:
            return os.write(self.descriptor, data)
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.descriptor)
            os.close(nowhere)
            return len(memoryview(data).cast("B"))

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.descriptor

    def isatty(self) -> bool:
        return os.isatty(self.descriptor)


@contextlib.contextmanager
def pipes_may_close() -> Iterator[None]:
    """Let a closed pipe end the printing of the block and not its work, on stdout and on stderr."""
    before = sys.stdout, sys.stderr
    if before == (
        sys.__stdout__,
        sys.__stderr__,
    ):  # not while something else, such as a test, takes the output
        sys.stdout, sys.stderr = _through_pipe(sys.stdout), _through_pipe(sys.stderr)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before


def _through_pipe(stream: TextIO) -> io.TextIOWrapper:
    stream.flush()
    buffered = io.BufferedWriter(_Pipe(stream.fileno()))
    at_once = stream is sys.__stderr__ or stream.isatty()
    return io.TextIOWrapper(
        buffered, stream.encoding, stream.errors, line_buffering=at_once, write_through=at_once
    )
