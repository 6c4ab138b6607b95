"""Activations that go to their file at once, while generation goes on."""

import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from collectors.keep import Kept, random_positions
from collectors.rows.buffer import HookBuffer
from collectors.rows.capture import Captured
from collectors.rows.shape import Shape, described, shape_of
from collectors.rows.writer import BackgroundWriter, Staging
from featurestore.errors import UsageError
from featurestore.format.parquet.in_place import TensorFile
from sae.diffusion.modules import is_encoder_hook

Begin = Callable[[str, pa.Table, pa.Schema], TensorFile]
"""begins the file of a table, given its columns but the tensor, and its schema"""


class StreamingBuffer(HookBuffer):
    """What one hook sees of a work item, all of its positions alike: rows are checked and written
    by the writer's threads.

    ``begin``: None where nothing is to be written, only measured.
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
        super().__init__(hook, kept, sample_ids)
        self._staging, self._writer, self._begin_file = staging, writer, begin
        self._file: TensorFile | None = None
        self._file_lock = threading.Lock()
        self._jobs: deque[Future[None]] = deque()

    def put(self, captured: Captured, start: int) -> None:
        """Keep what is wanted of one call, as every buffer; raises what writing earlier ones
        raised."""
        while self._jobs and self._jobs[0].done():
            self._jobs.popleft().result()
        super().put(captured, start)

    def _fitting(self, captured: Captured) -> Shape:
        """Return the shape of all calls.

        Raises:
            UsageError: the calls have different numbers of positions.
        """
        n, shape = captured.values.shape[1], self._shape
        if shape is None or n == shape.n_positions:
            return shape or shape_of(captured, self.kept)
        way = (
            "keep them with --padding drop, and --positions random:N or mean"
            if is_encoder_hook(self.hook)
            else "hook the image's stream, or the text encoder with --padding drop"
        )
        raise UsageError(
            f"{self.hook!r} has {shape.n_positions} positions in one call and {n} in another, as "
            f"its texts are filled up to several lengths: {way}."
        )

    def _choose(
        self,
        whole: Tensor,
        ids: Sequence[int],
        *,
        step: int,
        branch: int,
        real: Tensor | None,
    ) -> Tensor:
        kind, count = self.kept.positions.kind, self.kept.positions.count
        if kind == "mean":
            return whole.float().mean(dim=1, keepdim=True)
        if kind == "random":
            index = torch.from_numpy(random_positions(ids, step, whole.shape[1], count)).long()
            return whole.take_along_dim(index.to(whole.device)[:, :, None], dim=1)
        return whole

    def _keep(
        self, stored: Tensor, rows: list[int], timestep: float, largest: Tensor | None
    ) -> None:
        if self.kept.activations and self._begin_file is not None:
            self._write_later(stored, rows, timestep, largest)
        else:
            self._measure(stored, timestep, largest)

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

    def _begun(self) -> TensorFile:
        """Return the file, begun with the first row: by a thread of the writer's, so that the
        denoiser does not wait for it."""
        if self._file is None:
            assert self._begin_file is not None and self._shape is not None, "there are rows"
            self._file = self._begin_file(self.table, *self._described(self._shape))
        return self._file

    def _described(self, shape: Shape) -> tuple[pa.Table, pa.Schema]:
        return described(shape, self.kept, self.hook, self.sample_ids)

    def check(self) -> None:
        """Wait until every row is written, and refuse values that cannot be stored.

        Raises:
            HookError: the module was not reached in every call, or a value does not fit the stored
                type.
            DiskError: the operating system refused a write.
        """
        super().check()
        while self._jobs:
            self._jobs.popleft().result()

    def file(self) -> TensorFile | None:
        """Return the file of the activations, once :meth:`check` has passed; None if they are not
        kept."""
        return self._file

    def close(self) -> None:
        """Remove what was written of a shard that is not to be: once no job is left that writes to
        it."""
        wait(self._jobs)
        if self._file is not None:
            self._file.close()


def _all_finite(values: npt.NDArray) -> bool:
    """Say whether no float16 or float32 is NaN or infinite: their exponents are all ones."""
    if values.dtype == np.float16:
        return int((values.view(np.uint16) & np.uint16(0x7C00)).max()) < 0x7C00
    return int((values.view(np.uint32) & np.uint32(0x7F800000)).max()) < 0x7F800000
