"""A sparse autoencoder: ``z = act(W_enc (x − b_dec) + b_enc)``, ``x̂ = z W_dec + b_dec``; ``act``
is that of its variant.

Gao et al., "Scaling and evaluating sparse autoencoders" (2024), sections 2.3 and A; docs/saes.md.
"""

import copy
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featurestore.errors import SAEError
from sae.sparse import weighted_rows
from sae.variants import VARIANTS

NORMALIZATIONS = ("none", "layer_norm", "constant_norm_rescale")
_LAYER_NORM_EPS = 1e-5


@dataclass(frozen=True)
class SAEConfig:
    """What an SAE is, and of which activations."""

    d_in: int
    """channels of the hooked tensor"""
    n_latents: int
    """rows of the encoder and of the decoder"""
    k: int
    """latents that may be active at a position; with a threshold, on average; 0: unknown, with a
    threshold only"""
    architecture: str = "topk"
    """a name in :data:`sae.variants.VARIANTS`"""
    group_sizes: tuple[int, ...] = ()
    """of a Matryoshka SAE: latents of each group, first to last; () for others"""
    normalize_activations: str = "none"
    """what is done to each position before it is encoded, and undone after it is decoded; see
    :meth:`SAE.decode`"""
    apply_b_dec_to_input: bool = True
    """whether ``b_dec`` is subtracted before encoding; it is always added in decoding"""
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
    initialisation: str = ""
    """how its weights began (docs/format.md, section 1.9); empty: unknown"""
    run_id: str = ""
    """the run whose activations it was trained on; empty: unknown"""

    def __post_init__(self) -> None:
        if self.architecture not in VARIANTS:
            known = ", ".join(map(repr, VARIANTS))
            raise SAEError(f"SAE architecture {self.architecture!r} is not known. Known: {known}.")
        if self.d_in < 1 or self.n_latents < 1:
            raise SAEError(
                f"an SAE needs d_in and n_latents of at least 1, found {self.d_in} and "
                f"{self.n_latents}."
            )
        least = 0 if VARIANTS[self.architecture].has_threshold else 1
        if not least <= self.k <= self.n_latents:
            found = f"k = {self.k} does not fit n_latents = {self.n_latents}"
            raise SAEError(f"{found}: it must be in {least}…{self.n_latents}.")
        if self.normalize_activations not in NORMALIZATIONS:
            known = ", ".join(NORMALIZATIONS)
            raise SAEError(
                f"normalize_activations {self.normalize_activations!r} is not known. Known: "
                f"{known}."
            )
        grouped = self.architecture == "matryoshka_batchtopk"
        if grouped and (sum(self.group_sizes) != self.n_latents or min(self.group_sizes) < 1):
            raise SAEError(
                f"group_sizes {list(self.group_sizes)} do not fit n_latents = {self.n_latents}: "
                f"they must be positive and add up to it."
            )
        if self.group_sizes and not grouped:
            raise SAEError(
                f"group_sizes are for 'matryoshka_batchtopk', the architecture is "
                f"{self.architecture!r}."
            )


class Codes(NamedTuple):
    """The active latents of each position, in ``width`` places; a place of value 0 is empty,
    whatever its index.

    ``width`` is k for TopK; with a threshold, as many as the fullest of the positions has, at least
    1.
    """

    values: Tensor
    """``[..., width]``, none negative; TopK's are in descending order"""
    indices: Tensor
    """``[..., width]``, int64; ties as :func:`sae.sparse.top_k` says"""
    shift: Tensor | None = None
    """``[..., 1]``, of an SAE that normalises each position: what it subtracts"""
    scale: Tensor | None = None
    """``[..., 1]``, of an SAE that normalises each position: what decoding multiplies by"""


