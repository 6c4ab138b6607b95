"""Rules of an edit: the paper's, written out; rules as an intervention gives them; several as one.

Pure functions; docs/ablation.md has the formulas.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

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
    SAE's error. This is the definition: :func:`sae.intervention.change.rules_change` computes the
    same without the full encoder and decoder, and is tested to be equal.

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
