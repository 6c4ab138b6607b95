"""Batches of positions: for training an SAE, and for anybody's own loop."""

import functools
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from featurestore.errors import SAEError, nearest
from featurestore.store import Store
from sae.feed.rows import (
    ActivationRows,
    activation_rows,
    data_hash,
    rows_to_measure,
    split_rows,
)
from sae.feed.shuffle import WINDOW_BYTES, ShuffledPositions

_EPOCHS = 5
_MIN_STEPS = 1000


class Source(Protocol):
    """What an SAE is trained on.

    Attributes:
        hook: The module.
        n_positions, n_batches: Those of training, per epoch.
        data: Digits that name the contents.
        default_steps: How long to train if nothing is said.
        rows: Rows of the hook, for their shape.
    """

    hook: str
    n_positions: int
    n_batches: int
    data: str
    default_steps: int
    rows: ActivationRows

    def epoch(self, number: int, start: int = 0) -> Iterator[Tensor]:
        """Yield the batches of an epoch, from batch ``start`` on: ``[batch_size, d_in]``, float32
        or as they are stored, copies."""

    def evaluation(self) -> tuple[ActivationRows, npt.NDArray[np.integer], bool]:
        """Return the rows to evaluate on: all, the indices of those that count, and whether
        training left them out."""


class PositionBatches:
    """A store's rows of a hook: :class:`~sae.feed.shuffle.ShuffledPositions` of most samples; the
    others are held out.

    Attributes:
        rows: All rows of the branch.
        train, test: Indices into ``rows``; the samples of ``test`` are
            :func:`~sae.feed.rows.held_out`. Without a second sample, ``test`` is empty.
        hook, n_positions, n_batches, data, default_steps: As :class:`Source` says.

    ``pinned``: batches are as stored, in page-locked memory and gathered a little ahead, for CUDA.
    """

    def __init__(
        self,
        store: Store,
        hook: str,
        branch: str,
        batch_size: int,
        *,
        seed: int,
        holdout: float = 0.1,
        window_bytes: int = WINDOW_BYTES,
        pinned: bool = False,
    ) -> None:
        self.hook, self._pinned = hook, pinned
        self.rows = activation_rows(store, hook, branch)
        self.data = data_hash(self.rows.records)
        self.train, self.test = split_rows(self.rows, holdout)
        self._shuffled = ShuffledPositions(
            self.rows, self.train, batch_size, seed=seed, window_bytes=window_bytes
        )
        self.n_positions, self.n_batches = self._shuffled.n_positions, self._shuffled.n_batches
        self.default_steps = max(_MIN_STEPS, _EPOCHS * self.n_batches)

    def epoch(self, number: int, start: int = 0) -> Iterator[Tensor]:
        """Yield the batches of an epoch, from batch ``start`` on: ``[batch_size, d_in]``, float32
        copies, or what ``pinned`` says."""
        for batch in self._shuffled.epoch(number, start, pinned=self._pinned):
            yield batch if self._pinned else batch.float()

    def evaluation(self) -> tuple[ActivationRows, npt.NDArray[np.integer], bool]:
        """Return the rows, and the indices of the held-out ones, or of all if none are."""
        return self.rows, *rows_to_measure(self.train, self.test)


