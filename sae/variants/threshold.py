"""What SAEs with a threshold do: ``z_i = a_i`` where ``a_i > max(θ_i, 0)``, else 0;
``a = W_enc (x − b_dec) + b_enc``."""

import torch
from torch import Tensor

from sae.sparse import encode_selected
from sae.variants.base import Variant, Weights


class Threshold(Variant):
    """Each latent fires by itself: some can be computed without the others, and a position may have
    any number."""

    has_threshold = True

    def encode(self, sae: Weights, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the codes of each row, ascending by latent, as wide as the fullest row needs."""
        least = sae.threshold.clamp_min(0)
        return encode_selected(x, sae.W_enc, sae.b_enc, lambda pre: packed(pre, pre > least))

    def active(self, sae: Weights, x: Tensor, features: Tensor, pre: Tensor) -> Tensor:
        """Return the activations of some latents, computing no others."""
        return pre * (pre > sae.threshold[features].clamp_min(0))


def packed(pre: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Return the chosen values of ``pre`` ``[rows, n]`` and their columns, ``[rows, width]``, each
    row from the left.

    ``width`` is what the fullest row needs, 1 at least; a place that is left over has value 0 and
    index 0.
    """
    rows, columns = chosen.nonzero(as_tuple=True)
    counts = chosen.sum(dim=1)
    width = max(1, int(counts.max())) if len(pre) else 1
    place = torch.arange(len(rows), device=pre.device) - (counts.cumsum(0) - counts)[rows]
    values, indices = pre.new_zeros(len(pre), width), columns.new_zeros(len(pre), width)
    values[rows, place], indices[rows, place] = pre[rows, columns], columns
    return values, indices
