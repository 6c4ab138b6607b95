"""The arithmetic of an intervention at one denoiser call: pure functions of positions, an SAE and rules."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sae.hooks import Layout
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


class Step(NamedTuple):
    """All that is done at one timestep to one hook's positions in one branch."""

    rules: Sequence[Rule] = ()
    detectors: Sequence[Rule] = ()
    """whose positions are replaced; of these rules only features, thresholds and ``where`` count"""
    steers: Sequence[Steer] = ()
    errors: int = 0
    """how many times ``x̂ − x`` is added"""
    errors_where: Tensor | None = None
    """as of a rule"""

    @property
    def is_empty(self) -> bool:
        """Whether nothing is done."""
        return not (self.rules or self.detectors or self.steers or self.errors)


def step_change(sae: SAE, x: Tensor, layout: Layout, step: Step) -> tuple[Tensor, Tensor]:
    """Return the positions that change and by how much: ``(rows [m], change [m, d_in])``; ``x`` is ``[batch · positions, d_in]``.

    Replaced positions are edited by nothing else. Rules, steering and ``errors · (x̂ − x)`` add up.
    """
    rows, change = ablation_change(sae, x, step.rules)
    replaced, replacement = _replacements(sae, x, layout, step.detectors)
    kept = ~torch.isin(rows, replaced)
    if not step.steers and not step.errors:
        return torch.cat([rows[kept], replaced]), torch.cat([change[kept], replacement])
    total = torch.zeros_like(x).index_add(0, rows, change)
    if step.errors:
        total = total + _inside(step.errors * (sae(x) - x), step.errors_where)
    for steer in step.steers:
        total = total + _inside(steer.vector.expand_as(x), steer.where)
    total = total.index_copy(0, replaced, replacement)
    return torch.arange(len(x), device=x.device), total


def ablation_change(sae: SAE, x: Tensor, rules: Sequence[Rule]) -> tuple[Tensor, Tensor]:
    """Return the positions that the rules change and by how much: ``(rows [m], change [m, d_in])``; ``x`` is ``[n, d_in]``.

    Where two rules edit one feature at one position, the larger edit holds. Differentiable in ``x``.
    """
    rows, features, f = _firing(sae, x, rules)
    delta = torch.zeros_like(f)
    for rule in rules:
        at = torch.searchsorted(features, rule.features)
        own = f[:, at]
        new = torch.where(_fires(rule, own, rows, len(x)), (rule.factor - 1) * own + rule.offset, torch.zeros_like(own))
        delta = delta.index_copy(1, at, torch.where(new.abs() > delta[:, at].abs(), new, delta[:, at]))
    changed = (delta != 0).any(1)
    return rows[changed], sae.change(x[rows[changed]], delta[changed], features)


def _firing(sae: SAE, x: Tensor, rules: Sequence[Rule]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the positions where a rule may apply, the rules' latents and their activations there: ``[m], [n], [m, n]``.

    Exact without encoding everything: a latent changes only where its own pre-activation exceeds its threshold; only there
    does TopK need the full encoder, to know whether it is among the k largest.
    """
    if not rules:
        empty = torch.zeros(0, dtype=torch.int64, device=x.device)
        return empty, empty, x.new_zeros(0, 0)
    features = torch.unique(torch.cat([rule.features for rule in rules]))
    own = torch.relu(sae.pre_acts(x, features))
    near = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for rule in rules:
        at = torch.searchsorted(features, rule.features)
        # A candidate may be kept needlessly, never dropped wrongly: leave room for the rounding of the smaller product.
        room = rule.threshold - 1e-4 * rule.threshold - 1e-6
        fires = ((own[:, at] > room) & (own[:, at] > 0)).any(1)
        near |= fires if rule.where is None else fires & _tiled(rule.where, len(x))
    rows = near.nonzero().flatten()
    if not len(rows):
        return rows, features, x.new_zeros(0, len(features))
    return rows, features, sae.encode_some(x[rows], features)


def _replacements(sae: SAE, x: Tensor, layout: Layout, detectors: Sequence[Rule]) -> tuple[Tensor, Tensor]:
    """Return the positions to be replaced and ``x[donor] − x[position]``; a map that is detected everywhere stays."""
    rows, features, f = _firing(sae, x, detectors)
    if not len(rows):
        return rows, x[:0]
    found = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for rule in detectors:
        own = f[:, torch.searchsorted(features, rule.features)]
        found[rows] |= _fires(rule, own, rows, len(x)).any(1)
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


def _fires(rule: Rule, f: Tensor, rows: Tensor, n: int) -> Tensor:
    """Say where a rule applies, ``[m, n_features]``, to the activations at ``rows`` of ``n`` positions."""
    fires = f > rule.threshold
    return fires if rule.where is None else fires & _tiled(rule.where, n)[rows, None]


def _tiled(where: Tensor, n: int) -> Tensor:
    return where.repeat(n // len(where))


def _inside(values: Tensor, where: Tensor | None) -> Tensor:
    return values if where is None else values * _tiled(where, len(values))[:, None]
