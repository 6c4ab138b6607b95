"""Matryoshka BatchTopK: the first latents reconstruct by themselves, so general features come
first.

Bussmann et al., "Learning Multi-Level Features with Matryoshka Sparse Autoencoders" (2025), section
3. With latents in groups of ``group_sizes`` and ``x̂_m`` decoded from the first m groups only, the
loss takes the mean over m of ``‖x − x̂_m‖²``; codes and threshold are those of BatchTopK.
"""

import itertools

import torch
from torch import Tensor

from sae.sparse import weighted_rows
from sae.variants.base import TrainingCodes, Weights
from sae.variants.batchtopk import BatchTopK

_FRACTIONS = (1 / 32, 1 / 16, 1 / 8, 1 / 4)


def default_groups(n_latents: int) -> tuple[int, ...]:
    """Return groups of 1/32, 1/16, 1/8 and 1/4 of the latents and the rest; empty ones are left
    out."""
    sizes = [int(fraction * n_latents) for fraction in _FRACTIONS]
    return tuple(size for size in (*sizes, n_latents - sum(sizes)) if size)


class Matryoshka(BatchTopK):
    """A BatchTopK SAE whose every prefix of groups is an SAE."""

    def misfit(self, sae: Weights, residual: Tensor, codes: TrainingCodes) -> Tensor:
        """Return the mean over prefixes of the squared residual."""
        ends = list(itertools.accumulate(sae.config.group_sizes))
        total = residual.square().sum()
        left = residual
        for start, end in reversed(list(itertools.pairwise(ends))):
            group = (codes.indices >= start) & (codes.indices < end)
            left = left + weighted_rows(
                torch.where(group, codes.values, 0), codes.indices, sae.W_dec
            )
            total = total + left.square().sum()
        return total / len(ends)
