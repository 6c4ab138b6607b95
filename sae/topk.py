"""TopK: the k largest pre-activations of a position, ``z = TopK_k(ReLU(W_enc (x − b_dec) + b_enc))``.

Gao et al., "Scaling and evaluating sparse autoencoders" (2024), section 2.3.
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from sae.sparse import encode_top_k, largest, top_k
from sae.variant import Variant

if TYPE_CHECKING:
    from sae.model import SAE


class TopK(Variant):
    """Exactly k places a position; of equal values the lower latent."""

    def encode(self, sae: "SAE", x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the codes of each row, largest value first."""
        return encode_top_k(x, sae.W_enc, sae.b_enc, sae.config.k)

    def encode_some(self, sae: "SAE", x: Tensor, features: Tensor) -> Tensor:
        """Return the activations of some latents: all pre-activations say which are among the k largest."""
        own = F.linear(x, sae.W_enc[features], sae.b_enc[features]).relu()
        k = sae.config.k
        if k == sae.config.n_latents:
            return own
        with torch.no_grad():
            pre = F.linear(x, sae.W_enc, sae.b_enc)
            best, _ = largest(pre, k + 1)
            active = pre[:, features] >= best[:, k - 1 : k]
            tied = best[:, k - 1] == best[:, k]
            if bool(tied.any()):
                _, indices = top_k(pre[tied], k)
                active[tied] = (indices[:, :, None] == features).any(1)
        return torch.where(active, own, 0.0)
