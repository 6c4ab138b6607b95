"""The TopK sparse autoencoder: ``z = TopK_k(ReLU(W_enc (x − b_dec) + b_enc))``, ``x̂ = z W_dec + b_dec``.

Gao et al., "Scaling and evaluating sparse autoencoders" (2024), sections 2.3 and A.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featurestore.errors import SAEError
from sae.sparse import encode_top_k, weighted_rows


@dataclass(frozen=True)
class SAEConfig:
    """What an SAE is, and of which activations."""

    d_in: int
    """channels of the hooked tensor"""
    n_latents: int
    """rows of the encoder and of the decoder"""
    k: int
    """latents that may be active at a position"""
    architecture: str = "topk"
    """the only one so far"""
    hook: str = ""
    """module whose activations it was trained on"""
    io: str = "output"
    """``output``, ``input`` or ``difference`` of that module"""
    height: int = 0
    """of the map it was trained on; 0: unknown"""
    width: int = 0
    """of the map it was trained on; 0: unknown"""
    branch: str = "cond"
    """``cond``, ``uncond`` or ``both``: the rows it was trained on"""
    model_hash: str = ""
    """identity of the denoiser (docs/format.md, section 1.8); empty: unknown"""
    run_id: str = ""
    """the run whose activations it was trained on; empty: unknown"""

    def __post_init__(self) -> None:
        if self.architecture != "topk":
            raise SAEError(f"SAE architecture {self.architecture!r} is not known. Known: 'topk'.")
        if self.d_in < 1 or self.n_latents < 1:
            raise SAEError(f"an SAE needs d_in and n_latents of at least 1, found {self.d_in} and {self.n_latents}.")
        if not 1 <= self.k <= self.n_latents:
            raise SAEError(f"k = {self.k} does not fit n_latents = {self.n_latents}: it must be in 1…{self.n_latents}.")


class Codes(NamedTuple):
    """The k places of each position, largest value first; a place of value 0 is empty, whatever its index."""

    values: Tensor
    """``[..., k]``, none negative"""
    indices: Tensor
    """``[..., k]``, int64; ties as :func:`sae.sparse.top_k` says"""


class SAE(nn.Module):
    """A TopK SAE with its weights.

    Parameters: ``W_enc [n_latents, d_in]``, ``b_enc [n_latents]``, ``W_dec [n_latents, d_in]``, ``b_dec [d_in]``. A
        new one has ``W_dec = W_enc`` with random unit rows (drawn from ``generator``, or from torch's) and zero
        biases.

    Inputs have shape ``[..., d_in]`` and are cast to the precision of the weights.
    """

    def __init__(self, config: SAEConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        rows = F.normalize(torch.randn(config.n_latents, config.d_in, generator=generator), dim=-1)
        self.W_enc = nn.Parameter(rows)
        self.b_enc = nn.Parameter(torch.zeros(config.n_latents))
        self.W_dec = nn.Parameter(rows.clone())
        self.b_dec = nn.Parameter(torch.zeros(config.d_in))

    def pre_acts(self, x: Tensor) -> Tensor:
        """Return ``W_enc (x − b_dec) + b_enc``, ``[..., n_latents]``."""
        return F.linear(self._centred(x), self.W_enc, self.b_enc)

    def encode(self, x: Tensor) -> Codes:
        """Return the code of each position, differentiable in ``x`` and the weights."""
        flat = self._centred(x).reshape(-1, self.config.d_in)
        values, indices = encode_top_k(flat, self.W_enc, self.b_enc, self.config.k)
        shape = (*x.shape[:-1], self.config.k)
        return Codes(values.view(shape), indices.view(shape))

    def encode_dense(self, x: Tensor) -> Tensor:
        """Return the code as ``[..., n_latents]``, zero where a latent is not active."""
        values, indices = self.encode(x)
        return values.new_zeros(*x.shape[:-1], self.config.n_latents).scatter(-1, indices, values)

    def encode_some(self, x: Tensor, features: Tensor) -> Tensor:
        """Return the activations of some latents ``[n]``, ``[..., n]``: 0 where one is not among the position's k."""
        values, indices = self.encode(x)
        n = len(features)
        place = torch.full((self.config.n_latents,), n, device=indices.device)
        place[features] = torch.arange(n, device=indices.device)
        return values.new_zeros(*x.shape[:-1], n + 1).scatter(-1, place[indices], values)[..., :n]

    def decode(self, codes: Codes) -> Tensor:
        """Return ``z W_dec + b_dec``, ``[..., d_in]``, reading only the rows that the codes name."""
        shape = codes.indices.shape
        values, indices = codes.values.reshape(-1, shape[-1]), codes.indices.reshape(-1, shape[-1])
        return weighted_rows(values, indices, self.W_dec).view(*shape[:-1], self.config.d_in) + self.b_dec

    def forward(self, x: Tensor) -> Tensor:
        """Return the reconstruction, ``[..., d_in]``, in the precision of the weights."""
        return self.decode(self.encode(x))

    @torch.no_grad()
    def normalize_decoder_(self) -> None:
        """Scale each row of ``W_dec`` to unit norm. A row of zeros stays."""
        norms = self.W_dec.square().sum(dim=-1, keepdim=True).sqrt_()
        self.W_dec.div_(norms.clamp_min_(torch.finfo(self.W_dec.dtype).tiny))

    @torch.no_grad()
    def remove_parallel_gradient_(self) -> None:
        """Remove from the gradient of each unit row of ``W_dec`` the part along it: it would only change the norm."""
        assert self.W_dec.grad is not None, "no gradient yet"
        along = (self.W_dec.grad * self.W_dec).sum(dim=-1, keepdim=True)
        self.W_dec.grad.addcmul_(along, self.W_dec, value=-1)

    def _centred(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.config.d_in:
            raise SAEError(f"activations have {x.shape[-1]} channels, the SAE expects {self.config.d_in}.")
        return x.to(self.W_enc.dtype) - self.b_dec
