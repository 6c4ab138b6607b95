# mypy: disable-error-code="no-untyped-def,import-untyped,import-not-found"
"""Rules as three Triton kernels, for CUDA: nothing waits for the host, and no code of all latents
is made.

1. ``_select``: the selected latents' pre-activations at every position, and where a rule may apply.
2. ``_count``, for TopK only: how many latents exceed each of them, in tiles of ``x W_encᵀ`` that
   are forgotten at once. A latent is active if fewer than k exceed it. Blocks of positions where no
   rule may apply end at once.
3. ``_apply``: the change of the activations, times ``W_dec``, added in place where it is not zero.

The products are taken in float32 accuracy (3 × TF32 on tensor cores). What they equal is
:func:`sae.intervention.change.rules_change`, which serves wherever these do not: on a CPU, with
gradients, without Triton.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from sae.intervention.rules import Rules
from sae.model import SAE

MOST_FEATURES = 64
"""at one timestep of one SAE; more would not fit into a block's registers"""
_SPAN = 512
"""latents that one program counts through"""


class Fused(NamedTuple):
    """Rules and what they need of an SAE, prepared once for many calls: of one step, or of all
    steps of a schedule."""

    k: int
    """of TopK; 0: every latent has a threshold, or all are active"""
    features: Tensor
    """int32 ``[steps, m]``"""
    encoder: Tensor
    """``[steps, m, d_in]``: the features' rows of ``W_enc``"""
    bias: Tensor
    """``[steps, m]``: of the encoder"""
    decoder: Tensor
    """``[steps, m, d_in]``: the features' rows of ``W_dec``"""
    centre: Tensor
    """``[d_in]``: what is subtracted before encoding"""
    least: Tensor
    """``[steps, m]``: as :attr:`Rules.least`"""
    theta: Tensor
    """``[steps, m]``: a latent is active above this, if it is active at all"""
    growth: Tensor
    """``[steps, n_layers, m]``"""
    threshold: Tensor
    """``[steps, n_layers, m]``: infinite where a layer has no rule for the feature"""
    offset: Tensor
    """``[steps, n_layers, m]``"""
    where: Tensor | None
    """uint8 ``[steps, n_layers, positions, m]``; None: everywhere"""


_PADDING = {"least": torch.inf, "threshold": torch.inf, "where": 1}
"""with what is filled up where a step has fewer rules than another: no rule; else 0"""


def stack(steps: Sequence[Fused]) -> Fused:
    """Return the rules of one step each, all of one SAE, as those of a schedule."""
    tensors = {name: [getattr(one, name) for one in steps] for name in Fused._fields}
    shapes = [one.threshold.shape for one in steps]
    n_layers, m = (max(shape[i] for shape in shapes) for i in (1, 2))
    sizes: dict[str, tuple[int, ...]] = dict.fromkeys(
        ("growth", "threshold", "offset"), (n_layers, m)
    )
    sizes |= dict.fromkeys(("features", "bias", "least", "theta"), (m,))
    sizes |= dict.fromkeys(("encoder", "decoder"), (m, len(steps[0].centre)))
    positions = next((one.where.shape[2] for one in steps if one.where is not None), 0)
    if positions:
        sizes["where"] = (n_layers, positions, m)
    stacked = {}
    for name, size in sizes.items():
        given = [one for one in tensors[name] if one is not None]
        filled = given[0].new_full((len(steps), *size), _PADDING.get(name, 0))
        for i, one in enumerate(tensors[name]):
            if one is not None:
                filled[(i, *map(slice, one.shape[1:]))] = one[0]
        stacked[name] = filled
    return steps[0]._replace(**stacked)


def fuse(sae: SAE, rules: Rules | None) -> Fused | None:
    """Return the rules of a step ready for :func:`apply_`; None if the kernels cannot express
    them."""
    if rules is None:
        nothing = torch.zeros(0, device=sae.W_enc.device)
        rules = Rules(nothing.long(), nothing, None, ())
    config, m = sae.config, len(rules.features)
    if (
        rules.fills
        or m > MOST_FEATURES
        or config.normalize_activations != "none"
        or not sae.W_enc.is_contiguous()
    ):
        return None
    rows = rules.features
    shape = (len(rules.layers), m)
    threshold = torch.full(shape, torch.inf, device=rows.device)
    growth, offset = (torch.zeros(shape, device=rows.device) for _ in range(2))
    masks = [layer.where for layer in rules.layers if layer.where is not None]
    where = (
        torch.zeros(shape[0], len(masks[0]), m, dtype=torch.uint8, device=rows.device)
        if masks
        else None
    )
    for i, layer in enumerate(rules.layers):
        growth[i, layer.at], threshold[i, layer.at], offset[i, layer.at] = (
            layer.growth,
            layer.threshold,
            layer.offset,
        )
        if where is not None:
            assert layer.where is not None, "join gives all layers a mask, or none"
            where[i][:, layer.at] = layer.where.to(torch.uint8)
    has_threshold = sae.variant.has_threshold
    with torch.no_grad():
        theta = (
            sae.threshold[rows].clamp_min(0)
            if has_threshold
            else torch.zeros(m, device=rows.device)
        )
        centre = sae.b_dec if config.apply_b_dec_to_input else torch.zeros_like(sae.b_dec)
        return Fused(
            k=0 if has_threshold or config.k == config.n_latents else config.k,
            features=rows.to(torch.int32)[None],
            encoder=sae.W_enc[rows][None],
            bias=sae.b_enc[rows][None],
            decoder=sae.W_dec[rows][None],
            centre=centre.detach().contiguous(),
            least=rules.least[None],
            theta=theta[None],
            growth=growth[None],
            threshold=threshold[None],
            offset=offset[None],
            where=None if where is None else where[None],
        )


