"""What an edit changes at one denoiser call, computed where it changes something and nowhere else.

Pure functions of positions, an SAE and rules; docs/ablation.md has the formulas.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sae.diffusion.hooks import Layout
from sae.intervention.rules import Layer, Rules
from sae.model import SAE


class Steer(NamedTuple):
    """A vector that is added to every position."""

    vector: Tensor
    """``[d_in]``"""
    where: Tensor | None = None
    """bool ``[positions]``; None: everywhere"""


class Edit(NamedTuple):
    """All that is done at one timestep to what passes one hook, in one branch, with one SAE."""

    rules: Rules | None = None
    detectors: Rules | None = None
    """whose positions are replaced; only their features, thresholds and ``where`` matter"""
    steers: Sequence[Steer] = ()
    errors: int = 0
    """how many times ``x̂ − x`` is added"""
    errors_where: Tensor | None = None
    """bool ``[positions]``; None: everywhere"""

    @property
    def is_empty(self) -> bool:
        """Whether nothing is done."""
        return self.rules is None and self.detectors is None and not self.steers and not self.errors


def on_device(part: Any, device: torch.device) -> Any:
    """Return an edit, or a part of one, with its tensors on a device."""
    if isinstance(part, Tensor):
        return part.to(device)
    if not isinstance(part, (tuple, list)):
        return part
    moved = [on_device(one, device) for one in part]
    return part._make(moved) if hasattr(part, "_make") else moved


def edit_change(sae: SAE, x: Tensor, layout: Layout, edit: Edit) -> tuple[Tensor, Tensor]:
    """Return which positions an edit changes, and by how much: ``(rows [m], change [m, d_in])``.

    ``x`` is ``[batch · positions, d_in]``. A replaced position is edited by nothing else; rules,
    steering and ``errors · (x̂ − x)`` add up.
    """
    rows, change = rules_change(sae, x, edit.rules)
    if edit.detectors is None and not edit.steers and not edit.errors:
        return rows, change
    replaced, replacement = _replacements(sae, x, layout, edit.detectors)
    if not edit.steers and not edit.errors:
        kept = ~torch.isin(rows, replaced)
        return torch.cat([rows[kept], replaced]), torch.cat([change[kept], replacement])
    total = torch.zeros_like(x).index_add(0, rows, change)
    if edit.errors:
        total = total + _inside(edit.errors * (sae(x) - x), edit.errors_where)
    for steer in edit.steers:
        total = total + _inside(steer.vector.expand_as(x), steer.where)
    total = total.index_copy(0, replaced, replacement)
    return torch.arange(len(x), device=x.device), total


def rules_change(sae: SAE, x: Tensor, rules: Rules | None) -> tuple[Tensor, Tensor]:
    """Return which positions rules change, and by how much: ``(rows [m], change [m, d_in])``; ``x``
    is ``[n, d_in]``.

    Equals :func:`~sae.intervention.rules.paper_rule` minus ``x`` at these positions, some of whose
    changes may be 0; all other positions stay. Where two rules edit one feature at one position,
    the larger edit holds. Where a rule has changed something, its fill raises what is kept.
    Differentiable in ``x``.
    """
    rows, near, f = _firing(sae, x, rules)
    if rules is None or not len(rows):
        return rows, x[:0]
    first, *others = rules.layers
    delta = _delta(first, f, rows)
    for layer in others:
        new, before = _delta(layer, f[:, layer.at], rows), delta[:, layer.at]
        delta = delta.index_copy(1, layer.at, torch.where(new.abs() > before.abs(), new, before))
    change = sae.change(near, delta, rules.features)
    for fill in rules.fills:
        at = (delta[:, fill.of] != 0).any(1).nonzero().flatten()
        if len(at):
            raised = (fill.level - sae.encode_some(near[at], fill.features)).clamp_min(0)
            change = change.index_add(0, at, sae.change(near[at], raised, fill.features))
    return rows, change


def _delta(layer: Layer, f: Tensor, rows: Tensor) -> Tensor:
    """Return by how much a layer changes the activations of its own latents,
    ``[m, n_features]``."""
    return torch.where(_fires(layer, f, rows), torch.addcmul(layer.offset, layer.growth, f), 0.0)


def _firing(sae: SAE, x: Tensor, rules: Rules | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return where a rule may apply, ``x`` there, and the rules' latents' activations: ``[m], [m,
    d_in], [m, n]``.

    Exact without encoding everything: a latent changes only where its own pre-activation exceeds
    its threshold; only there does TopK need the full encoder, to know whether the latent is among
    the k largest.
    """
    if rules is None:
        return torch.zeros(0, dtype=torch.int64, device=x.device), x[:0], x[:0]
    pre = sae.pre_acts(x, rules.features)
    fires = (pre > rules.least).any(1)
    if rules.where is not None:
        fires = fires & _tiled(rules.where, len(x))
    rows = fires.nonzero().flatten()
    if not len(rows):
        return rows, x[:0], x[:0]
    near = x[rows]
    return rows, near, sae.encode_some(near, rules.features, pre[rows])


def _replacements(
    sae: SAE, x: Tensor, layout: Layout, detectors: Rules | None
) -> tuple[Tensor, Tensor]:
    """Return the positions to be replaced and ``x[donor] − x[position]``; a map that is detected
    everywhere stays."""
    rows, _, f = _firing(sae, x, detectors)
    if detectors is None or not len(rows):
        return rows, x[:0]
    found = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for layer in detectors.layers:
        found[rows] |= _fires(layer, f[:, layer.at], rows).any(1)
    n = layout.height * layout.width
    index = torch.arange(n, device=x.device)
    row, height = index // layout.width, layout.height // layout.frames
    # A donor is taken from the same frame while there is one.
    far = (row // height) * (layout.height + layout.width)
    places = torch.stack([row % height, index % layout.width, far], 1).float()
    positions, donors = [index[:0]], [index[:0]]
    for start in range(0, len(x), n):
        detected = found[start : start + n]
        if bool(detected.any()) and not bool(detected.all()):
            distance = torch.cdist(places[detected], places[~detected])
            positions.append(start + index[detected])
            donors.append(start + index[~detected][distance.argmin(1)])
    replaced = torch.cat(positions)
    return replaced, x[torch.cat(donors)] - x[replaced]


def _fires(layer: Layer, f: Tensor, rows: Tensor) -> Tensor:
    """Say where a layer applies, ``[m, n_features]``, to the activations at ``rows``."""
    fires = f > layer.threshold
    return fires if layer.where is None else fires & layer.where[rows % len(layer.where)]


def _tiled(where: Tensor, n: int) -> Tensor:
    return where.repeat(n // len(where))


def _inside(values: Tensor, where: Tensor | None) -> Tensor:
    return values if where is None else values * _tiled(where, len(values))[:, None]
