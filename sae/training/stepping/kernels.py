# mypy: disable-error-code="no-untyped-def,import-untyped,import-not-found"
"""What a training step does beside its matrix product, as three Triton kernels, for CUDA.

1. ``_sum_rows``: weighted sums of rows of a matrix, each written once. Decoding is one (a sum of
   decoder rows for each position), and so are the gradients of decoder and encoder (a sum of
   positions for each latent), once the codes are sorted by latent.
2. ``_dots``: the gradient of the codes, products of positions with the decoder rows they chose.
3. ``_adam``: an optimiser's step and, for decoder rows, the removal of the gradient along them
   before and unit norm after it, in one pass over memory.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

_ADAM_EPS = 1e-8
_VECTOR = 1024
"""elements of a vector that one program updates"""


class Sorted(NamedTuple):
    """The places of a batch's codes, in the order of their latents."""

    order: Tensor
    """int64 ``[rows · k]``: of each place in the order, where it stands in the codes"""
    begin: Tensor
    """int64 ``[n_latents + 1]``: where each latent's places begin; the last: where they all end"""


def sort_by_latent(indices: Tensor, n_latents: int) -> Sorted:
    """Sort the places of codes ``indices [rows, k]`` by latent, in each by row; nothing waits for
    the host. Places with index ``n_latents`` are empty, and left out."""
    latents, order = indices.flatten().sort(stable=True)
    each = torch.arange(n_latents + 1, dtype=indices.dtype, device=indices.device)
    return Sorted(order, torch.searchsorted(latents, each))


def decode(values: Tensor, indices: Tensor, matrix: Tensor) -> Tensor:
    """Return ``Σ_j values[r, j] · matrix[indices[r, j]]``, ``[rows, d]``, over the places before
    the first empty one; those have index ``len(matrix)``."""
    rows, k = indices.shape
    begin = torch.arange(0, rows * k, k, device=indices.device)
    end = begin + (indices < len(matrix)).sum(1)
    out = torch.empty(rows, matrix.shape[1], device=matrix.device)
    return _sum(out, begin, end, weights=values.flatten(), sources=indices.flatten(), matrix=matrix)


def encode_backward(values: Tensor, by_latent: Sorted, vectors: Tensor, out: Tensor) -> Tensor:
    """Add to ``out`` ``[n_latents, d]`` the sum over rows r and places j of ``values[r, j] ·
    vectors[r]`` in row ``indices[r, j]``; return it. ``values`` are ``[rows, k]``."""
    weights, sources = values.flatten()[by_latent.order], by_latent.order // values.shape[1]
    begin, end = by_latent.begin[:-1], by_latent.begin[1:]
    return _sum(out, begin, end, weights=weights, sources=sources, matrix=vectors, add=True)


def _sum(
    out: Tensor, begin: Tensor, end: Tensor,
    *, weights: Tensor, sources: Tensor, matrix: Tensor, add: bool = False,
) -> Tensor:  # fmt: skip
    assert matrix.is_contiguous() and out.is_contiguous(), "rows lie one after the other"
    n, d = out.shape
    _sum_rows[(n, triton.cdiv(d, 128))](
        out, begin, end, weights, sources, matrix, d, ADD=add, BE=16, BC=128
    )
    return out


def dots(vectors: Tensor, values: Tensor, indices: Tensor, matrix: Tensor) -> Tensor:
    """Return ``vectors[r] · matrix[indices[r, j]]`` ``[rows, k]`` where ``values[r, j] > 0``, else
    0: the gradient of :func:`decode` by positive codes."""
    rows, k = indices.shape
    out = torch.empty(rows, k, device=vectors.device)
    _dots[(rows, triton.cdiv(k, 16))](
        out, vectors.contiguous(), values, indices, matrix, k, matrix.shape[1], BE=16, BC=128
    )
    return out


