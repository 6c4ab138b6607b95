# mypy: disable-error-code="no-untyped-def,import-untyped,import-not-found"
"""The k largest of each row as a Triton kernel, for CUDA: by counting, with no sort and no wait for
the host.

A positive float32 is ordered as its bits are. So the k-th largest value is found bit by bit: a bit
is set if at least k values reach the number with it, 31 counts of a row that stays in registers.
What it equals is :func:`sae.sparse.top_k`, which serves wherever this does not.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

MOST_LATENTS = 32768
"""more would not fit into a block's registers"""


@torch.no_grad()
def choose(
    pre: Tensor, k: int, bias: Tensor | None = None, allowed: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the ``k`` largest positive values of each row of ``pre + bias`` and their indices.

    Shapes: ``pre`` is float32 ``[rows, n]``, ``bias`` float32 ``[n]``, ``allowed`` boolean ``[n]``:
        which columns may be chosen. Both results are ``[rows, k]``, float32 and int32, in ascending
        order of the indices; where fewer are positive, value 0 and index ``n`` fill the end.

    Of equal values the lower index is kept. A NaN counts as the largest, so that it is not lost.
    """
    rows, n = pre.shape
    assert n <= MOST_LATENTS and pre.dtype == torch.float32 and pre.is_contiguous(), "as described"
    values = torch.zeros(rows, k, device=pre.device)
    indices = torch.full((rows, k), n, dtype=torch.int32, device=pre.device)
    block = triton.next_power_of_2(n)
    _choose[(rows,)](
        pre, pre if bias is None else bias, pre if allowed is None else allowed.view(torch.int8),
        values, indices, n, k, HAS_BIAS=bias is not None, HAS_ALLOWED=allowed is not None, BN=block,
        num_warps=max(1, min(32, block // 1024)),
    )  # fmt: skip
    return values, indices


@triton.jit
def _choose(  # noqa: PLR0917
    pre, bias, allowed, values, indices, n, k,
    HAS_BIAS: tl.constexpr, HAS_ALLOWED: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, BN)
    inside = column < n
    value = tl.load(pre + row * n + column, mask=inside, other=0)
    if HAS_BIAS:
        value += tl.load(bias + column, mask=inside, other=0)
    counts = (value > 0) | (value != value)
    if HAS_ALLOWED:
        counts = counts & (tl.load(allowed + column, mask=inside, other=0) != 0)
    bits = tl.where(counts & inside, value.to(tl.int32, bitcast=True) & 0x7FFFFFFF, 0)
    least = 0
    for place in range(0, 31):
        raised = least | (1 << (30 - place))
        least = tl.where(tl.sum((bits >= raised).to(tl.int32), 0) >= k, raised, least)
    above = bits > least
    equal = (bits == least) & (bits > 0)
    wanted = k - tl.sum(above.to(tl.int32), 0)
    chosen = above | (equal & (tl.cumsum(equal.to(tl.int32), 0) <= wanted))
    to = row * k + tl.cumsum(chosen.to(tl.int32), 0) - 1
    tl.store(values + to, bits.to(tl.float32, bitcast=True), mask=chosen)
    tl.store(indices + to, column, mask=chosen)
