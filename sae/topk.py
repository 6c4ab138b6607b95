"""TopK: the k largest pre-activations of a position, ``z = TopK_k(ReLU(W_enc (x − b_dec) + b_enc))``.

Gao et al., "Scaling and evaluating sparse autoencoders" (2024), section 2.3.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sae.sparse import encode_top_k
from sae.variant import Variant

if TYPE_CHECKING:
    from sae.model import SAE


class TopK(Variant):
    """Exactly k places a position; of equal values the lower latent."""

    def encode(self, sae: "SAE", x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the codes of each row, largest value first."""
        return encode_top_k(x, sae.W_enc, sae.b_enc, sae.config.k)

    def encode_some(self, sae: "SAE", x: Tensor, features: Tensor) -> Tensor:
        """Return the activations of some latents: the whole encoder decides which are among the k."""
        values, indices = self.encode(sae, x)
        n = len(features)
        place = torch.full((sae.config.n_latents,), n, device=indices.device)
        place[features] = torch.arange(n, device=indices.device)
        return values.new_zeros(len(x), n + 1).scatter(-1, place[indices], values)[:, :n]
