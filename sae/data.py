"""Shuffled batches of positions from the activation shards of a store, resumable anywhere, in bounded memory."""

import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from featurestore.activations import ActivationShard, read_shard
from featurestore.canonical import sha256_text
from featurestore.errors import SAEError, TableError, UsageError, nearest
from featurestore.records import Record
from featurestore.store import Store

BUFFER_BYTES = 256 * 2**20
BRANCHES = ("cond", "uncond", "both")


def held_out(sample_ids: Iterable[int], fraction: float) -> frozenset[int]:
    """Return about ``fraction`` of the samples: those whose hashed id is small.

    Whether a sample belongs depends on its id alone, so it does not change when the store grows, except that of two
    or more samples at least one is held out and at least one is not.
    """
    draws = {i: int(hashlib.sha256(f"holdout {i}".encode()).hexdigest()[:15], 16) / 16**15 for i in sample_ids}
    order = sorted(draws, key=lambda i: (draws[i], i))
    if len(order) < 2 or fraction <= 0:
        return frozenset()
    n = sum(draw < fraction for draw in draws.values())
    return frozenset(order[: min(max(1, n), len(order) - 1)])


@dataclass(frozen=True)
class ActivationRows:
    """Rows (sample, step, branch) of a hook's shards; index ``i`` is row ``row[i]`` of shard ``shard[i]``."""

    store: Store
    records: list[Record]
    shards: list[ActivationShard | None]
    """None where the tensors cannot be mapped: such a shard is read anew whenever it is needed, to bound memory"""
    shard: npt.NDArray[np.int32]
    row: npt.NDArray[np.int32]
    step: npt.NDArray[np.int32]
    timestep: npt.NDArray[np.float32]
    sample_id: npt.NDArray[np.int64]
    n_positions: int
    d_in: int
    dtype: np.dtype
    metadata: dict[str, str]
    """``io``, ``height`` and ``width`` of the hook"""

    def __len__(self) -> int:
        return len(self.row)

    def fill(self, indices: npt.NDArray[np.integer]) -> npt.NDArray:
        """Return a copy of some rows' tensors, ``[n, n_positions, d_in]``, in the order of ``indices``."""
        result = np.empty((len(indices), self.n_positions, self.d_in), self.dtype)
        of_shard = self.shard[indices]
        for number in np.unique(of_shard):
            shard = self.shards[number] or read_shard(self.store.root, self.records[number])
            for place in np.flatnonzero(of_shard == number):
                result[place] = shard.row(int(self.row[indices[place]]))
        return result


def activation_rows(store: Store, hook: str, branch: str) -> ActivationRows:
    """Open the rows of a hook that belong to a branch (``cond``, ``uncond`` or ``both``), in the order of the shards.

    Raises:
        SAEError: nothing was collected at ``hook`` or of ``branch``, or the shards do not belong together.
    """
    if branch not in BRANCHES:
        raise UsageError(f"branch {branch!r} is not one of {', '.join(BRANCHES)}.")
    records = hook_records(store, hook)
    shards: list[ActivationShard | None] = []
    parts: list[tuple[npt.NDArray, ...]] = []
    found: set[str] = set()
    first: ActivationShard | None = None
    for number, record in enumerate(records):
        shard = read_shard(store.root, record)
        first = first or shard
        _check_alike(store, hook, first, shard)
        found |= set(shard.branch.tolist())
        rows = np.flatnonzero((shard.branch == branch) | (branch == "both")).astype(np.int32)
        numbers = np.full(len(rows), number, np.int32)
        parts.append((numbers, rows, shard.step[rows], shard.timestep[rows], shard.sample_id[rows]))
        shards.append(shard if shard.mapped else None)
    assert first is not None, "hook_records returns at least one"
    of_shard, row, step, timestep, sample_id = (np.concatenate(column) for column in zip(*parts, strict=True))
    if not len(row):
        raise SAEError(f"{store.root}: hook {hook!r} has no rows of branch {branch!r}.{nearest(branch, sorted(found))}")
    size = first.n_positions, first.d_in, first.groups[0].dtype
    metadata = {key: first.metadata.get(key, "") for key in ("io", "height", "width")}
    return ActivationRows(store, records, shards, of_shard, row, step, timestep, sample_id, *size, metadata)


