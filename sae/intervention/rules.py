"""The arithmetic of an intervention at one denoiser call: pure functions of positions, an SAE and rules."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sae.diffusion.hooks import Layout
from sae.model import SAE


class Rule(NamedTuple):
    """What a selection does at one timestep: ``f ← factor · f + offset`` where ``f > threshold``."""

    features: Tensor
    """``[n]`` latents"""
    factor: Tensor
    """``[n]``: by the paper's rule γ · μ(i, t, D_c)"""
    threshold: Tensor
    """``[n]``, none negative: by the paper's rule μ(i, t, D)"""
    offset: float = 0.0
    where: Tensor | None = None
    """bool ``[positions]``, of every map alike; None: everywhere"""


class Steer(NamedTuple):
    """A vector that is added to every position."""

    vector: Tensor
    """``[d_in]``"""
    where: Tensor | None = None
    """as of a rule"""


class Layer(NamedTuple):
    """Rules as one, no two of them about the same latent."""

    at: Tensor
    """``[n]``: places in :attr:`Joint.features`"""
    growth: Tensor
    """``[n]``: factor − 1"""
    threshold: Tensor
    """``[n]``"""
    offset: Tensor
    """``[n]``"""
    where: Tensor | None
    """bool ``[positions, n]``; None: everywhere"""


class Joint(NamedTuple):
    """Several rules, made ready for many calls: an edit on a GPU takes as long as its kernels take to launch."""

    features: Tensor
    """``[n]``, all rules' latents, in order"""
    least: Tensor
    """``[n]``: no rule changes a latent whose pre-activation, inexactly computed, does not exceed this"""
    where: Tensor | None
    """bool ``[positions]``: no rule changes anything elsewhere; None: anywhere"""
    layers: Sequence[Layer]
    """in whose order the rules are taken; the first has all latents"""


def join(rules: Sequence[Rule]) -> Joint | None:
    """Return rules of one SAE as few layers as there may be, a second only where two rules have a latent in common.

    None: there are no rules.
    """
    if not rules:
        return None
    latents = torch.cat([rule.features for rule in rules])
    features, place = torch.unique(latents, return_inverse=True)
    factor, threshold = (torch.cat([getattr(rule, name) for rule in rules]) for name in ("factor", "threshold"))
    offset = torch.cat([torch.full_like(rule.threshold, rule.offset) for rule in rules])
    wheres = [rule.where for rule in rules]
    masks = [where for where in wheres if where is not None]
    inside = torch.stack([torch.ones_like(masks[0]) if w is None else w for w in wheres]) if masks else None
    owner = torch.cat([torch.full_like(rule.features, i) for i, rule in enumerate(rules)])
    layers = []
    for own in _turns(place):
        own = own[place[own].argsort()]
        where = None if inside is None else inside[owner[own]].T
        layers.append(Layer(place[own], factor[own] - 1, threshold[own], offset[own], where))
    lowest = torch.full_like(features, torch.inf, dtype=threshold.dtype).scatter_reduce(0, place, threshold, "amin")
    # A candidate may be kept needlessly, never dropped wrongly: leave room for the rounding of the smaller product.
    least = (lowest - 1e-4 * lowest - 1e-6).clamp_min(0)
    return Joint(features, least, union(wheres), layers)


def union(wheres: Sequence[Tensor | None]) -> Tensor | None:
    """Return where any of several masks is, as of a rule; one that is everywhere makes it everywhere."""
    masks = [where for where in wheres if where is not None]
    return torch.stack(masks).any(0) if masks and len(masks) == len(wheres) else None


def _turns(place: Tensor) -> list[Tensor]:
    """Return where each number of ``place`` stands for the first time, where for the second time, …"""
    turns: list[list[int]] = []
    seen: Counter[int] = Counter()
    for i, number in enumerate(place.tolist()):
        if seen[number] == len(turns):
            turns.append([])
        turns[seen[number]].append(i)
        seen[number] += 1
    return [torch.tensor(turn, device=place.device) for turn in turns]


class Step(NamedTuple):
    """All that is done at one timestep to one hook's positions in one branch."""

    rules: Joint | None = None
    detectors: Joint | None = None
    """whose positions are replaced; of these rules only features, thresholds and ``where`` count"""
    steers: Sequence[Steer] = ()
    errors: int = 0
    """how many times ``x̂ − x`` is added"""
    errors_where: Tensor | None = None
    """as of a rule"""

    @property
    def is_empty(self) -> bool:
        """Whether nothing is done."""
        return self.rules is None and self.detectors is None and not self.steers and not self.errors


