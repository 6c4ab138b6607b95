"""Ctrl-C that waits for a step to end."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Interruption:
    """Whether SIGINT has arrived."""

    def __init__(self) -> None:
        self.wanted = False

    def check(self) -> None:
        """Raise KeyboardInterrupt if SIGINT has arrived."""
        if self.wanted:
            raise KeyboardInterrupt


@contextlib.contextmanager
def interruption() -> Iterator[Interruption]:
    """Turn the first SIGINT inside the block into a wish; the second interrupts at once, as without this block.

    Python delivers signals to the main thread only: in another thread the wish is never expressed.
    """
    state = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield state
        return
    before = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: FrameType | None) -> None:
        state.wanted = True
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield state
    finally:
        signal.signal(signal.SIGINT, before)
