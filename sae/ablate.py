"""Take a concept's features out while pictures are generated (the paper's rule; arXiv 2501.18052, section 3)."""

import contextlib
import itertools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from featurestore.errors import SelectionError, UsageError
from featurestore.selection import Selection
from sae.checkpoint import load_selection_sae
from sae.hooks import Watch, as_positions, module_input, put, take, watch, with_input
from sae.identity import model_hash, same_model
from sae.model import SAE
from sae.modules import denoiser, find_module


class Rule(NamedTuple):
    """What a selection does at one timestep."""

    features: Tensor
    """``[n]`` latents"""
    factor: Tensor
    """``[n]``: γ · μ(i, t, D_c)"""
    threshold: Tensor
    """``[n]``: μ(i, t, D)"""


@contextlib.contextmanager
def ablate(
    pipe: Any,
    selection: Selection | Sequence[Selection],
    multiplier: float = -5.0,
    sae: Mapping[str, SAE] | SAE | None = None,
) -> Iterator[None]:
    """Ablate selected features in everything that ``pipe`` generates inside the ``with`` block.

    At every denoiser call and position ``f_i ← γ · μ(i,t,D_c) · f_i`` where feature ``i`` is selected at the call's timestep and
    ``f_i > μ(i,t,D)``; γ is ``multiplier``. The reconstruction error is kept, so the hooked tensor becomes
    ``x + Σ (f_i' − f_i) · W_dec[i]``; positions that no edit reaches, and everything when nothing is selected, stay the same
    bit for bit. The features of the nearest recorded timestep are used. Edits the half of guidance that the selection's
    statistics are of. Several selections may share a hook: where two edit one feature at one position, the larger edit holds.

    ``sae``: the SAE, or one a name of ``Selection.sae``; by default they are loaded from the stores that the selections name.

    Raises:
        SelectionError: a selection was made for another model, SAE or hook; nothing was hooked.
    """
    selections = [selection] if isinstance(selection, Selection) else list(selection)
    if not selections:
        raise UsageError("no selection to ablate.")
    groups: dict[tuple[str, str, str], list[Selection]] = {}
    for chosen in selections:
        _check_model(pipe, chosen)
        groups.setdefault((chosen.hook, chosen.sae_hash, chosen.branch), []).append(chosen)
    edits = [_Edit(pipe, group, multiplier, _find_sae(group[0], sae)) for group in groups.values()]
    with contextlib.ExitStack() as stack:
        state = stack.enter_context(watch(pipe))
        for edit in edits:
            stack.callback(edit.attach(state).remove)
        yield


def _check_model(pipe: Any, selection: Selection) -> None:
    if not same_model(model_hash(denoiser(pipe)), selection.model_hash):
        raise SelectionError(
            f"the selection {selection.family}={selection.concept} was made for the weights of model {selection.model!r} "
            f"({selection.model_hash[:16]}…), this pipeline has others ({model_hash(denoiser(pipe))[:16]}…)."
        )


def _find_sae(selection: Selection, given: Mapping[str, SAE] | SAE | None) -> SAE:
    if isinstance(given, Mapping):
        given = given.get(selection.sae)
    return given if given is not None else load_selection_sae(selection)