def adam_(
    parameter: Tensor, gradient: Tensor, mean: Tensor, square: Tensor,
    *, rate: Tensor, betas: tuple[float, float], unit_rows: bool = False,
) -> None:  # fmt: skip
    """Take Adam's step in place. ``rate`` is float32 ``[2]``: ``lr / (1 − β₁ᵗ)`` and
    ``√(1 − β₂ᵗ)`` (Kingma and Ba 2015, section 2).

    ``unit_rows``: as :meth:`sae.model.SAE.remove_parallel_gradient_` before and
    :meth:`sae.model.SAE.normalize_decoder_` after it.
    """
    n = parameter.numel()
    d = parameter.shape[1] if parameter.dim() == 2 else min(n, _VECTOR)
    _adam[(triton.cdiv(n, d),)](
        parameter, gradient.contiguous(), mean, square, rate, n, d, *betas,
        EPS=_ADAM_EPS, UNIT=unit_rows, BD=triton.next_power_of_2(d), num_warps=8,
    )  # fmt: skip


@triton.jit
def _sum_rows(  # noqa: PLR0917
    out, begin, end, weights, sources, matrix, d,
    ADD: tl.constexpr, BE: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * BC + tl.arange(0, BC)
    valid = channel < d
    first, last = tl.load(begin + row), tl.load(end + row)
    total = tl.zeros((BC,), dtype=tl.float32)
    for start in range(first, last, BE):
        entry = start + tl.arange(0, BE)
        there = entry < last
        weight = tl.load(weights + entry, mask=there, other=0)
        source = tl.load(sources + entry, mask=there, other=0).to(tl.int64)
        place = matrix + source[:, None] * d + channel[None, :]
        rows = tl.load(place, mask=there[:, None] & valid[None, :], other=0)
        total += tl.sum(weight[:, None] * rows, 0)
    to = out + row * d + channel
    if ADD:
        total += tl.load(to, mask=valid, other=0)
    tl.store(to, total, mask=valid)


@triton.jit
def _dots(  # noqa: PLR0917
    out, vectors, values, indices, matrix, k, d, BE: tl.constexpr, BC: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * BE + tl.arange(0, BE)
    inside = place < k
    wanted = inside & (tl.load(values + row * k + place, mask=inside, other=0) > 0)
    latent = tl.load(indices + row * k + place, mask=wanted, other=0).to(tl.int64)
    total = tl.zeros((BE,), dtype=tl.float32)
    if tl.max(wanted.to(tl.int32), 0) > 0:
        for start in range(0, d, BC):
            channel = start + tl.arange(0, BC)
            valid = channel < d
            vector = tl.load(vectors + row * d + channel, mask=valid, other=0)
            at = matrix + latent[:, None] * d + channel[None, :]
            rows = tl.load(at, mask=wanted[:, None] & valid[None, :], other=0)
            total += tl.sum(vector[None, :] * rows, 1)
    tl.store(out + row * k + place, total, mask=inside)


@triton.jit
def _adam(  # noqa: PLR0917
    parameter, gradient, mean, square, rate, n, d, beta1, beta2,
    EPS: tl.constexpr, UNIT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, BD)
    at = tl.program_id(0).to(tl.int64) * d + column
    valid = (column < d) & (at < n)
    w = tl.load(parameter + at, mask=valid, other=0)
    g = tl.load(gradient + at, mask=valid, other=0)
    if UNIT:
        g -= tl.sum(g * w, 0) * w
    m = tl.load(mean + at, mask=valid, other=0)
    v = tl.load(square + at, mask=valid, other=0)
    m += (1 - beta1) * (g - m)
    v = beta2 * v + (1 - beta2) * g * g
    w -= tl.load(rate) * m / (tl.sqrt(v) / tl.load(rate + 1) + EPS)
    if UNIT:
        norm = tl.sqrt(tl.sum(w * w, 0))
        w = w / tl.maximum(norm, 1.17549435e-38)  # A row of zeros stays.
    tl.store(mean + at, m, mask=valid)
    tl.store(square + at, v, mask=valid)
    tl.store(parameter + at, w, mask=valid)
