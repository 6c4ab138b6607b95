"""TopK: the k largest pre-activations of a position,
``z = TopK_k(ReLU(W_enc (x − b_dec) + b_enc))``.

Gao et al., "Scaling and evaluating sparse autoencoders" (2024), section 2.3.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from sae.sparse import encode_top_k, largest, top_k
from sae.variants.base import Variant, Weights


class TopK(Variant):
    """Exactly k places per position; of equal values the lower latent."""

    def encode(self, sae: Weights, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the codes of each row, largest value first."""
        return encode_top_k(x, sae.W_enc, sae.b_enc, sae.config.k)

    def active(self, sae: Weights, x: Tensor, features: Tensor, pre: Tensor) -> Tensor:
        """Return the activations of some latents: all pre-activations say which are among the k
        largest."""
        k = sae.config.k
        if k == sae.config.n_latents:
            return pre.relu()
        with torch.no_grad():
            every = F.linear(x, sae.W_enc, sae.b_enc)
            best, _ = largest(every, k + 1)
            chosen = every[:, features] >= best[:, k - 1 : k]
            tied = best[:, k - 1] == best[:, k]
            if bool(tied.any()):
                _, indices = top_k(every[tied], k)
                chosen[tied] = (indices[:, :, None] == features).any(1)
        return torch.where(chosen, pre.relu(), 0.0)
