"""The two sparse operations of an SAE, with gradients that never form a dense
``[batch, n_latents]`` code.

Forward is the encoder's matrix product and the selection, backward touches k rows per position.
Against the same formulas under automatic differentiation a step takes half the time, see
benchmarks/train.py.
"""

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_GROUPS = 8
_MANY_ON_CUDA = 2**25
"""values from which grouping is faster, on an H100: 33 of 20480 in 2048 rows 0.37 ms against 0.72,
in 256 0.39 against 0.23"""


@functools.cache
def has_kernels(device: torch.device) -> bool:
    """Say whether this project's kernels run on a device: on CUDA, where Triton is installed."""
    return (
        device.type == "cuda"
        and torch.version.hip is None
        and importlib.util.find_spec("triton") is not None
    )


def top_k(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the ``k`` largest of each row of ``[rows, n]`` and their indices, both ``[rows, k]``,
    largest first.

    Ties: of equal positive values the lower index is kept, on every device and in every precision.
    Which of several
    values <= 0 fill the remaining places is not defined: a code of value 0 means nothing.
    """
    n = values.shape[1]
    if k == n:
        return values.sort(dim=-1, descending=True, stable=True)
    if values.dtype == torch.float32 and has_kernels(values.device):
        from sae.choosing import MOST_LATENTS, choose

        if n <= MOST_LATENTS:
            chosen, columns = choose(values.contiguous(), k)
            best, order = chosen.sort(dim=-1, descending=True, stable=True)
            return best, columns.gather(1, order).clamp_(max=n - 1).long()
    best, indices = largest(values, k + 1)
    tied = (best[:, k - 1] == best[:, k]) & (best[:, k] > 0)
    best, indices = best[:, :k], indices[:, :k]
    if bool(tied.any()):
        exact = values[tied].sort(dim=-1, descending=True, stable=True)
        best, indices = best.clone(), indices.clone()
        best[tied], indices[tied] = exact.values[:, :k], exact.indices[:, :k]
    return best, indices


def largest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k largest of each row and their indices, largest first; among equals any."""
    # Of few values what counts is how many kernels are launched.
    few = values.is_cuda and values.numel() < _MANY_ON_CUDA
    indices = (_any_places if few else _places)(values, k)
    best, order = values.gather(1, indices).sort(dim=-1, descending=True)
    return best, indices.gather(1, order)


def _places(values: Tensor, k: int) -> Tensor:
    """Return where the k largest are; they lie in the k groups with the largest maxima."""
    rows, n = values.shape
    size = n // _GROUPS
    if n % _GROUPS or size < 4 * k:
        return _any_places(values, k)
    groups = values.view(rows, _GROUPS, size)
    columns = _places(groups.amax(1), k)
    candidates = groups.gather(2, columns.unsqueeze(1).expand(-1, _GROUPS, -1)).flatten(1)
    place = _any_places(candidates, k)
    return (place // k) * size + columns.gather(1, place % k)


def _any_places(values: Tensor, k: int) -> Tensor:
    """Return where the k largest are, directly. NumPy's selection uses vector instructions, torch's
    for the CPU does not."""
    if values.device.type != "cpu" or values.dtype != torch.float32:
        return values.topk(k, dim=-1, sorted=False).indices
    n = values.shape[1]
    return torch.from_numpy(np.argpartition(values.detach().numpy(), n - k, axis=1)[:, n - k :])


def encode_top_k(x: Tensor, weight: Tensor, bias: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return ``TopK_k(ReLU(x weightᵀ + bias))`` as values and indices ``[rows, k]``.

    Shapes: ``x`` is ``[rows, d_in]``, ``weight`` ``[n_latents, d_in]``, ``bias`` ``[n_latents]``.
        Differentiable in all three; the gradient reaches positive values only.
    """
    return encode_selected(x, weight, bias, lambda pre: top_k(pre, k))


def encode_selected(
    x: Tensor, weight: Tensor, bias: Tensor, select: Callable[[Tensor], tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Return what ``select`` takes of ``x weightᵀ + bias`` ``[rows, n_latents]``: values and
    indices ``[rows, width]``.

    Values that are not positive become 0. Differentiable as :func:`encode_top_k`; ``select`` is
    taken as constant.
    """
    values, indices = _Encode.apply(x, weight, bias, select)
    return values, indices


def weighted_rows(values: Tensor, indices: Tensor, matrix: Tensor) -> Tensor:
    """Return ``Σ_j values[r, j] · matrix[indices[r, j]]``, ``[rows, d]``, differentiable in values
    and matrix."""
    result: Tensor = _WeightedRows.apply(values, indices, matrix)
    return result


def weighted_rows_transposed(values: Tensor, indices: Tensor, vectors: Tensor, n: int) -> Tensor:
    """Return ``[n, d]``: the sum over rows r and places j of ``values[r, j] · vectors[r]`` in row
    ``indices[r, j]``.

    Sorted by index it is the same kind of sum as :func:`weighted_rows`: no ``[rows, k, d]`` in
    between, and on a CPU every row is added up in one order, whatever the number of threads.
    """
    order = indices.flatten().argsort(stable=True)
    counts = torch.bincount(indices.flatten(), minlength=n)
    weights, rows = values.flatten()[order], order // indices.shape[1]
    return F.embedding_bag(
        rows, vectors, counts.cumsum(0) - counts, per_sample_weights=weights, mode="sum"
    )


class _WeightedRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, indices: Tensor, matrix: Tensor) -> Tensor:
        ctx.save_for_backward(values, indices, matrix)
        return F.embedding_bag(indices, matrix, per_sample_weights=values, mode="sum")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        values, indices, matrix = ctx.saved_tensors
        needs_values, _, needs_matrix = ctx.needs_input_grad
        return (
            _dots(grad, indices, matrix) if needs_values else None,
            None,
            weighted_rows_transposed(values, indices, grad, len(matrix)) if needs_matrix else None,
        )


def _dots(vectors: Tensor, indices: Tensor, matrix: Tensor) -> Tensor:
    """Return ``vectors[r] · matrix[indices[r, j]]``, ``[rows, k]``: the gradient of a weighted sum
    by its weights."""
    with torch.enable_grad():
        ones = vectors.new_ones(indices.shape, requires_grad=True)
        total = F.embedding_bag(indices, matrix.detach(), per_sample_weights=ones, mode="sum")
    return torch.autograd.grad(total, ones, vectors)[0]


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917 torch gives an autograd function its arguments by position
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        select: Callable[[Tensor], tuple[Tensor, Tensor]],
    ) -> tuple[Tensor, Tensor]:
        values, indices = select(F.linear(x, weight, bias))  # in bfloat16 where autocast says so
        values = values.relu().to(weight.dtype)
        ctx.save_for_backward(x, weight, values > 0, indices)
        ctx.mark_non_differentiable(indices)
        return values, indices

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, positive, indices = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, _select = ctx.needs_input_grad
        grad = grad * positive
        n_latents = weight.shape[0]
        grad_bias = (
            grad.new_zeros(n_latents).index_add_(0, indices.flatten(), grad.flatten())
            if needs_bias
            else None
        )
        return (
            weighted_rows(grad, indices, weight) if needs_x else None,
            weighted_rows_transposed(grad, indices, x, n_latents) if needs_weight else None,
            grad_bias,
            None,
        )