class _Edit:
    """The selections of one hook, SAE and branch."""

    def __init__(self, pipe: Any, selections: Sequence[Selection], multiplier: float, sae: SAE) -> None:
        first = selections[0]
        self.hook, self.io, self.branch = first.hook, first.io, first.branch
        if (sae.config.d_in, sae.config.n_latents) != (first.d_in, first.n_latents):
            raise SelectionError(
                f"the selection {first.family}={first.concept} was made for SAE {first.sae!r} with d_in {first.d_in} and "
                f"{first.n_latents} latents, this SAE has {sae.config.d_in} and {sae.config.n_latents}."
            )
        self.module = find_module(pipe, self.hook)
        self.device = next(denoiser(pipe).parameters()).device
        self.sae = sae.to(self.device, torch.float32).requires_grad_(False)
        self.selections = selections
        self.multiplier = multiplier
        self._rules: dict[float, list[Rule]] = {}
        self._warned = False

    def attach(self, state: Watch) -> Any:
        """Hook the module; returns the handle."""
        if self.io == "input":

            def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
                entering = module_input(args, kwargs, self.hook)
                edited = self._edited(entering, entering, state)
                return None if edited is None else with_input(args, kwargs, edited, self.hook)

            return self.module.register_forward_pre_hook(before, with_kwargs=True)

        def after(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            leaving = take(output, self.hook, module)
            seen = leaving - module_input(args, kwargs, self.hook) if self.io == "difference" else leaving
            edited = self._edited(seen, leaving, state)
            return None if edited is None else put(output, edited, self.hook, module)

        return self.module.register_forward_hook(after, with_kwargs=True)

    def _edited(self, seen: Tensor, target: Tensor, state: Watch) -> Tensor | None:
        """Return ``target`` plus the edit that the rule makes for what the SAE sees; None when nothing changes."""
        branches = state.call.branches
        if self.branch not in branches:
            return None
        rules = self._rules_at(state.call.timestep)
        if not rules:
            return None
        size = seen.shape[0] // len(branches)
        part = slice(branches.index(self.branch) * size, (branches.index(self.branch) + 1) * size)
        positions, _ = as_positions(seen[part])
        flat = positions.reshape(-1, positions.shape[-1]).float()
        rows, change = ablation_change(self.sae, flat, rules)
        if not len(rows):
            return None
        edited = target.clone(memory_format=torch.contiguous_format)
        view, _ = as_positions(edited[part])
        sample, position = rows // positions.shape[1], rows % positions.shape[1]
        view[sample, position] = (view[sample, position].float() + change).to(edited.dtype)
        return edited

    def _rules_at(self, timestep: float) -> list[Rule]:
        if timestep not in self._rules:
            self._rules[timestep] = [rule for s in self.selections if len((rule := self._rule(s, timestep)).features)]
        return self._rules[timestep]

    def _rule(self, selection: Selection, timestep: float) -> Rule:
        at = selection.at(timestep)
        known = sorted(selection.timesteps)
        widest = max((b - a for a, b in itertools.pairwise(known)), default=0.0)
        if at.distance > max(widest, 1.0) and not self._warned:
            self._warned = True
            warnings.warn(
                f"the selection {selection.family}={selection.concept} has no timestep near {timestep:g}; the nearest, "
                f"{at.timestep:g}, is used.",
                stacklevel=2,
            )
        numbers = [torch.tensor(x, dtype=torch.float32, device=self.device) for x in (at.mean_concept, at.mean_all)]
        features = torch.tensor(at.features, dtype=torch.int64, device=self.device)
        return Rule(features, self.multiplier * numbers[0], numbers[1])


def ablation_change(sae: SAE, x: Tensor, rules: Sequence[Rule]) -> tuple[Tensor, Tensor]:
    """Return the positions that the rules change and by how much: ``(rows [m], change [m, d_in])``; ``x`` is ``[n, d_in]``.

    Exact without encoding everything: only selected latents can change, and one changes only where its own pre-activation
    exceeds its threshold; only there does TopK need the full encoder, to know whether it is among the k largest.
    """
    features = torch.unique(torch.cat([rule.features for rule in rules]))
    own = torch.relu(sae.pre_acts(x, features))
    thresholds = torch.full((len(features),), float("inf"), device=x.device)
    for rule in rules:
        at = torch.searchsorted(features, rule.features)
        thresholds[at] = torch.minimum(thresholds[at], rule.threshold)
    # A candidate may be kept needlessly, never dropped wrongly: leave room for the rounding of the smaller product.
    rows = (own > thresholds - 1e-4 * thresholds.abs() - 1e-6).logical_and(own > 0).any(1).nonzero().flatten()
    if not len(rows):
        return rows, x[:0]
    f = sae.encode_some(x[rows], features)
    delta = torch.zeros_like(f)
    for rule in rules:
        at = torch.searchsorted(features, rule.features)
        new = torch.where(f[:, at] > rule.threshold, (rule.factor - 1) * f[:, at], torch.zeros(()).to(f))
        delta[:, at] = torch.where(new.abs() > delta[:, at].abs(), new, delta[:, at])
    changed = (delta != 0).any(1)
    rows = rows[changed]
    return rows, sae.change(x[rows], delta[changed], features)
