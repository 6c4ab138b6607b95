"""JumpReLU: a threshold θ_i for each latent, learnt with straight-through estimators.

Rajamanoharan et al., "Jumping Ahead: Improving Reconstruction Fidelity with JumpReLU Sparse
Autoencoders" (2024): ``z = a · H(a − θ)``; where the kernel ``K((a − θ)/ε) = 1`` for
``|a − θ| < ε/2`` stands for the derivative of the jump H, ``∂z/∂θ = −(θ/ε) K((a − θ)/ε)`` and
``∂H/∂θ = −(1/ε) K((a − θ)/ε)`` (section 3). The penalty is ``λ (L0/k − 1)²`` (appendix on fixing
the sparsity), L0 being the mean over the batch: k is the L0 to reach. Pre-activations that are not
positive cannot fire (θ ≥ 0) and have no gradient.

ε is in the units of inputs whose mean squared distance from ``b_dec`` is 1, which training scales
to.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sae.sparse import encode_selected
from sae.variants.base import TrainingCodes, Weights
from sae.variants.batchtopk import batch_top_k
from sae.variants.threshold import Threshold, packed

BANDWIDTH = 0.01
PENALTY = 1.0


class JumpReLU(Threshold):
    """About k latents per position, each with a threshold of its own."""

    learns_threshold = True

    def training_codes(self, sae: Weights, x: Tensor) -> TrainingCodes:
        """Return the codes and the penalty of a batch."""
        least = (sae.threshold.detach() - BANDWIDTH / 2).clamp_min(0)
        pre, indices = encode_selected(
            x, sae.W_enc, sae.b_enc, lambda pre: packed(pre, pre > least)
        )
        threshold = sae.threshold.index_select(0, indices.flatten()).view_as(pre)
        values, active = _Jump.apply(pre, threshold)
        l0 = active.sum(dim=-1).mean()
        return TrainingCodes(values, indices, PENALTY * (l0 / sae.config.k - 1).square())

    @torch.no_grad()
    def start(self, sae: Weights, x: Tensor) -> None:
        """Begin with the one threshold at which L0 is k."""
        values, _ = encode_selected(
            x, sae.W_enc, sae.b_enc, lambda pre: batch_top_k(pre, sae.config.k)
        )
        sae.threshold.fill_(values[values > 0].min() if bool((values > 0).any()) else 0.0)

    @torch.no_grad()
    def after_step(self, sae: Weights, values: Tensor) -> None:
        """Keep thresholds from becoming negative."""
        sae.threshold.clamp_min_(0)


class _Jump(torch.autograd.Function):
    """``a · H(a − θ)`` and ``H(a − θ)`` of positive ``a``; 0 for others."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(pre, threshold)
        active = ((pre > threshold) & (pre > 0)).to(pre.dtype)
        return pre * active, active

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_values: Tensor, grad_active: Tensor) -> tuple[Tensor, Tensor]:
        pre, threshold = ctx.saved_tensors
        kernel = ((pre - threshold).abs() < BANDWIDTH / 2) & (pre > 0)
        slope = -(threshold * grad_values + grad_active) / BANDWIDTH
        return grad_values * ((pre > threshold) & (pre > 0)), slope * kernel