@torch.no_grad()
def apply_(
    sae: SAE, fused: Fused, x: Tensor, out: Tensor, lookup: tuple[Tensor, Tensor] | None = None
) -> None:
    """Add to ``out`` by how much rules change ``x``; both ``[batch, positions, d_in]``, of any
    strides and precision.

    A position that no rule changes keeps its bits. Where ``fused`` is of a schedule, ``lookup`` is
    float32 timesteps ``[steps]`` and the one given, ``[1]``: the device takes the step whose
    timestep is the nearest.
    """
    batch, positions, d_in = x.shape
    n, (n_steps, m) = batch * positions, fused.features.shape
    assert lookup is not None or n_steps == 1, "a step of a schedule is looked up"
    at = lookup or (fused.bias, fused.bias)  # Pointers that are not read for a single step.
    step = {"n_steps": n_steps, "STEPS": triton.next_power_of_2(n_steps)}
    width = max(16, triton.next_power_of_2(m))  # Tensor cores take no fewer.
    tile = (
        128 if width <= 32 else 64
    )  # As many latents at once as registers hold without spilling, on an H100.
    pre = torch.empty(n, m, device=x.device)
    above = torch.zeros(n, m, dtype=torch.int32, device=x.device)
    fires = torch.empty(n, dtype=torch.int8, device=x.device)
    where = (
        fused.features if fused.where is None else fused.where
    )  # A pointer that is not read, where there is no mask.
    has_mask, n_layers = fused.where is not None, fused.growth.shape[1]
    _select[(triton.cdiv(n, 16),)](
        *at, x, fused.encoder, fused.bias, fused.centre, fused.least, pre, fires,
        n, positions, d_in, m, *x.stride(), **step, BP=16, BM=width, BK=32,
    )  # fmt: skip
    if fused.k:
        _count[(triton.cdiv(n, 64), triton.cdiv(sae.config.n_latents, _SPAN))](
            *at, x, sae.W_enc, sae.b_enc, fused.centre, fused.features, pre, fires, above,
            n, positions, d_in, m, sae.config.n_latents, *x.stride(), **step,
            BP=64, BL=tile, BM=width, BK=32, SPAN=_SPAN, num_warps=8,
        )  # fmt: skip
    _apply[(triton.cdiv(n, 32), triton.cdiv(d_in, 64))](
        *at, out, fused.decoder, pre, above, fused.theta, fused.growth, fused.threshold,
        fused.offset, where, n, positions, d_in, m, fused.k or 1, n_layers, *out.stride(), **step,
        HAS_MASK=has_mask, BP=32, BM=width, BC=64,
    )  # fmt: skip


@triton.jit
def _product(
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
def _select(
    timesteps, given, x, encoder, bias, centre, least, pre, fires,
    n, positions, d_in, m, x_batch, x_position, x_channel, n_steps,
    STEPS: tl.constexpr, BP: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
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
def _count(
    timesteps, given, x, encoder, bias, centre, features, pre, fires, above,
    n, positions, d_in, m, n_latents, x_batch, x_position, x_channel, n_steps,
    STEPS: tl.constexpr, BP: tl.constexpr, BL: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
    SPAN: tl.constexpr,
):  # fmt: skip
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
                # however
                # it is rounded.
                larger = (value > own) | ((value == own) & (latent < feature)[None, :])
                larger = larger & (known & (latent != feature))[None, :]
                counts += tl.where(column[None, :] == j, tl.sum(larger.to(tl.int32), 1)[:, None], 0)
        there = in_row[:, None] & (column < m)[None, :]
        tl.atomic_add(above + row[:, None] * m + column[None, :], counts, mask=there)


@triton.jit
def _apply(
    timesteps, given, out, decoder, pre, above, theta, growth, threshold, offset, where,
    n, positions, d_in, m, k, n_layers, out_batch, out_position, out_channel, n_steps,
    STEPS: tl.constexpr, HAS_MASK: tl.constexpr, BP: tl.constexpr, BM: tl.constexpr,
    BC: tl.constexpr,
):  # fmt: skip
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
