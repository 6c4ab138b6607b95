"""What is written beside the denoiser: its tensors on their way to the disk, and the shards that
they end in."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

STAGED_BYTES = 256 * 2**20
"""of tensors that were captured and not written yet; then the denoiser waits"""
_THREADS = 2


@dataclass
class Timing:
    """Where the time of a collection went, in seconds."""

    total: float = 0.0
    waiting: float = 0.0
    """generation stood still because what came before was still being written"""
    tail: float = 0.0
    """from the last picture until the last shard was committed"""
    _busy: list[float] = field(default_factory=list)

    @property
    def writing(self) -> float:
        """The writer's threads were busy, all together."""
        return sum(self._busy)

    def busy(self, job: Callable[[], object]) -> None:
        """Run a job of the writer's."""
        began = time.perf_counter()
        try:
            job()
        finally:
            self._busy.append(time.perf_counter() - began)

    def summary(self, n_bytes: int) -> str:
        """Return one line for people."""
        if self.total <= 0 or self.writing <= 0:
            return ""
        waited, tail = self.waiting / self.total, self.tail / self.total
        wrote, speed = self.writing / self.total, n_bytes / self.writing / 1e6
        return (
            f"generating {1 - waited - tail:.0%} of the time, waiting for the writer {waited:.0%}, "
            f"after the last picture {self.tail:.1f} s; the writer busy {wrote:.0%} of a core, "
            f"{speed:,.0f} MB/s."
        )


class Staged:
    """A copy in host memory of a captured tensor, being made or ready."""

    def __init__(self, tensor: Tensor, block: Tensor, copied: Any) -> None:
        self._tensor, self.block, self._copied = tensor, block, copied

    def ready(self) -> Tensor:
        """Wait for the copy; return it, of the shape and the strides of its source."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._tensor


class Staging:
    """Host memory that captured tensors are copied into, used again and again; never more than a
    limit.

    For CUDA it is page-locked, and filled on a stream of its own, beside the denoiser's work:
    copying waits for nothing.

    Attributes:
        held: Bytes of the copies that were not given back.
        peak: The largest that ``held`` has been.
    """

    def __init__(self, device: torch.device, timing: Timing, limit: int = STAGED_BYTES) -> None:
        self._device, self._timing, self._limit = device, timing, limit
        self._stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._free: dict[int, list[Tensor]] = {}
        self._changed = threading.Condition()
        self.held = self.peak = 0

    def copy(self, source: Tensor) -> Staged:
        """Begin to copy a tensor; where the limit is reached, wait until others were given back."""
        if source.is_cuda or torch.empty_like(source, device="meta").stride() != source.stride():
            # A copy of the same strides is one piece: fast, and for CUDA asynchronous.
            source = source.contiguous()
        block = self._take(source.numel() * source.element_size())
        host = block.view(source.dtype).as_strided(source.shape, source.stride())
        if self._stream is None:
            # One memcpy by this thread: torch would share it among threads, and wait for them.
            flat = source.as_strided((source.numel(),), (1,)).view(torch.uint8)
            np.copyto(block.numpy(), flat.numpy())
            return Staged(host, block, None)
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            host.copy_(source, non_blocking=True)
            copied = self._stream.record_event()
        source.record_stream(self._stream)
        return Staged(host, block, copied)

    def _take(self, n_bytes: int) -> Tensor:
        with self._changed:
            if self.held and self.held + n_bytes > self._limit:
                began = time.perf_counter()
                self._changed.wait_for(lambda: not self.held or self.held + n_bytes <= self._limit)
                self._timing.waiting += time.perf_counter() - began
            self.held += n_bytes
            self.peak = max(self.peak, self.held)
            free = self._free.get(n_bytes)
            if free:
                return free.pop()
        return torch.empty(n_bytes, dtype=torch.uint8, pin_memory=self._stream is not None)

    def give_back(self, staged: Staged) -> None:
        """Let the memory of a copy be used again."""
        with self._changed:
            self.held -= len(staged.block)
            self._free.setdefault(len(staged.block), []).append(staged.block)
            self._changed.notify_all()


class BackgroundWriter:
    """Threads that write rows as they come, and one that finishes a shard while the next is
    generated."""

    def __init__(self, timing: Timing) -> None:
        self._rows = ThreadPoolExecutor(_THREADS, "rows")
        self._shards = ThreadPoolExecutor(1, "shards")
        self._last: Future[None] | None = None
        self._timing = timing

    def later(self, job: Callable[[], object]) -> "Future[None]":
        """Run a job for some rows soon, beside others."""
        return self._rows.submit(self._timing.busy, job)

    def submit(self, job: Callable[[], object]) -> None:
        """Start to finish a shard when the one before is; raises what that one raised."""
        began = time.perf_counter()
        try:
            self.wait()
        finally:
            self._timing.waiting += time.perf_counter() - began
        self._last = self._shards.submit(self._timing.busy, job)

    def wait(self) -> None:
        """Wait for the last shard; raises what it raised."""
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def close(self) -> None:
        """Wait for what was begun, whatever comes of it, and end the threads."""
        self._shards.shutdown()
        self._rows.shutdown()
