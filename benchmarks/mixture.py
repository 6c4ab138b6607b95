"""Synthetic activations that have something to learn: sparse mixtures of more directions than an
SAE has latents."""

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

N_ACTIVE = 24
_DIRECTIONS = 3_141_592_653


class Mixture:
    """Positions ``[n, d_in]``: 24 of ``2 · n_latents`` directions, the common ones oftener, a
    little noise, a mean of 0.3."""

    hook = "synthetic"

    def __init__(
        self, d_in: int, n_latents: int, batch_size: int, *, seed: int = 0, device: str = "cpu"
    ) -> None:
        # Of no trainer's seed: drawn alike, its initial weights would be the directions sought.
        generator = torch.Generator().manual_seed(_DIRECTIONS)
        directions = torch.randn(2 * n_latents, d_in, generator=generator)
        self.d_in, self.batch_size, self.seed, self.device = d_in, batch_size, seed, device
        self._directions = torch.nn.functional.normalize(directions, dim=1)
        popularity = torch.arange(1, len(directions) + 1).float().pow(-0.6).cumsum(0)
        self._popularity = popularity / popularity[-1]
        self.n_batches = 2**31

    def draw(self, n: int, key: int) -> Tensor:
        """Return ``n`` positions; of equal keys the same."""
        generator = torch.Generator().manual_seed(key)
        drawn = torch.rand(n, N_ACTIVE, generator=generator)
        chosen = torch.searchsorted(self._popularity, drawn).clamp_max(len(self._directions) - 1)
        weights = -torch.rand(n, N_ACTIVE, generator=generator).clamp_min(1e-9).log()
        mixed = torch.nn.functional.embedding_bag(
            chosen, self._directions, per_sample_weights=weights, mode="sum"
        )
        return (mixed + torch.randn(n, self.d_in, generator=generator) * 0.02 + 0.3).to(self.device)

    def epoch(self, number: int, start: int = 0) -> Iterator[Tensor]:
        """Yield batches without end, each another."""
        for batch in itertools.count(start):
            yield self.draw(self.batch_size, 1 + (self.seed * 10**6 + number) * 10**6 + batch)

    def held_out(self, n: int) -> Tensor:
        """Return positions that no batch has."""
        return self.draw(n, 0)