class SAE(nn.Module):
    """An SAE with its weights.

    Parameters: ``W_enc [n_latents, d_in]``, ``b_enc [n_latents]``, ``W_dec [n_latents, d_in]``,
        ``b_dec [d_in]``, and ``threshold [n_latents]`` if its variant has one. A new one has
        ``W_dec = W_enc`` with random unit rows (drawn from ``generator``, or from torch's), zero
        biases and thresholds.

    Inputs have shape ``[..., d_in]``, are raw activations, and are cast to the precision of the
    weights.
    """

    def __init__(self, config: SAEConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.variant = VARIANTS[config.architecture]
        rows = F.normalize(torch.randn(config.n_latents, config.d_in, generator=generator), dim=-1)
        self.W_enc = nn.Parameter(rows)
        self.b_enc = nn.Parameter(torch.zeros(config.n_latents))
        self.W_dec = nn.Parameter(rows.clone())
        self.b_dec = nn.Parameter(torch.zeros(config.d_in))
        if self.variant.has_threshold:
            self.threshold = nn.Parameter(
                torch.zeros(config.n_latents), requires_grad=self.variant.learns_threshold
            )

    def pre_acts(self, x: Tensor, features: Tensor | None = None) -> Tensor:
        """Return ``W_enc (x − b_dec) + b_enc``, ``[..., n_latents]``, or only those of some
        latents, ``[..., n]``."""
        W_enc, b_enc = (
            (self.W_enc, self.b_enc)
            if features is None
            else (self.W_enc[features], self.b_enc[features])
        )
        return F.linear(self.centred(x)[0], W_enc, b_enc)

    def encode(self, x: Tensor) -> Codes:
        """Return the code of each position, differentiable in ``x`` and the weights."""
        inner, shift, scale = self.centred(x)
        values, indices = self.variant.encode(self, inner.reshape(-1, self.config.d_in))
        shape = (*x.shape[:-1], values.shape[-1])
        return Codes(values.view(shape), indices.view(shape), shift, scale)

    def encode_dense(self, x: Tensor) -> Tensor:
        """Return the code as ``[..., n_latents]``, zero where a latent is not active."""
        codes = self.encode(x)
        dense = codes.values.new_zeros(*x.shape[:-1], self.config.n_latents)
        return dense.scatter_add(-1, codes.indices, codes.values)

    def encode_some(self, x: Tensor, features: Tensor, pre_acts: Tensor | None = None) -> Tensor:
        """Return the activations of some latents ``[n]``, ``[..., n]``: 0 where one is not active.

        With a threshold no other latent is computed; TopK needs all of them. ``pre_acts`` are those
        of the latents, if they are there already.
        """
        flat = self.centred(x)[0].reshape(-1, self.config.d_in)
        pre = self.pre_acts(x, features) if pre_acts is None else pre_acts
        found = self.variant.active(self, flat, features, pre.reshape(-1, len(features)))
        return found.view(*x.shape[:-1], len(features))

    def decode(self, codes: Codes) -> Tensor:
        """Return ``z W_dec + b_dec``, ``[..., d_in]``, reading only the rows that the codes name.

        With ``normalize_activations`` the SAE works on ``(x − shift) / s`` and this returns
        ``scale · (…) + shift``: ``layer_norm`` has ``shift`` the mean over channels, ``scale``
        their standard deviation (that of a sample), ``s = scale + 1e-5``; ``constant_norm_rescale``
        has ``shift = 0``, ``s = scale = ‖x‖ / √d_in``.
        """
        shape = codes.indices.shape
        values, indices = codes.values.reshape(-1, shape[-1]), codes.indices.reshape(-1, shape[-1])
        inner = (
            weighted_rows(values, indices, self.W_dec).view(*shape[:-1], self.config.d_in)
            + self.b_dec
        )
        if codes.scale is not None:
            inner = inner * codes.scale
        return inner if codes.shift is None else inner + codes.shift

    def change(self, x: Tensor, delta: Tensor, features: Tensor) -> Tensor:
        """Return by how much the reconstruction of ``x`` changes with its codes: ``[..., d_in]``.

        ``delta`` ``[..., n]`` is added to the activations of the latents ``features`` ``[n]``.
        """
        change = delta @ self.W_dec[features]
        if self.config.normalize_activations == "none":
            return change
        scale = self.centred(x)[2]
        assert scale is not None, "each position is normalised"
        return change * scale

    def forward(self, x: Tensor) -> Tensor:
        """Return the reconstruction, ``[..., d_in]``, in the precision of the weights."""
        return self.decode(self.encode(x))

    def centred(self, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return what the encoder's matrix takes of ``x``, and the ``shift`` and ``scale`` of
        :class:`Codes`."""
        if x.shape[-1] != self.config.d_in:
            raise SAEError(
                f"activations have {x.shape[-1]} channels, the SAE expects {self.config.d_in}."
            )
        inner, shift, scale = x.to(self.W_enc.dtype), None, None
        if self.config.normalize_activations == "layer_norm":
            shift = inner.mean(dim=-1, keepdim=True)
            scale = (inner - shift).std(dim=-1, keepdim=True)
            inner = (inner - shift) / (scale + _LAYER_NORM_EPS)
        elif self.config.normalize_activations == "constant_norm_rescale":
            scale = torch.linalg.vector_norm(inner, dim=-1, keepdim=True) / self.config.d_in**0.5
            inner = inner / scale.clamp_min(torch.finfo(inner.dtype).tiny)
        return inner - self.b_dec if self.config.apply_b_dec_to_input else inner, shift, scale

    def beyond_k(self) -> "SAE":
        """Return the TopK SAE with the same weights, not copied, of which every latent is active
        whose pre-activation is positive.

        Raises:
            SAEError: its latents have thresholds; they are active whatever the others are.
        """
        if self.variant.has_threshold:
            raise SAEError(
                f"an SAE of architecture {self.config.architecture!r} has thresholds: no latent is "
                f"left out for being beyond the k largest."
            )
        found = copy.copy(self)
        found.config = replace(self.config, k=self.config.n_latents)
        return found

    @torch.no_grad()
    def rescale_(self, factor: float) -> None:
        """Turn an SAE of inputs divided by ``factor`` into one of the inputs themselves;
        activations grow as they do.

        The weights stay, so decoder rows keep their norm: ``act(a · factor) = factor · act(a)`` for
        every variant once its threshold is scaled too.
        """
        for name, parameter in self.named_parameters():
            if name in ("b_enc", "b_dec", "threshold"):
                parameter.mul_(factor)

    @torch.no_grad()
    def normalize_decoder_(self) -> None:
        """Scale each row of ``W_dec`` to unit norm. A row of zeros stays."""
        norms = self.W_dec.square().sum(dim=-1, keepdim=True).sqrt_()
        self.W_dec.div_(norms.clamp_min_(torch.finfo(self.W_dec.dtype).tiny))

    @torch.no_grad()
    def remove_parallel_gradient_(self) -> None:
        """Remove from the gradient of each unit row of ``W_dec`` the part along it: it would only
        change the norm."""
        assert self.W_dec.grad is not None, "no gradient yet"
        along = (self.W_dec.grad * self.W_dec).sum(dim=-1, keepdim=True)
        self.W_dec.grad.addcmul_(along, self.W_dec, value=-1)
