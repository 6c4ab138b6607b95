"""BatchTopK: while training, the k · B largest pre-activations of a batch of B positions;
afterwards a threshold.

Bussmann et al., "BatchTopK Sparse Autoencoders" (2024), sections 3 and 3.1. The threshold θ, the
same for all latents, estimates the expectation over batches of the smallest activation that
training keeps: a running mean that starts with the first batch's. Serving such an SAE as TopK would
be another function.
"""

import torch
from torch import Tensor

from sae.sparse import encode_selected, top_k
from sae.variants.base import TrainingCodes, Weights
from sae.variants.threshold import Threshold

_MOMENTUM = 0.99


class BatchTopK(Threshold):
    """k latents per position on average: more where there is more to say."""

    def training_codes(self, sae: Weights, x: Tensor) -> TrainingCodes:
        """Return the codes of the batch's k · B largest positive pre-activations."""
        k = sae.config.k
        return TrainingCodes(
            *encode_selected(x, sae.W_enc, sae.b_enc, lambda pre: batch_top_k(pre, k))
        )

    @torch.no_grad()
    def start(self, sae: Weights, x: Tensor) -> None:
        """Begin with the threshold of the first batch."""
        sae.threshold.fill_(_smallest(self.training_codes(sae, x).values))

    @torch.no_grad()
    def after_step(self, sae: Weights, values: Tensor) -> None:
        """Move the threshold towards the smallest activation that the batch kept."""
        if bool((values > 0).any()):
            sae.threshold.lerp_(_smallest(values).expand_as(sae.threshold), 1 - _MOMENTUM)


def _smallest(values: Tensor) -> Tensor:
    """Return the smallest positive value; 0 if no value is positive."""
    least = values.masked_fill(values <= 0, torch.inf).amin()
    return torch.where(least.isinf(), torch.zeros_like(least), least)


def batch_top_k(pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the ``k · rows`` largest positive values of ``[rows, n]`` and their columns,
    ``[rows, width]``; 0 fills up.

    The candidates are each row's largest few, and more of them while a row might hide another: no
    sort of everything.
    """
    rows, n = pre.shape
    wanted, m = min(k * rows, rows * n), min(4 * k, n)
    while True:
        best, indices = top_k(pre, m)
        kept, place = best.flatten().topk(min(wanted, best.numel()))
        if m == n or not bool((best[:, -1] >= kept[-1]).any()):
            break
        m = min(2 * m, n)
    values = torch.zeros_like(best)
    values.view(-1)[place] = kept.relu()
    columns = torch.arange(1, m + 1, device=pre.device)
    width = max(1, int(((values > 0).any(dim=0) * columns).amax()))
    return values[:, :width].contiguous(), indices[:, :width].contiguous()
