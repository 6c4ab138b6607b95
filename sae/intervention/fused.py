# mypy: disable-error-code="import-untyped,import-not-found"
"""Rules of an edit ready for the kernels, and their launch: nothing waits for the host, and no code
of all latents is made.

What :func:`apply_` equals is :func:`sae.intervention.change.rules_change`, which serves wherever
this does not: on a CPU, with gradients, without Triton.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from sae.intervention.kernels import apply, count, select
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
    sae: SAE, fused: Fused, x: Tensor, out: Tensor, *, lookup: tuple[Tensor, Tensor] | None = None
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
    # As many latents at once as registers hold without spilling, on an H100.
    tile = 128 if width <= 32 else 64
    pre = torch.empty(n, m, device=x.device)
    above = torch.zeros(n, m, dtype=torch.int32, device=x.device)
    fires = torch.empty(n, dtype=torch.int8, device=x.device)
    # Without a mask a pointer that is not read.
    where = fused.features if fused.where is None else fused.where
    has_mask, n_layers = fused.where is not None, fused.growth.shape[1]
    select[(triton.cdiv(n, 16),)](
        *at, x, fused.encoder, fused.bias, fused.centre, fused.least, pre, fires,
        n, positions, d_in, m, *x.stride(), **step, BP=16, BM=width, BK=32,
    )  # fmt: skip
    if fused.k:
        count[(triton.cdiv(n, 64), triton.cdiv(sae.config.n_latents, _SPAN))](
            *at, x, sae.W_enc, sae.b_enc, fused.centre, fused.features, pre, fires, above,
            n, positions, d_in, m, sae.config.n_latents, *x.stride(), **step,
            BP=64, BL=tile, BM=width, BK=32, SPAN=_SPAN, num_warps=8,
        )  # fmt: skip
    apply[(triton.cdiv(n, 32), triton.cdiv(d_in, 64))](
        *at, out, fused.decoder, pre, above, fused.theta, fused.growth, fused.threshold,
        fused.offset, where, n, positions, d_in, m, fused.k or 1, n_layers, *out.stride(), **step,
        HAS_MASK=has_mask, BP=32, BM=width, BC=64,
    )  # fmt: skip
