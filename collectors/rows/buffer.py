"""What one hook sees of one work item: activations, codes, or both."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NoReturn

import pyarrow as pa
import torch
from torch import Tensor

from collectors.keep import Kept
from collectors.rows.capture import Captured
from collectors.rows.shape import Shape, rows_of
from featurestore.errors import HookError
from featurestore.format.parquet.in_place import TensorFile
from sae.codes import (
    CHUNK_ROWS,
    Encoded,
    RowCodes,
    codes_table,
    encode_row,
    stats_table,
    to_columns,
)
from sae.diffusion.hooks import branch_parts
from sae.encoding import codes_metadata, made_by_sae
from sae.model import SAE


class HookBuffer(ABC):
    """What one hook sees of a work item: codes are kept until the end; how activations are chosen
    and kept is told by its two kinds (``rows/streaming``, ``rows/texts``).

    :meth:`put` is called in the denoiser's thread and waits for no GPU.
    """

    def __init__(self, hook: str, kept: Kept, sample_ids: Sequence[int]) -> None:
        self.hook, self.kept, self.sample_ids = hook, kept, list(sample_ids)
        self.table = f"activations/{hook}"
        self._shape: Shape | None = None
        self._n_rows = 0
        self._ranges: list[tuple[float, Tensor]] = []
        self._codes: dict[str, dict[tuple[int, int, int], RowCodes]] = {
            name: {} for name in kept.saes
        }

    def put(self, captured: Captured, start: int) -> None:
        """Keep what is wanted of one call; the batch begins at sample ``start`` of the work item.

        Raises:
            HookError: a value of an earlier call cannot be stored.
            TableError: the table's other shards have another shape than an earlier call.
            DiskError: the operating system refused to write a row of an earlier call.
        """
        call = captured.call
        shape = self._shape = self._fitting(captured)
        place = shape.steps.get(call.step)
        parts = {} if place is None else branch_parts(call, captured.values, self.hook)
        for at, branch in enumerate(self.kept.branches):
            if place is None or branch not in parts:  # the other pass of guidance in two passes
                continue
            real = captured.real[parts[branch]] if captured.real is not None else None
            values = captured.values[parts[branch]]
            ids = self.sample_ids[start : start + len(values)]
            chosen = self._choose(values, ids, step=call.step, branch=at, real=real)
            stored = chosen.to(self.kept.torch_dtype)
            largest = None if stored.dtype == chosen.dtype else chosen.abs().amax().float()
            self._n_rows += len(stored)
            rows = [
                self._row(shape, sample, place, at) for sample in range(start, start + len(stored))
            ]
            self._keep(stored, rows, call.timestep, largest)
            for name, candidate in self.kept.saes.items():
                for sample, row in enumerate(stored, start):
                    self._codes[name][sample, place, at] = encode_row(candidate.sae, row)

    @abstractmethod
    def _fitting(self, captured: Captured) -> Shape:
        """Return the shape of all calls so far; raises UsageError where this one does not fit."""

    @abstractmethod
    def _choose(
        self,
        whole: Tensor,
        ids: Sequence[int],
        *,
        step: int,
        branch: int,
        real: Tensor | None,
    ) -> Tensor:
        """Return the kept positions ``[batch, n_kept, d_in]`` of samples ``ids``; ``real`` says
        which are not padding."""

    @abstractmethod
    def _keep(
        self, stored: Tensor, rows: list[int], timestep: float, largest: Tensor | None
    ) -> None:
        """Keep the activations of some rows; ``largest`` is their largest magnitude before they
        were rounded, where they were."""

    @abstractmethod
    def _described(self, shape: Shape) -> tuple[pa.Table, pa.Schema]:
        """Return the columns of the activations but the tensor, and the schema of all."""

    def _measure(self, stored: Tensor, timestep: float, largest: Tensor | None) -> None:
        """Leave it to :meth:`check` to say whether values can be stored."""
        self._ranges.append((timestep, _range(stored, largest)))

    def _row(self, shape: Shape, sample: int, place: int, branch: int) -> int:
        """Return the place of a row in its tables: by sample, step and branch."""
        return (sample * len(shape.steps) + place) * len(self.kept.branches) + branch

    def check(self) -> None:
        """Wait until every row is written, and refuse values that cannot be stored.

        Raises:
            HookError: the module was not reached in every call, or a value does not fit the stored
                type.
            DiskError: the operating system refused a write.
        """
        if self._shape is None:
            raise HookError(
                f"hook {self.hook!r} was never reached: its module is not part of the denoiser's "
                f"forward pass."
            )
        wanted = len(self.sample_ids) * len(self._shape.steps) * len(self.kept.branches)
        if self._n_rows != wanted:
            raise HookError(
                f"hook {self.hook!r} saw {self._n_rows} of {wanted} (sample, step, branch): the "
                f"pipeline left some out; nothing of this shard was written."
            )
        ranges = (
            torch.stack([values for _, values in self._ranges]).cpu()
            if self._ranges
            else torch.empty(0, 2)
        )
        for (timestep, _), (largest, fits) in zip(self._ranges, ranges.tolist(), strict=True):
            if not fits:
                self._refuse(timestep, largest)

    def _refuse(self, timestep: float, largest: float) -> NoReturn:
        where = f"hook {self.hook!r} at timestep {timestep:g}"
        if not math.isfinite(largest):
            raise HookError(
                f"{where}: the model itself produced NaN or infinity; nothing of this shard was "
                f"written."
            )
        raise HookError(
            f"{where}: the value {largest:g} does not fit {self.kept.settings.dtype}; use --dtype "
            f"float32. Nothing of this shard was written."
        )

    def file(self) -> TensorFile | None:
        """Return the file of the activations, once :meth:`check` has passed; None if they are not
        in one."""
        return None

    def close(self) -> None:  # noqa: B027 - a buffer that holds its rows has nothing to remove
        """Remove what was written of a shard that is not to be."""

    def sizes(self) -> dict[str, tuple[int, int]]:
        """Return rows of the table of activations, if they are kept, and about the bytes of its
        file."""
        assert self._shape is not None, "checked"
        if not self.kept.activations:
            return {}
        others, _ = self._described(self._shape)
        row_bytes = self._shape.n_kept * self._shape.d_in * self.kept.torch_dtype.itemsize
        return {self.table: (others.num_rows, others.nbytes + others.num_rows * row_bytes)}

    def tables(self) -> dict[str, pa.Table]:
        """Return the rows of ``codes`` and ``stats`` of each SAE, and of activations that are not
        in a file, once :meth:`check` has passed."""
        assert self._shape is not None, "checked"
        tables = {}
        for name, candidate in self.kept.saes.items():
            metadata = codes_metadata(
                candidate.sae, made_by_sae(candidate.record), *self._shape.size
            )
            encoded, rows = (
                self._columns(name, candidate.sae),
                rows_of(self._shape, self.kept, self.sample_ids),
            )
            tables[f"codes/{name}"] = codes_table(encoded, rows, metadata)
            tables[f"stats/{name}"] = stats_table(encoded, rows, self.sample_ids, metadata)
        return tables

    def _columns(self, name: str, sae: SAE) -> list[Encoded]:
        codes = [self._codes[name][key] for key in sorted(self._codes[name])]
        starts = range(0, len(codes), CHUNK_ROWS)
        return [to_columns(codes[i : i + CHUNK_ROWS], sae.config.n_latents) for i in starts]


def _range(stored: Tensor, largest: Tensor | None) -> Tensor:
    """Return the largest magnitude, and whether all values can be stored; on the device, waiting
    for nothing."""
    most = stored.abs().amax().float() if largest is None else largest
    return torch.stack([most, stored.isfinite().all().float()])
