"""What one hook sees of one work item: activations, codes, or both."""

import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from typing import NoReturn

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from collectors.keep import Kept, random_positions
from collectors.rows.capture import Captured
from collectors.rows.shape import Shape, described, rows_of, shape_of
from collectors.rows.writer import BackgroundWriter, Staging
from featurestore.errors import HookError, UsageError
from featurestore.format.activations import tensor_array
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
from sae.diffusion.modules import is_encoder_hook
from sae.encoding import codes_metadata, made_by_sae
from sae.model import SAE

Begin = Callable[[str, pa.Table, pa.Schema], TensorFile]
"""begins the file of a table, given its columns but the tensor, and its schema"""


class HookBuffer:
    """What one hook sees of a work item: activations go to their file at once, codes are kept until
    the end.

    :meth:`put` is called in the denoiser's thread and waits for no GPU; rows are checked and
    written by the writer's threads. ``begin``: None where nothing is to be written, only measured.
    """

    def __init__(
        self,
        hook: str,
        kept: Kept,
        sample_ids: Sequence[int],
        *,
        staging: Staging,
        writer: BackgroundWriter,
        begin: Begin | None,
    ) -> None:
        self.hook, self.kept, self.sample_ids = hook, kept, list(sample_ids)
        self.table = f"activations/{hook}"
        self._staging, self._writer, self._begin_file = staging, writer, begin
        self._shape: Shape | None = None
        self._file: TensorFile | None = None
        self._file_lock = threading.Lock()
        self._jobs: deque[Future[None]] = deque()
        self._n_rows = 0
        # Without padding, which positions are kept is known only when all texts are encoded.
        self._drops = kept.settings.padding == "drop" and is_encoder_hook(hook)
        self._held: dict[int, npt.NDArray] = {}
        self._among: dict[tuple[int, int], npt.NDArray[np.bool_]] = {}
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
        while self._jobs and self._jobs[0].done():
            self._jobs.popleft().result()
        call = captured.call
        shape = self._shape = self._fitting(captured)
        place = shape.steps.get(call.step)
        parts = {} if place is None else branch_parts(call, captured.values, self.hook)
        for at, branch in enumerate(self.kept.branches):
            if place is None or branch not in parts:  # the other pass of guidance in two passes
                continue
            real = captured.real[parts[branch]] if captured.real is not None else None
            chosen = self._choose(captured.values[parts[branch]], start, call.step, real)
            if self._drops and real is not None:
                ids = self.sample_ids[start : start + len(real)]
                self._among |= {(at, i): m for i, m in zip(ids, real.cpu().numpy(), strict=True)}
            stored = chosen.to(self.kept.torch_dtype)
            largest = None if stored.dtype == chosen.dtype else chosen.abs().amax().float()
            self._n_rows += len(stored)
            rows = [
                self._row(shape, sample, place, at) for sample in range(start, start + len(stored))
            ]
            if self._writes:
                self._write_later(stored, rows, call.timestep, largest)
            else:
                self._ranges.append((call.timestep, _range(stored, largest)))
                if self._drops and self.kept.activations:
                    self._held |= zip(rows, stored.cpu().numpy(), strict=True)
            for name, candidate in self.kept.saes.items():
                for sample, row in enumerate(stored, start):
                    self._codes[name][sample, place, at] = encode_row(candidate.sae, row)

    def _fitting(self, captured: Captured) -> Shape:
        """Return the shape of all calls so far: texts without their padding may have any length.

        Raises:
            UsageError: the calls have different numbers of positions, and all, or the padding, are
                kept.
        """
        n, shape = captured.values.shape[1], self._shape
        if shape is None or n == shape.n_positions:
            return shape or shape_of(captured, self.kept)
        if self._drops:
            return shape.widened(n)
        way = (
            "keep them with --padding drop, and --positions random:N or mean"
            if is_encoder_hook(self.hook)
            else "hook the image's stream, or the text encoder with --padding drop"
        )
        raise UsageError(
            f"{self.hook!r} has {shape.n_positions} positions in one call and {n} in another, as its "
            f"texts are filled up to several lengths: {way}."
        )

    def _row(self, shape: Shape, sample: int, place: int, branch: int) -> int:
        """Return the place of a row in its tables: by sample, step and branch."""
        return (sample * len(shape.steps) + place) * len(self.kept.branches) + branch

    def _write_later(
        self, stored: Tensor, rows: list[int], timestep: float, largest: Tensor | None
    ) -> None:
        staged = self._staging.copy(stored)

        def write() -> None:
            try:
                for row, values in zip(rows, staged.ready(), strict=True):
                    array = values.contiguous().numpy()
                    if not _all_finite(array):
                        self._refuse(timestep, math.inf if largest is None else float(largest))
                    with self._file_lock:
                        self._begun().put(row, array)
            finally:
                self._staging.give_back(staged)

        self._jobs.append(self._writer.later(write))

    @property
    def _writes(self) -> bool:
        return self.kept.activations and self._begin_file is not None and not self._drops

    def _begun(self) -> TensorFile:
        """Return the file, begun with the first row: by a thread of the writer's, so that the
        denoiser does not wait for it."""
        if self._file is None:
            assert self._begin_file is not None and self._shape is not None, "there are rows"
            self._file = self._begin_file(self.table, *self._described(self._shape))
        return self._file

    def _described(self, shape: Shape) -> tuple[pa.Table, pa.Schema]:
        masks = None
        if self._drops:
            masks = [
                np.stack([_filled(self._among[at, i], shape.n_positions) for i in self.sample_ids])
                for at in range(len(self.kept.branches))
            ]
        return described(shape, self.kept, self.hook, self.sample_ids, among=masks)

    def _choose(self, whole: Tensor, start: int, step: int, real: Tensor | None) -> Tensor:
        """Return the kept positions ``[batch, n_kept, d_in]``; ``real`` says which are not
        padding."""
        kind, count = self.kept.positions.kind, self.kept.positions.count
        if self._drops:
            return self._choose_real(whole, start, self._needed(real, count))
        if kind == "mean":
            return whole.float().mean(dim=1, keepdim=True)
        if kind == "random":
            ids = self.sample_ids[start : start + len(whole)]
            index = torch.from_numpy(random_positions(ids, step, whole.shape[1], count)).long()
            return whole.take_along_dim(index.to(whole.device)[:, :, None], dim=1)
        return whole

    def _needed(self, real: Tensor | None, count: int) -> Tensor:
        """Return which tokens are not padding.

        Raises:
            UsageError: it is not known, or a text has fewer than are to be kept.
        """
        if real is None:
            raise UsageError(
                f"--padding drop: nothing says which tokens of {self.hook!r} are padding; keep it."
            )
        fewest = int(real.sum(1).min())
        if fewest < max(1, count):
            raise UsageError(
                f"--positions random:{count} with --padding drop: a text of {self.hook!r} has "
                f"{fewest} tokens."
            )
        return real

    def _choose_real(self, whole: Tensor, start: int, real: Tensor) -> Tensor:
        """Return the kept ones of the tokens that are not padding, ``[batch, n_kept, d_in]``."""
        if self.kept.positions.kind == "mean":
            weight = (real.float() / real.sum(1, keepdim=True)).to(whole.device)
            return torch.einsum("bp,bpd->bd", weight, whole.float())[:, None]
        ids, among = self.sample_ids[start : start + len(whole)], real.cpu().numpy()
        n, count = whole.shape[1], self.kept.positions.count
        chosen = random_positions(ids, 0, n, count, among=among)
        index = torch.from_numpy(chosen).long().to(whole.device)
        return whole.take_along_dim(index[:, :, None], dim=1)

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
                f"pipeline left some out; "
                f"nothing of this shard was written."
            )
        while self._jobs:
            self._jobs.popleft().result()
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
            f"float32. "
            f"Nothing of this shard was written."
        )

    def file(self) -> TensorFile | None:
        """Return the file of the activations, once :meth:`check` has passed; None if they are not
        kept."""
        return self._file

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
        if self._held:
            others, schema = self._described(self._shape)
            tensor = tensor_array(np.stack([self._held[i] for i in sorted(self._held)]), schema)
            tables[self.table] = pa.Table.from_arrays([*others.columns, tensor], schema=schema)
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

    def close(self) -> None:
        """Remove what was written of a shard that is not to be: once no job is left that writes to
        it."""
        wait(self._jobs)
        if self._file is not None:
            self._file.close()

    def _columns(self, name: str, sae: SAE) -> list[Encoded]:
        codes = [self._codes[name][key] for key in sorted(self._codes[name])]
        starts = range(0, len(codes), CHUNK_ROWS)
        return [to_columns(codes[i : i + CHUNK_ROWS], sae.config.n_latents) for i in starts]


def _filled(real: npt.NDArray[np.bool_], n_positions: int) -> npt.NDArray[np.bool_]:
    return np.pad(real, (0, n_positions - len(real)))


def _range(stored: Tensor, largest: Tensor | None) -> Tensor:
    """Return the largest magnitude, and whether all values can be stored; on the device, waiting
    for nothing."""
    most = stored.abs().amax().float() if largest is None else largest
    return torch.stack([most, stored.isfinite().all().float()])


def _all_finite(values: npt.NDArray) -> bool:
    """Say whether no float16 or float32 is NaN or infinite: their exponents are all ones."""
    if values.dtype == np.float16:
        return int((values.view(np.uint16) & np.uint16(0x7C00)).max()) < 0x7C00
    return int((values.view(np.uint32) & np.uint32(0x7F800000)).max()) < 0x7F800000
