# mypy: disable-error-code="no-untyped-def,import-untyped,import-not-found"
"""Three Triton kernels that edit by rules, for CUDA; :mod:`sae.intervention.fused` launches them.

1. :func:`select`: the selected latents' pre-activations at every position, and where a rule may
   apply.
2. :func:`count`, for TopK only: how many latents exceed each of them, in tiles of ``x W_encᵀ`` that
   are forgotten at once. A latent is active if fewer than k exceed it. Blocks of positions where no
   rule may apply end at once.
3. :func:`apply`: the change of the activations, times ``W_dec``, added in place where it is not
   zero.

The products are taken in float32 accuracy (3 × TF32 on tensor cores). Triton passes a kernel's
arguments by position, so signatures are long.
"""

import triton
import triton.language as tl


@triton.jit
def _product(  # noqa: PLR0917
    x, start, weight, rows, row_mask, position_mask, centre, d_in, x_channel,
    BP: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Return ``(x − centre) weight[rows]ᵀ``, float32 ``[BP, BN]``; channels are always added up in
    the same order."""
    total = tl.zeros((BP, BN), dtype=tl.float32)
    for first in range(0, d_in, BK):
        channel = first + tl.arange(0, BK)
        valid = channel < d_in
        here = position_mask[:, None] & valid[None, :]
        values = tl.load(x + start[:, None] + channel[None, :] * x_channel, mask=here, other=0).to(
            tl.float32
        )
        values -= tl.load(centre + channel, mask=valid, other=0)[None, :]
        there = row_mask[None, :] & valid[:, None]
        w = tl.load(weight + rows[None, :] * d_in + channel[:, None], mask=there, other=0)
        total = tl.dot(values, w, total, input_precision="tf32x3")
    return total


@triton.jit
def _starts(row, positions, batch_stride, position_stride):
    """Return where positions begin, counted over all maps of the batch."""
    return (row // positions).to(tl.int64) * batch_stride + (row % positions).to(
        tl.int64
    ) * position_stride


@triton.jit
def _step(timesteps, given, n_steps, STEPS: tl.constexpr):
    """Return which step's timestep is the nearest to the given one."""
    found = 0
    if STEPS > 1:
        at = tl.arange(0, STEPS)
        known = tl.load(timesteps + at, mask=at < n_steps, other=float("inf"))
        found = tl.argmin(tl.abs(known - tl.load(given)), 0)
    return found


@triton.jit
def select(  # noqa: PLR0917
    timesteps, given, x, encoder, bias, centre, least, pre, fires,
    n, positions, d_in, m, x_batch, x_position, x_channel, n_steps,
    STEPS: tl.constexpr, BP: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Store ``x W_encᵀ + b_enc`` of the selected latents in ``pre``, and in ``fires`` where one
    exceeds its ``least``."""
    first = _step(timesteps, given, n_steps, STEPS) * m
    encoder, bias, least = encoder + first * d_in, bias + first, least + first
    row, column = tl.program_id(0) * BP + tl.arange(0, BP), tl.arange(0, BM)
    in_row, in_column = row < n, column < m
    start = _starts(row, positions, x_batch, x_position)
    value = _product(
        x, start, encoder, column, in_column, in_row, centre, d_in, x_channel, BP, BM, BK
    )
    value += tl.load(bias + column, mask=in_column, other=0)[None, :]
    tl.store(
        pre + row[:, None] * m + column[None, :], value, mask=in_row[:, None] & in_column[None, :]
    )
    passes = (value > tl.load(least + column, mask=in_column, other=0)[None, :]) & in_column[
        None, :
    ]
    tl.store(fires + row, tl.max(passes.to(tl.int32), 1).to(tl.int8), mask=in_row)


@triton.jit
def count(  # noqa: PLR0917
    timesteps, given, x, encoder, bias, centre, features, pre, fires, above,
    n, positions, d_in, m, n_latents, x_batch, x_position, x_channel, n_steps,
    STEPS: tl.constexpr, BP: tl.constexpr, BL: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
    SPAN: tl.constexpr,
):  # fmt: skip
    """Add to ``above`` how many latents exceed each of the selected ones, at every position."""
    features += _step(timesteps, given, n_steps, STEPS) * m
    row, column = tl.program_id(0) * BP + tl.arange(0, BP), tl.arange(0, BM)
    in_row = row < n
    if tl.max(tl.load(fires + row, mask=in_row, other=0).to(tl.int32), 0) > 0:
        start = _starts(row, positions, x_batch, x_position)
        counts = tl.zeros((BP, BM), dtype=tl.int32)
        for first in range(0, SPAN, BL):
            latent = tl.program_id(1) * SPAN + first + tl.arange(0, BL)
            known = latent < n_latents
            value = _product(
                x, start, encoder, latent, known, in_row, centre, d_in, x_channel, BP, BL, BK
            )
            value += tl.load(bias + latent, mask=known, other=0)[None, :]
            for j in range(0, m):
                own = tl.load(pre + row * m + j, mask=in_row, other=0)[:, None]
                feature = tl.load(features + j)
                # Of equal ones the lower latent counts first; a latent does not exceed itself,
                # however it is rounded.
                larger = (value > own) | ((value == own) & (latent < feature)[None, :])
                larger = larger & (known & (latent != feature))[None, :]
                counts += tl.where(column[None, :] == j, tl.sum(larger.to(tl.int32), 1)[:, None], 0)
        there = in_row[:, None] & (column < m)[None, :]
        tl.atomic_add(above + row[:, None] * m + column[None, :], counts, mask=there)


@triton.jit
def apply(  # noqa: PLR0917
    timesteps, given, out, decoder, pre, above, theta, growth, threshold, offset, where,
    n, positions, d_in, m, k, n_layers, out_batch, out_position, out_channel, n_steps,
    STEPS: tl.constexpr, HAS_MASK: tl.constexpr, BP: tl.constexpr, BM: tl.constexpr,
    BC: tl.constexpr,
):  # fmt: skip
    """Add to ``out`` the change of the activations times ``W_dec``, where it is not zero."""
    first = _step(timesteps, given, n_steps, STEPS) * m
    decoder, theta = decoder + first * d_in, theta + first
    row, column = tl.program_id(0) * BP + tl.arange(0, BP), tl.arange(0, BM)
    in_row, in_column = row < n, column < m
    there = in_row[:, None] & in_column[None, :]
    value = tl.load(pre + row[:, None] * m + column[None, :], mask=there, other=0)
    active = tl.load(above + row[:, None] * m + column[None, :], mask=there, other=0) < k
    f = tl.where(
        active & (value > tl.load(theta + column, mask=in_column, other=0)[None, :]), value, 0.0
    )
    delta = tl.zeros((BP, BM), dtype=tl.float32)
    for layer in range(0, n_layers):
        at = first * n_layers + layer * m + column
        limit = tl.load(threshold + at, mask=in_column, other=float("inf"))[None, :]
        change = tl.load(offset + at, mask=in_column, other=0)[None, :]
        change += tl.load(growth + at, mask=in_column, other=0)[None, :] * f
        holds = f > limit
        if HAS_MASK:
            begin = where + (first * n_layers * positions).to(tl.int64)
            inside = begin + (layer * positions + row % positions)[:, None] * m + column[None, :]
            holds = holds & (tl.load(inside, mask=there, other=0) != 0)
        change = tl.where(holds, change, 0.0)
        delta = tl.where(tl.abs(change) > tl.abs(delta), change, delta)
    changed = tl.max((delta != 0).to(tl.int32), 1) > 0
    if tl.max(changed.to(tl.int32), 0) > 0:
        channel = tl.program_id(1) * BC + tl.arange(0, BC)
        valid = channel < d_in
        rows = tl.load(
            decoder + column[:, None] * d_in + channel[None, :],
            mask=in_column[:, None] & valid[None, :],
            other=0,
        )
        to = (
            out
            + _starts(row, positions, out_batch, out_position)[:, None]
            + channel[None, :] * out_channel
        )
        written = (changed & in_row)[:, None] & valid[None, :]
        before = tl.load(to, mask=written, other=0)
        after = before.to(tl.float32) + tl.dot(delta, rows, input_precision="tf32x3")
        tl.store(to, after.to(before.dtype), mask=written)
