"""Activations of texts without their padding: which positions are kept is known only when all texts
are encoded, so they are held until then."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from collectors.keep import Kept, random_positions
from collectors.rows.buffer import HookBuffer
from collectors.rows.capture import Captured
from collectors.rows.shape import Shape, described, shape_of
from featurestore.errors import UsageError
from featurestore.format.activations import tensor_array


class TextBuffer(HookBuffer):
    """What one hook of a text encoder sees of a work item, padding dropped."""

    def __init__(self, hook: str, kept: Kept, sample_ids: Sequence[int]) -> None:
        super().__init__(hook, kept, sample_ids)
        self._held: dict[int, npt.NDArray] = {}
        self._among: dict[tuple[int, int], npt.NDArray[np.bool_]] = {}

    def _fitting(self, captured: Captured) -> Shape:
        """Return the shape of all calls so far: texts without their padding may have any length."""
        n, shape = captured.values.shape[1], self._shape
        if shape is None or n == shape.n_positions:
            return shape or shape_of(captured, self.kept)
        return shape.widened(n)

    def _choose(
        self,
        whole: Tensor,
        ids: Sequence[int],
        *,
        step: int,
        branch: int,
        real: Tensor | None,
    ) -> Tensor:
        real = self._needed(real, self.kept.positions.count)
        among = real.cpu().numpy()
        self._among |= {(branch, i): mask for i, mask in zip(ids, among, strict=True)}
        if self.kept.positions.kind == "mean":
            weight = (real.float() / real.sum(1, keepdim=True)).to(whole.device)
            return torch.einsum("bp,bpd->bd", weight, whole.float())[:, None]
        n, count = whole.shape[1], self.kept.positions.count
        chosen = random_positions(ids, 0, n, count, among=among)
        index = torch.from_numpy(chosen).long().to(whole.device)
        return whole.take_along_dim(index[:, :, None], dim=1)

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
            kept = f"random:{count}" if count else "mean"
            raise UsageError(
                f"--positions {kept} with --padding drop: a text of {self.hook!r} has {fewest} "
                f"tokens, expected {max(1, count)} at least."
            )
        return real

    def _keep(
        self, stored: Tensor, rows: list[int], timestep: float, largest: Tensor | None
    ) -> None:
        self._measure(stored, timestep, largest)
        if self.kept.activations:
            self._held |= zip(rows, stored.cpu().numpy(), strict=True)

    def _described(self, shape: Shape) -> tuple[pa.Table, pa.Schema]:
        masks = [
            np.stack([_filled(self._among[at, i], shape.n_positions) for i in self.sample_ids])
            for at in range(len(self.kept.branches))
        ]
        return described(shape, self.kept, self.hook, self.sample_ids, among=masks)

    def tables(self) -> dict[str, pa.Table]:
        """Return the rows of activations, ``codes`` and ``stats``, once :meth:`check` has
        passed."""
        assert self._shape is not None, "checked"
        tables = {}
        if self._held:
            others, schema = self._described(self._shape)
            tensor = tensor_array(np.stack([self._held[i] for i in sorted(self._held)]), schema)
            tables[self.table] = pa.Table.from_arrays([*others.columns, tensor], schema=schema)
        return tables | super().tables()


def _filled(real: npt.NDArray[np.bool_], n_positions: int) -> npt.NDArray[np.bool_]:
    return np.pad(real, (0, n_positions - len(real)))
