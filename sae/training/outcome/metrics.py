"""How well an SAE reconstructs, per timestep, per branch and overall, measured in one pass and
bounded memory."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sae.feed.rows import ActivationRows
from sae.model import SAE

_CHUNK_POSITIONS = 2048
_DENSITY_DECADES = 7
_DENSE = 0.1


class Chunk(NamedTuple):
    """Positions of one step and branch."""

    step: int
    timestep: float
    branch: str
    x: Tensor
    """``[n, d_in]``"""


@dataclass(frozen=True)
class PartMetrics:
    """Of one timestep and branch, or of all timesteps of a branch."""

    branch: str
    step: int | None
    """None: all"""
    timestep: float | None
    fvu: float | None
    """fraction of variance unexplained, the variance being that of this part's positions; None if
    it is 0"""
    l0: float
    """active latents per position"""
    n_positions: int


@dataclass(frozen=True)
class Metrics:
    """Of an evaluation set."""

    fvu: float | None
    """``Σ‖x − x̂‖² / Σ‖x − mean(x)‖²``, the mean being that of all evaluated positions; None if
    they are all equal"""
    l0: float
    """active latents per position"""
    n_dead: int
    """latents that never fired"""
    n_dense: int
    """latents that fired at more than a tenth of the positions"""
    n_positions: int
    density: tuple[float, ...]
    """for each latent, the share of positions at which it fired"""
    branches: tuple[PartMetrics, ...]
    timesteps: tuple[PartMetrics, ...]
    """by step, then branch"""

    def to_json(self) -> dict[str, object]:
        """Return JSON values; of the densities only how many lie in each decade, ``(0.1, 1]``
        first."""
        body = asdict(self)
        body |= {"explained_variance": None if self.fvu is None else 1 - self.fvu}
        for parts in ("branches", "timesteps"):
            body[parts] = [
                {k: v for k, v in part.items() if v is not None or k == "fvu"}
                for part in body[parts]
            ]
        fired = np.array([value for value in body.pop("density") if value > 0])
        decades = np.minimum(np.floor(-np.log10(fired)).astype(int), _DENSITY_DECADES)
        return body | {
            "density_decades": np.bincount(decades, minlength=_DENSITY_DECADES + 1).tolist()
        }


class Sums:
    """Running sums of a set of positions, in float64, about a fixed centre so that no precision is
    lost to the mean."""

    def __init__(self, centre: Tensor) -> None:
        self._centre = centre.double()
        self._first = torch.zeros_like(self._centre)
        self._second = 0.0
        self._error = 0.0
        self._n_active = 0
        self.n_positions = 0

    def add(self, x: Tensor, reconstruction: Tensor, n_active: int) -> None:
        """Count positions ``x`` ``[n, d_in]``, their reconstructions, and the active latents of all
        of them."""
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
        """Active latents per position."""
        return self._n_active / max(1, self.n_positions)


@torch.no_grad()
def measure(sae: SAE, chunks: Iterable[Chunk]) -> Metrics:
    """Return the metrics over chunks in any order, any number of them per step and branch."""
    device = sae.b_dec.device
    sums: dict[tuple[int, str], Sums] = {}
    timesteps: dict[int, float] = {}
    counts = torch.zeros(sae.config.n_latents, dtype=torch.int64, device=device)
    for step, timestep, branch, x in chunks:
        codes = sae.encode(x.to(device))
        fired = codes.indices[codes.values > 0]
        counts += torch.bincount(fired, minlength=sae.config.n_latents)
        timesteps[step] = timestep
        sums.setdefault((step, branch), Sums(sae.b_dec)).add(
            x.to(device), sae.decode(codes), len(fired)
        )
    total, of_branch = Sums(sae.b_dec), {branch: Sums(sae.b_dec) for _, branch in sorted(sums)}
    for step, branch in sorted(sums):
        total.merge(sums[step, branch])
        of_branch[branch].merge(sums[step, branch])
    per_step = tuple(
        _part(s, branch, step, timesteps[step]) for (step, branch), s in sorted(sums.items())
    )
    per_branch = tuple(_part(s, branch) for branch, s in sorted(of_branch.items()))
    density = counts.double() / max(1, total.n_positions)
    n_dead, n_dense = int((counts == 0).sum()), int((density > _DENSE).sum())
    every = tuple(density.tolist())
    return Metrics(
        total.fvu, total.l0, n_dead, n_dense, total.n_positions, every, per_branch, per_step
    )


def _part(
    sums: Sums, branch: str, step: int | None = None, timestep: float | None = None
) -> PartMetrics:
    return PartMetrics(branch, step, timestep, sums.fvu, sums.l0, sums.n_positions)


def chunks_of_rows(rows: ActivationRows, indices: npt.NDArray[np.integer]) -> Iterator[Chunk]:
    """Yield the positions of some rows as :func:`measure` takes them, a few thousand at a time."""
    per_chunk = max(1, _CHUNK_POSITIONS // rows.n_positions)
    branches = np.unique(rows.branch[indices])
    for step in np.unique(rows.step[indices]):
        for branch in branches:
            of_part = indices[(rows.step[indices] == step) & (rows.branch[indices] == branch)]
            for start in range(0, len(of_part), per_chunk):
                part = of_part[start : start + per_chunk]
                positions = torch.from_numpy(rows.fill(part)).to(torch.float32, copy=True)
                yield Chunk(
                    int(step), float(rows.timestep[part[0]]), str(branch), positions.flatten(0, 1)
                )
