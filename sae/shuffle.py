"""Shuffled batches of positions, straight from the memory maps, in bounded memory and resumable anywhere."""

import itertools
import math
import os
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from featurestore.errors import UsageError
from sae.data import ActivationRows

BUFFER_BYTES = 128 * 2**20
"""of one buffer; there are three: one is filled, one is read, and a batch of a third may still be held"""
_N_THREADS = min(4, os.cpu_count() or 1)


class _Buffers:
    """Memory that is used again once nobody holds a part of it."""

    def __init__(self, shape: tuple[int, int], dtype: np.dtype, pinned: bool) -> None:
        self._shape, self._dtype, self._pinned = shape, dtype, pinned
        self._known: list[npt.NDArray] = []
        self._copied: dict[int, torch.cuda.Event] = {}

    def take(self) -> npt.NDArray:
        """Return a buffer ``[positions, d_in]`` that nothing refers to: parts that were given away are left alone."""
        for buffer in self._known:
            # The list, the loop and the call hold one reference each; a batch cut from it holds another.
            if sys.getrefcount(buffer) == 3:
                if event := self._copied.pop(id(buffer), None):
                    event.synchronize()
                return buffer
        fresh = np.empty(self._shape, self._dtype)
        if self._pinned:
            fresh = torch.from_numpy(fresh).pin_memory().numpy()
        self._known = [*self._known[-2:], fresh]
        return fresh

    def copying(self, buffer: npt.NDArray) -> None:
        """Note that copies from a buffer to a GPU have been asked for; they end before it is used again."""
        event = torch.cuda.Event()
        event.record()
        self._copied[id(buffer.base)] = event


class ShuffledPositions:
    """Seeded, shuffled batches of positions, each epoch in another order.

    The rows are permuted; as many of them as fit ``buffer_bytes`` are read at a time and their positions permuted.
    Batches are cut from that stream of positions; less than a batch is left over at the end of an epoch. So a position
    is drawn exactly once an epoch, a batch mixes all rows of a buffer (hundreds of random samples and steps), and only
    positions of one buffer can meet in a batch. Batch ``n`` of epoch ``e`` is a function of the data, the seed, ``e``
    and ``n``: :meth:`epoch` can start at any ``n`` without reading what comes before its buffer.

    Rows go from the map to their shuffled places in one pass, by several threads, one buffer ahead of its use.

    Attributes:
        n_positions: Positions of this share.
        n_batches: Batches an epoch, the same for every share.
    """

    def __init__(
        self,
        rows: ActivationRows,
        indices: npt.NDArray[np.integer],
        batch_size: int,
        seed: int,
        buffer_bytes: int = BUFFER_BYTES,
        share: tuple[int, int] = (0, 1),
        pinned: bool = False,
    ) -> None:
        self.rows, self.batch_size, self.seed, self.share = rows, batch_size, seed, share
        self._indices = indices
        self.n_positions = len(indices) // share[1] * rows.n_positions
        self.n_batches = self.n_positions // batch_size
        if not self.n_batches:
            raise UsageError(
                f"a batch of {batch_size} positions is more than the {self.n_positions} of {rows.records[0].table} that "
                f"are wanted: use a smaller --batch-size, or collect more."
            )
        row_bytes = rows.n_positions * rows.d_in * rows.dtype.itemsize
        self._rows_per_buffer = max(1, min(buffer_bytes // row_bytes, len(indices) // share[1]))
        self._shape = self._rows_per_buffer * rows.n_positions, rows.d_in
        self._pinned = pinned

    def epoch(self, number: int, start: int = 0, device: torch.device | None = None) -> Iterator[Tensor]:
        """Yield the batches of an epoch, from batch ``start`` on: ``[batch_size, d_in]`` in the stored type.

        A batch stays what it is for as long as it is held. ``device``: where to, asynchronously for CUDA.
        """
        first_buffer, offset = divmod(start * self.batch_size, self._shape[0])
        pending: Tensor | None = None
        left = self.n_batches - start
        buffers = _Buffers(self._shape, self.rows.dtype, self._pinned)
        for buffer in self._filled(number, first_buffer, buffers):
            positions = torch.from_numpy(buffer)[offset:]
            offset, cut = 0, self.batch_size - (len(pending) if pending is not None else 0)
            while cut <= len(positions) and left:
                batch = positions[:cut] if pending is None else torch.cat([pending, positions[:cut]])
                if device is not None and device.type == "cuda":
                    batch = batch.to(device, non_blocking=True)
                    buffers.copying(buffer)
                yield batch
                del batch
                pending, positions, cut, left = None, positions[cut:], self.batch_size, left - 1
            if len(positions) and left:
                pending = positions.clone() if pending is None else torch.cat([pending, positions])
            del positions, buffer
            if not left:
                return

    def _filled(self, epoch: int, first: int, buffers: _Buffers) -> Iterator[npt.NDArray]:
        """Yield the buffers of an epoch from ``first`` on; the next is being filled while one is used."""
        rank, world_size = self.share
        order = self._generator(epoch).permutation(self._indices)[rank::world_size]
        order = order[: len(self._indices) // world_size]
        n_buffers = math.ceil(len(order) / self._rows_per_buffer)
        with ThreadPoolExecutor(_N_THREADS) as pool:
            ahead: list[tuple[npt.NDArray, list[Future[None]]]] = []
            for number in range(first, n_buffers + 1):
                if number < n_buffers:
                    ahead.append(self._fill(order, epoch, number, buffers.take(), pool))
                if len(ahead) == 2 or number == n_buffers:
                    for buffer, parts in [ahead.pop(0)] if ahead else []:
                        for part in parts:
                            part.result()
                        yield buffer
                        del buffer

    def _fill(
        self, order: npt.NDArray, epoch: int, number: int, buffer: npt.NDArray, pool: ThreadPoolExecutor
    ) -> tuple[npt.NDArray, list[Future[None]]]:
        n, first = self.rows.n_positions, number * self._rows_per_buffer
        mine = order[first : first + self._rows_per_buffer]
        drawn = self._generator(epoch, number + 1).permutation(len(mine) * n)
        places = np.empty_like(drawn)
        places[drawn] = np.arange(len(drawn))
        target = buffer[: len(drawn)]
        edges = np.linspace(0, len(mine), _N_THREADS + 1).astype(int)
        parts = [
            pool.submit(self.rows.scatter, mine[a:b], places[a * n : b * n], target)
            for a, b in itertools.pairwise(edges.tolist())
            if a < b
        ]
        return target, parts

    def _generator(self, *key: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, *key])))