class ActivationBatches(IterableDataset[Tensor]):
    """Shuffled batches of a hook's positions ``[batch_size, d_in]``, straight from the store's
    memory maps::

        for batch in ActivationBatches(store, "unet.up_blocks.1.attentions.1", batch_size=4096):
            ...

    Each iteration is an epoch, in another order than the last, with every position once (less than
    a batch is left over). See :class:`~sae.feed.shuffle.ShuffledPositions` for what is mixed with
    what. Workers of a ``DataLoader`` (``batch_size=None``) and ranks share the rows without
    overlap; every rank has the same number of batches.

    ``state_dict`` after any batch, loaded into an equal object, goes on with the next one, the same
    as if nothing had happened. Workers count in processes of their own: with them, call
    ``set_epoch`` before each epoch.

    Raises:
        SAEError: nothing was collected of what is wanted; a label does not exist.
        UsageError: there is less than a batch.
    """

    def __init__(
        self,
        store: Store,
        hook: str,
        batch_size: int,
        *,
        branch: str = "cond",
        steps: Collection[int] | None = None,
        labels: Mapping[str, str | Collection[str]] | None = None,
        sample_ids: Collection[int] | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        run: int = 8,
        window_bytes: int = WINDOW_BYTES,
    ) -> None:
        """Open the rows; nothing is read yet.

        Args:
            store: Where.
            hook: Whose activations.
            batch_size: Positions per batch.
            branch: ``cond``, ``uncond`` or ``both``.
            steps: Only these step indices.
            labels: Only samples with these concepts, such as
                ``{"style": "neon", "object": ["cat", "fish"]}``.
            sample_ids: Only these samples.
            seed: Decides the order.
            rank: Which of ``world_size`` processes this is.
            world_size: Processes that share the rows.
            device: Where batches are delivered; to CUDA from page-locked memory, without waiting.
            dtype: Of the batches; default: as stored.
            run: Neighbouring positions of a map that stay together, at most; 1 draws every position
                alone, slower.
            window_bytes: Of the rows whose positions can meet in a batch.
        """
        samples = _labelled(store, labels, sample_ids)
        self._open = functools.partial(
            activation_rows, store, hook, branch, steps=steps, samples=samples
        )
        self.rows = self._open()
        self._shares: dict[tuple[int, int], ShuffledPositions] = {}
        self._batch_size = batch_size
        self._settings = {"seed": seed, "window_bytes": window_bytes, "run": run}
        self._rank, self._world_size = rank, world_size
        self._device, self._dtype = torch.device(device), dtype
        self._epoch, self._done = 0, 0
        self._shuffled((rank, world_size))

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the maps: a copy in another process opens its own."""
        return {
            key: value for key, value in self.__dict__.items() if key not in ("rows", "_shares")
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Open the rows."""
        self.__dict__ |= state
        self.rows, self._shares = self._open(), {}

    def _shuffled(self, share: tuple[int, int]) -> ShuffledPositions:
        # Kept from epoch to epoch: pages that were touched stay mapped.
        if share not in self._shares:
            every = np.arange(len(self.rows))
            self._shares[share] = ShuffledPositions(
                self.rows, every, self._batch_size, share=share, **self._settings
            )
        return self._shares[share]

    def _share(self) -> tuple[int, int]:
        info = get_worker_info()
        workers, worker = (info.num_workers, info.id) if info else (1, 0)
        return self._rank * workers + worker, self._world_size * workers

    def __len__(self) -> int:
        """Return the batches per epoch, in this process."""
        return self._shuffled(self._share()).n_batches

    def __iter__(self) -> Iterator[Tensor]:
        """Yield what is left of the epoch; the next iteration is the next epoch."""
        shuffled = self._shuffled(self._share())
        for batch in shuffled.epoch(self._epoch, self._done, pinned=self._device.type == "cuda"):
            self._done += 1
            if self._done == shuffled.n_batches:
                self._epoch, self._done = self._epoch + 1, 0
            there = batch.to(self._device, non_blocking=True)
            yield there if self._dtype is None else there.to(self._dtype)

    def set_epoch(self, epoch: int) -> None:
        """Begin at the start of an epoch."""
        self._epoch, self._done = epoch, 0

    def state_dict(self) -> dict[str, Any]:
        """Return where the next batch stands."""
        return {"epoch": self._epoch, "done": self._done}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another object of the same settings stood."""
        self._epoch, self._done = int(state["epoch"]), int(state["done"])


def _labelled(
    store: Store,
    labels: Mapping[str, str | Collection[str]] | None,
    sample_ids: Collection[int] | None,
) -> set[int] | None:
    """Return the ids of the samples that are wanted; None: all."""
    wanted = None if sample_ids is None else set(sample_ids)
    for family, concepts in (labels or {}).items():
        known = store.families()
        if family not in known:
            raise SAEError(f"{store.root} has no labels {family!r}.{nearest(family, known)}")
        table = store.arrow("samples", ["sample_id", family])
        names = {concepts} if isinstance(concepts, str) else set(concepts)
        unknown = sorted(names - set(table[family].to_pylist()))
        if unknown:
            there = sorted({name for name in table[family].to_pylist() if name is not None})
            raise SAEError(
                f"{store.root} has no {family} {unknown[0]!r}.{nearest(unknown[0], there)}"
            )
        found = {
            i
            for i, name in zip(
                table["sample_id"].to_pylist(), table[family].to_pylist(), strict=True
            )
            if name in names
        }
        wanted = found if wanted is None else wanted & found
    return wanted