def on_device(part: Any, device: torch.device) -> Any:
    """Return a step, or a part of one, with its tensors on a device."""
    if isinstance(part, Tensor):
        return part.to(device)
    if not isinstance(part, (tuple, list)):
        return part
    moved = [on_device(one, device) for one in part]
    return type(part)(*moved) if hasattr(part, "_fields") else moved


def step_change(sae: SAE, x: Tensor, layout: Layout, step: Step) -> tuple[Tensor, Tensor]:
    """Return positions and by how much they change: ``(rows [m], change [m, d_in])``; ``x`` is ``[batch · positions, d_in]``.

    Replaced positions are edited by nothing else. Rules, steering and ``errors · (x̂ − x)`` add up.
    """
    rows, change = _change(sae, x, step.rules)
    if step.detectors is None and not step.steers and not step.errors:
        return rows, change
    replaced, replacement = _replacements(sae, x, layout, step.detectors)
    if not step.steers and not step.errors:
        kept = ~torch.isin(rows, replaced)
        return torch.cat([rows[kept], replaced]), torch.cat([change[kept], replacement])
    total = torch.zeros_like(x).index_add(0, rows, change)
    if step.errors:
        total = total + _inside(step.errors * (sae(x) - x), step.errors_where)
    for steer in step.steers:
        total = total + _inside(steer.vector.expand_as(x), steer.where)
    total = total.index_copy(0, replaced, replacement)
    return torch.arange(len(x), device=x.device), total


def ablation_change(sae: SAE, x: Tensor, rules: Sequence[Rule]) -> tuple[Tensor, Tensor]:
    """Return positions and by how much rules change them: ``(rows [m], change [m, d_in])``; ``x`` is ``[n, d_in]``.

    All others stay; some of these may, too: their change is 0. Where two rules edit one feature at one position, the larger
    edit holds. Differentiable in ``x``.
    """
    return _change(sae, x, join(rules))


def _change(sae: SAE, x: Tensor, joint: Joint | None) -> tuple[Tensor, Tensor]:
    rows, near, f = _firing(sae, x, joint)
    if joint is None or not len(rows):
        return rows, x[:0]
    first, *others = joint.layers
    delta = _delta(first, f, rows)
    for layer in others:
        new, before = _delta(layer, f[:, layer.at], rows), delta[:, layer.at]
        delta = delta.index_copy(1, layer.at, torch.where(new.abs() > before.abs(), new, before))
    return rows, sae.change(near, delta, joint.features)


def _delta(layer: Layer, f: Tensor, rows: Tensor) -> Tensor:
    """Return by how much a layer changes the activations of its own latents, ``[m, n_features]``."""
    return torch.where(_fires(layer, f, rows), torch.addcmul(layer.offset, layer.growth, f), 0.0)


def _firing(sae: SAE, x: Tensor, joint: Joint | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return where a rule may apply, ``x`` there, and the rules' latents' activations: ``[m], [m, d_in], [m, n]``.

    Exact without encoding everything: a latent changes only where its own pre-activation exceeds its threshold; only there
    does TopK need the full encoder, to know whether it is among the k largest.
    """
    if joint is None:
        return torch.zeros(0, dtype=torch.int64, device=x.device), x[:0], x[:0]
    pre = sae.pre_acts(x, joint.features)
    fires = (pre > joint.least).any(1)
    if joint.where is not None:
        fires = fires & _tiled(joint.where, len(x))
    rows = fires.nonzero().flatten()
    if not len(rows):
        return rows, x[:0], x[:0]
    near = x[rows]
    return rows, near, sae.encode_some(near, joint.features, pre[rows])


def _replacements(sae: SAE, x: Tensor, layout: Layout, joint: Joint | None) -> tuple[Tensor, Tensor]:
    """Return the positions to be replaced and ``x[donor] − x[position]``; a map that is detected everywhere stays."""
    rows, _, f = _firing(sae, x, joint)
    if joint is None or not len(rows):
        return rows, x[:0]
    found = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for layer in joint.layers:
        found[rows] |= _fires(layer, f[:, layer.at], rows).any(1)
    n = layout.height * layout.width
    index = torch.arange(n, device=x.device)
    places = torch.stack([index // layout.width, index % layout.width], 1).float()
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
