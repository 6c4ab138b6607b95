"""The arithmetic of an edit at one denoiser call: the paper's rule written out, and the same made
fast.

Pure functions of positions, an SAE and rules; docs/ablation.md has the formulas.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sae.diffusion.hooks import Layout
from sae.model import SAE


def paper_rule(
    sae: SAE,
    x: Tensor,
    features: Tensor,
    *,
    strength: float,
    mean_concept: Tensor,
    mean_all: Tensor,
) -> Tensor:
    """Return positions ``x [n, d_in]`` edited by the paper's rule, written out densely (arXiv
    2501.18052, section 3).

    Encode everything, scale the selected latents where they exceed their mean, decode, keep the
    SAE's error. This is the definition: :func:`rules_change` computes the same without the full
    encoder and decoder, and is tested to be equal.

    ``features [m]`` are the selected latents, ``strength`` is γ, ``mean_concept [m]`` is μ(i, t,
    D_c) and ``mean_all [m]`` is μ(i, t, D). The SAE must not normalise its inputs.
    """
    assert sae.config.normalize_activations == "none", (
        "the decoder's scale would depend on the position"
    )
    f = sae.encode_dense(x)
    selected, edited = f[:, features], f.clone()
    edited[:, features] = torch.where(
        selected > mean_all, strength * mean_concept * selected, selected
    )
    error = x - (f @ sae.W_dec + sae.b_dec)
    return edited @ sae.W_dec + sae.b_dec + error


class Rule(NamedTuple):
    """What an intervention does to activations at one timestep: ``f ← factor · f + offset`` where
    ``f > threshold``."""

    features: Tensor
    """``[n]`` latents"""
    factor: Tensor
    """``[n]``: γ · μ(i, t, D_c) by the paper's rule"""
    threshold: Tensor
    """``[n]``, none negative: μ(i, t, D) by the paper's rule"""
    offset: float = 0.0
    where: Tensor | None = None
    """bool ``[positions]``, the same for every map of the batch; None: everywhere"""
    fill: "Fill | None" = None
    """what is put in where the rule changes something; None: nothing"""


class Fill(NamedTuple):
    """Activations of what is kept: ``f ← max(f, level)`` wherever one of certain latents is
    changed by a rule."""

    features: Tensor
    """``[m]`` latents"""
    level: Tensor
    """``[m]``: β · μ(i, t, D_kept)"""
    of: Tensor | None = None
    """bool ``[n]``: of which of :attr:`Rules.features`, once joined"""


class Layer(NamedTuple):
    """Several rules as one, no two of them for the same latent."""

    at: Tensor
    """``[n]``: indices into :attr:`Rules.features`"""
    growth: Tensor
    """``[n]``: factor − 1"""
    threshold: Tensor
    """``[n]``"""
    offset: Tensor
    """``[n]``"""
    where: Tensor | None
    """bool ``[positions, n]``; None: everywhere"""


class Rules(NamedTuple):
    """Several rules, prepared once for many calls: an edit on a GPU takes as long as its kernels
    take to launch."""

    features: Tensor
    """``[n]``, the latents of all rules, sorted"""
    least: Tensor
    """``[n]``: no rule changes a latent whose pre-activation, inexactly computed, does not exceed
    this"""
    where: Tensor | None
    """bool ``[positions]``: no rule changes anything elsewhere; None: anywhere"""
    layers: Sequence[Layer]
    """applied in this order; the first has all latents"""
    fills: Sequence[Fill] = ()
    """of latents that no rule has"""


def join(rules: Sequence[Rule]) -> Rules | None:
    """Return the rules of one SAE in as few layers as possible: a second one only where two rules
    share a latent.

    Returns None if there are no rules.
    """
    if not rules:
        return None
    latents = torch.cat([rule.features for rule in rules])
    features, at = torch.unique(latents, return_inverse=True)
    factor, threshold = (
        torch.cat([getattr(rule, name) for rule in rules]) for name in ("factor", "threshold")
    )
    offset = torch.cat([torch.full_like(rule.threshold, rule.offset) for rule in rules])
    wheres = [rule.where for rule in rules]
    masks = [where for where in wheres if where is not None]
    inside = (
        torch.stack([torch.ones_like(masks[0]) if w is None else w for w in wheres])
        if masks
        else None
    )
    owner = torch.cat([torch.full_like(rule.features, i) for i, rule in enumerate(rules)])
    layers = []
    for own in _occurrences(at):
        own = own[at[own].argsort()]
        where = None if inside is None else inside[owner[own]].T
        layers.append(Layer(at[own], factor[own] - 1, threshold[own], offset[own], where))
    lowest = torch.full_like(features, torch.inf, dtype=threshold.dtype).scatter_reduce(
        0, at, threshold, "amin"
    )
    # A candidate may be kept needlessly, never dropped wrongly: leave room for the rounding of the
    # smaller product.
    least = (lowest - 1e-4 * lowest - 1e-6).clamp_min(0)
    return Rules(features, least, union(wheres), layers, _fills(rules, features))


def _fills(rules: Sequence[Rule], features: Tensor) -> list[Fill]:
    """Return what is put in, each once, without the latents ``features`` that rules edit."""
    found: dict[tuple[tuple[int, ...], tuple[float, ...]], Fill] = {}
    for rule in rules:
        if rule.fill is not None:
            key = tuple(rule.fill.features.tolist()), tuple(rule.fill.level.tolist())
            own, before = torch.isin(features, rule.features), found.get(key)
            of = own if before is None or before.of is None else own | before.of
            free = ~torch.isin(rule.fill.features, features)
            found[key] = Fill(rule.fill.features[free], rule.fill.level[free], of)
    return [fill for fill in found.values() if len(fill.features)]


def last_of_each(rules: Sequence[Rule]) -> list[Rule]:
    """Return the rules without the latents that a later one has too: SAeUron's released hook writes
    one over the other."""
    kept = []
    for number, rule in enumerate(rules):
        later = torch.cat([rule.features[:0], *(one.features for one in rules[number + 1 :])])
        own = ~torch.isin(rule.features, later)
        kept.append(
            rule._replace(
                features=rule.features[own], factor=rule.factor[own], threshold=rule.threshold[own]
            )
        )
    return kept


def union(wheres: Sequence[Tensor | None]) -> Tensor | None:
    """Return where any of several masks is true; None, which is everywhere, if one of them is
    None."""
    masks = [where for where in wheres if where is not None]
    return torch.stack(masks).any(0) if masks and len(masks) == len(wheres) else None


def _occurrences(numbers: Tensor) -> list[Tensor]:
    """Return the indices at which each number occurs for the first time, those of second times, and
    so on."""
    occurrences: list[list[int]] = []
    seen: Counter[int] = Counter()
    for i, number in enumerate(numbers.tolist()):
        if seen[number] == len(occurrences):
            occurrences.append([])
        occurrences[seen[number]].append(i)
        seen[number] += 1
    return [torch.tensor(indices, device=numbers.device) for indices in occurrences]


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

    Equals :func:`paper_rule` minus ``x`` at these positions, some of whose changes may be 0; all
    other positions stay. Where two rules edit one feature at one position, the larger edit holds.
    Where a rule has changed something, its fill raises what is kept. Differentiable in ``x``.
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
