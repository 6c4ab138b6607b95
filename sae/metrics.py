"""How well an SAE reconstructs, per timestep and overall, measured in one pass and bounded memory."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sae.data import ActivationRows
from sae.model import SAE

_CHUNK_POSITIONS = 2048
_DENSITY_DECADES = 7


@dataclass(frozen=True)
class StepMetrics:
    """Of one timestep."""

    step: int
    timestep: float
    fvu: float | None
    """fraction of variance unexplained, the variance being that of this timestep's positions; None if it is 0"""
    l0: float
    """active latents a position"""
    n_positions: int


@dataclass(frozen=True)
class Metrics:
    """Of an evaluation set."""

    fvu: float | None
    """``Σ‖x − x̂‖² / Σ‖x − mean(x)‖²``, the mean being that of all evaluated positions; None if they are all equal"""
    l0: float
    """active latents a position"""
    n_dead: int
    """latents that never fired"""
    n_positions: int
    density: tuple[float, ...]
    """for each latent, the share of positions at which it fired"""
    timesteps: tuple[StepMetrics, ...]
    """by step"""

    def to_json(self) -> dict[str, object]:
        """Return JSON values; of the densities only how many lie in each decade, ``(0.1, 1]`` first."""
        body = asdict(self) | {"timesteps": [asdict(step) for step in self.timesteps]}
        fired = np.array([value for value in body.pop("density") if value > 0])
        decades = np.minimum(np.floor(-np.log10(fired)).astype(int), _DENSITY_DECADES)
        return body | {"density_decades": np.bincount(decades, minlength=_DENSITY_DECADES + 1).tolist()}


class Sums:
    """Running sums of a set of positions, in float64, about a fixed centre so that no precision is lost to the mean."""

    def __init__(self, centre: Tensor) -> None:
        self._centre = centre.double()
        self._first = torch.zeros_like(self._centre)
        self._second = 0.0
        self._error = 0.0
        self._n_active = 0
        self.n_positions = 0

    def add(self, x: Tensor, reconstruction: Tensor, n_active: int) -> None:
        """Count positions ``x`` ``[n, d_in]``, their reconstructions, and the active latents of all of them."""
        shifted = x.double() - self._centre
        self._first += shifted.sum(dim=0)
        self._second += float(shifted.square().sum())
        self._error += float((x.double() - reconstruction.double()).square().sum())
        self._n_active += n_active
        self.n_positions += len(x)

    def merge(self, other: "Sums") -> None:
        """Count what ``other``, about the same centre, has counted."""
        self._first += other._first
        self._second += other._second
        self._error += other._error
        self._n_active += other._n_active
        self.n_positions += other.n_positions

    @property
    def fvu(self) -> float | None:
        """Fraction of variance unexplained; None where there is no variance."""
        variance = self._second - float(self._first.square().sum()) / max(1, self.n_positions)
        return self._error / variance if variance > 0 else None

    @property
    def l0(self) -> float:
        """Active latents a position."""
        return self._n_active / max(1, self.n_positions)


@torch.no_grad()
def evaluate(sae: SAE, chunks: Iterable[tuple[int, float, Tensor]]) -> Metrics:
    """Return the metrics over chunks ``(step, timestep, x [n, d_in])``, in any order, any number a step."""
    device = sae.b_dec.device
    sums: dict[int, Sums] = {}
    timesteps: dict[int, float] = {}
    counts = torch.zeros(sae.config.n_latents, dtype=torch.int64, device=device)
    for step, timestep, x in chunks:
        codes = sae.encode(x.to(device))
        fired = codes.indices[codes.values > 0]
        counts += torch.bincount(fired, minlength=sae.config.n_latents)
        timesteps[step] = timestep
        sums.setdefault(step, Sums(sae.b_dec)).add(x.to(device), sae.decode(codes), len(fired))
    total = Sums(sae.b_dec)
    for step in sorted(sums):
        total.merge(sums[step])
    per_step = tuple(StepMetrics(i, timesteps[i], s.fvu, s.l0, s.n_positions) for i, s in sorted(sums.items()))
    density = tuple((counts.double() / max(1, total.n_positions)).tolist())
    return Metrics(total.fvu, total.l0, int((counts == 0).sum()), total.n_positions, density, per_step)


def chunks_of_rows(rows: ActivationRows, indices: npt.NDArray[np.integer]) -> Iterator[tuple[int, float, Tensor]]:
    """Yield the positions of some rows as :func:`evaluate` takes them, a few thousand at a time."""
    per_chunk = max(1, _CHUNK_POSITIONS // rows.n_positions)
    for step in np.unique(rows.step[indices]):
        of_step = indices[rows.step[indices] == step]
        for start in range(0, len(of_step), per_chunk):
            part = of_step[start : start + per_chunk]
            positions = torch.from_numpy(rows.fill(part)).to(torch.float32, copy=True)
            yield int(step), float(rows.timestep[part[0]]), positions.flatten(0, 1)