def hook_records(store: Store, hook: str) -> list[Record]:
    """Return the records of a hook's activations.

    Raises:
        SAEError: there are none; near hooks are offered.
    """
    try:
        return store.require(f"activations/{hook}")
    except TableError as error:
        known = store.names("activations")
        hint = nearest(hook, known) or " Nothing was collected yet: 'featurestore collect' does that."
        raise SAEError(f"{store.root} has no activations of hook {hook!r}.{hint}") from error


def _check_alike(store: Store, hook: str, first: ActivationShard, shard: ActivationShard) -> None:
    for key in ("io", "height", "width"):
        here, there = shard.metadata.get(key), first.metadata.get(key)
        if here != there:
            raise SAEError(
                f"{store.root}: shards of hook {hook!r} differ: {key} is {there} in {first.record.shard} and "
                f"{here} in {shard.record.shard}: run 'featurestore verify {store.root}'."
            )


def data_hash(records: list[Record]) -> str:
    """Return the 64 hexadecimal digits that name the contents of a list of shards."""
    return sha256_text("".join(f"{r.shard} {entry.sha256}\n" for r in records for entry in r.files))


class PositionBatches:
    """Seeded, shuffled batches of positions, each epoch in another order.

    The (sample, step, branch) rows are permuted; as many of them as fit ``buffer_bytes`` are read at a time and their
    positions permuted. Batches are cut from that stream of positions; less than a batch is left over at the end of an
    epoch. Batch ``n`` of epoch ``e`` is a function of the data, the seed, ``e`` and ``n``: :meth:`epoch` can start at
    any ``n`` without reading what comes before its buffer.

    Attributes:
        rows: All rows of the branch.
        train, test: Indices into ``rows``; the samples of ``test`` are :func:`held_out`. Without a second sample,
            ``test`` is empty.
        n_batches: Batches an epoch.
    """

    def __init__(
        self,
        store: Store,
        hook: str,
        branch: str,
        batch_size: int,
        seed: int,
        holdout: float = 0.1,
        buffer_bytes: int = BUFFER_BYTES,
    ) -> None:
        self.rows = activation_rows(store, hook, branch)
        self.batch_size = batch_size
        self.seed = seed
        out = held_out(np.unique(self.rows.sample_id).tolist(), holdout)
        is_out = np.isin(self.rows.sample_id, np.fromiter(out, np.int64, len(out)))
        self.train, self.test = np.flatnonzero(~is_out), np.flatnonzero(is_out)
        self.n_positions = len(self.train) * self.rows.n_positions
        self.n_batches = self.n_positions // batch_size
        if not self.n_batches:
            raise UsageError(
                f"a batch of {batch_size} positions is more than the {self.n_positions} that hook {hook!r} has for "
                f"training: use a smaller --batch-size, or collect more."
            )
        row_bytes = self.rows.n_positions * self.rows.d_in * self.rows.dtype.itemsize
        self._rows_per_buffer = max(1, buffer_bytes // row_bytes)

    def epoch(self, number: int, start: int = 0) -> Iterator[Tensor]:
        """Yield the batches of an epoch, from batch ``start`` on: float32 ``[batch_size, d_in]``, copies."""
        order = self._generator(number).permutation(self.train)
        per_buffer = self._rows_per_buffer * self.rows.n_positions
        first_buffer, offset = divmod(start * self.batch_size, per_buffer)
        pending = np.empty((0, self.rows.d_in), self.rows.dtype)
        n_buffers = math.ceil(len(order) / self._rows_per_buffer)
        for buffer_number in range(first_buffer, n_buffers):
            first = buffer_number * self._rows_per_buffer
            buffer = self.rows.fill(order[first : first + self._rows_per_buffer]).reshape(-1, self.rows.d_in)
            places = self._generator(number, buffer_number + 1).permutation(len(buffer))[offset:]
            offset, cut = 0, self.batch_size - len(pending)
            while cut <= len(places):
                yield _batch(np.concatenate([pending, buffer[places[:cut]]]) if len(pending) else buffer[places[:cut]])
                pending, places, cut = pending[:0], places[cut:], self.batch_size
            pending = np.concatenate([pending, buffer[places]])
            del buffer

    def _generator(self, *key: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, *key])))

    def test_or_train(self) -> npt.NDArray[np.integer]:
        """Return the rows to evaluate on: the held-out ones, or all if none are."""
        return self.test if len(self.test) else self.train


def _batch(positions: npt.NDArray) -> Tensor:
    # A copy, also of float32: torch then owns memory with the same alignment everywhere, on which sums may depend.
    return torch.from_numpy(positions).to(torch.float32, copy=True)
