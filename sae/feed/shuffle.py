"""Shuffled batches of positions, gathered straight from the memory maps; bounded memory, resumable
anywhere."""

import math
import warnings
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from featurestore.errors import UsageError
from featurestore.format.activations import open_shard
from sae.feed.rows import ActivationRows

WINDOW_BYTES = 256 * 2**20
"""of the rows whose positions can meet in a batch; they are mapped, not held in memory"""
OPEN_SHARDS = 8
"""shards whose rows are mixed"""
_AHEAD = 2
_OPEN_BYTES = 2 * 2**30


class ShuffledPositions:
    """Seeded, shuffled batches of positions, each epoch in another order.

    Shards are permuted; the rows (sample, step, branch) of each eight of them are permuted
    together; the positions of as many rows as fit ``window_bytes`` are permuted, ``run``
    neighbouring positions of a map staying together. Batches are cut from that stream; less than a
    batch is left over at the end of an epoch. So a position is drawn exactly once per epoch, and a
    batch mixes hundreds of rows of eight shards. Batch ``n`` of epoch ``e`` is a function of the
    data, the seed, ``e`` and ``n``, and no earlier one is read for it.

    Attributes:
        n_positions: Positions of this share.
        n_batches: Batches per epoch, the same for every share.
        run: Neighbouring positions that stay together: the most, up to what was asked for, that
            divides the positions of a map and the batch. With 1 all positions are drawn alone; more
            is faster, see benchmarks/read.py.
    """

    def __init__(
        self,
        rows: ActivationRows,
        indices: npt.NDArray[np.integer],
        batch_size: int,
        *,
        seed: int,
        window_bytes: int = WINDOW_BYTES,
        run: int = 1,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self.rows, self.batch_size, self.seed, self.share = rows, batch_size, seed, share
        self._indices = indices
        self.n_positions = len(indices) // share[1] * rows.n_positions
        self.n_batches = self.n_positions // batch_size
        if not self.n_batches:
            raise UsageError(
                f"a batch of {batch_size} positions is more than the {self.n_positions} of "
                f"{rows.records[0].table} that are wanted: use a smaller --batch-size, or collect "
                f"more."
            )
        common = math.gcd(rows.n_positions, batch_size)
        self.run = max(n for n in range(1, min(run, common) + 1) if common % n == 0)
        self._run_bytes = self.run * rows.d_in * rows.dtype.itemsize
        self._runs_per_row = rows.n_positions // self.run
        row_bytes = self._runs_per_row * self._run_bytes
        self._rows_per_window = max(1, window_bytes // row_bytes)
        self._dtype = torch.from_numpy(np.empty(0, rows.dtype)).dtype
        self._open: dict[int, Tensor] = {}

    def epoch(self, number: int, start: int = 0, pinned: bool = False) -> Iterator[Tensor]:
        """Yield the batches of an epoch, from batch ``start`` on: ``[batch_size, d_in]`` in the
        stored type.

        ``pinned``: in page-locked memory, gathered a little ahead of their use by a thread. In the
        ordinary memory of a thread of its own the same would be three times slower
        (benchmarks/read.py).
        """
        if not pinned:
            yield from (self._gather(row, run, pinned) for row, run in self._drawn(number, start))
            return
        ahead: deque[Future[Tensor]] = deque()
        with ThreadPoolExecutor(1, "gather") as pool:
            for row, run in self._drawn(number, start):
                ahead.append(pool.submit(self._gather, row, run, pinned))
                if len(ahead) > _AHEAD:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()

    def _drawn(self, epoch: int, start: int) -> Iterator[tuple[npt.NDArray, npt.NDArray]]:
        """Yield what each batch is made of: the rows and the runs in them."""
        order, per_batch = self._order(epoch), self.batch_size // self.run
        window, offset = divmod(start * per_batch, self._rows_per_window * self._runs_per_row)
        pending = np.empty((2, 0), np.int64)
        for _ in range(start, self.n_batches):
            while pending.shape[1] < per_batch:
                first = window * self._rows_per_window
                rows = order[first : first + self._rows_per_window]
                drawn = self._generator(epoch, window + 1).permutation(
                    len(rows) * self._runs_per_row
                )[offset:]
                place, run = np.divmod(drawn, self._runs_per_row)
                pending = np.concatenate([pending, np.stack([rows[place], run])], axis=1)
                window, offset = window + 1, 0
            (row, run), pending = pending[:, :per_batch], pending[:, per_batch:]
            yield row, run

    def _order(self, epoch: int) -> npt.NDArray[np.integer]:
        """Return this share's rows in the order of an epoch."""
        generator, shard = self._generator(epoch), self.rows.shard[self._indices]
        place = generator.permutation(len(self.rows.records))[shard]
        order = self._indices[np.lexsort((generator.random(len(shard)), place // OPEN_SHARDS))]
        rank, world_size = self.share
        return order[rank::world_size][: len(order) // world_size]

    def _gather(self, row: npt.NDArray, run: npt.NDArray, pinned: bool) -> Tensor:
        out = torch.empty(len(row), self._run_bytes, dtype=torch.uint8, pin_memory=pinned)
        shard = self.rows.shard[row]
        starts = self.rows.offset[row] + run * self._run_bytes
        done = 0
        for number in np.unique(shard).tolist():
            here = shard == number
            wanted = torch.from_numpy(starts[here])
            if (mapped := self.rows.shards[number]) is not None:
                mapped.check_rows(self.rows.row[row[here]])
            part = out[done : done + len(wanted)]
            torch.index_select(self._runs(number), 0, wanted, out=part)
            done += len(wanted)
        return out.view(-1).view(self._dtype).view(self.batch_size, self.rows.d_in)

    def _runs(self, number: int) -> Tensor:
        """Return the bytes of a shard as overlapping runs: row ``i`` is the run that begins at byte
        ``i``."""
        if number not in self._open:
            while self._full(self.rows.shards[number] is not None):
                del self._open[next(iter(self._open))]
            self._open[number] = self._bytes(number)
        raw = self._open[number]
        return raw.as_strided((len(raw) - self._run_bytes + 1, self._run_bytes), (1, 1))

    def _full(self, mapped: bool) -> bool:
        """Say whether a shard has to be closed before another is opened.

        A window may reach from one group of shards into the next, and over many if they are small;
        what had to be decoded is dropped sooner.
        """
        if not mapped:
            return len(self._open) >= OPEN_SHARDS
        return (
            len(self._open) >= 2 * OPEN_SHARDS and sum(map(len, self._open.values())) > _OPEN_BYTES
        )

    def _bytes(self, number: int) -> Tensor:
        record, shard = self.rows.records[number], self.rows.shards[number]
        if shard is None:
            values = open_shard(self.rows.store.root, record).rows()
            return torch.from_numpy(np.ascontiguousarray(values)).view(torch.uint8).flatten()
        raw = np.memmap(self.rows.store.root / record.files[0].path, np.uint8, "r")
        with warnings.catch_warnings():
            # Nothing writes to it.
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            return torch.from_numpy(raw)

    def _generator(self, *key: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, *key])))
