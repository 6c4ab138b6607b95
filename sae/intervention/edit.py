"""Edits at one hook: from interventions to what is done at each timestep, and the hook that does
it."""

import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from featurestore.errors import ModelError
from featurestore.selection import FeaturesAt, Selection
from featurestore.vocabulary import MODES, Branch
from sae.diffusion.attention import WordMaps, looked_at
from sae.diffusion.hooks import (
    Layout,
    Watch,
    as_positions,
    before_recorders,
    branch_parts,
    module_input,
    put,
    take,
    with_input,
)
from sae.diffusion.modules import find_module
from sae.diffusion.reading.calls import DenoiserCall
from sae.intervention.change import Edit, Steer, edit_change, on_device
from sae.intervention.rules import Fill, Rule, join, last_of_each, union
from sae.intervention.schedules import Schedules, is_recorded, timestep_of
from sae.intervention.settings import Intervention
from sae.model import SAE
from sae.sparse import has_kernels


class Site(NamedTuple):
    """Where interventions are taken together: what passes one hook, in one branch, as one SAE sees
    it."""

    hook: str
    io: str
    sae_hash: str
    branch: Branch


class At(NamedTuple):
    """What decides an edit."""

    timestep: float
    occurrence: int
    """of a timestep that the schedule repeats"""
    inside: tuple[bool, ...]
    """whether each intervention's window covers the call"""
    layout: Layout
    device: torch.device


def kernels_for(device: torch.device) -> ModuleType | None:
    """Return :mod:`sae.intervention.fused` for a device; None unless it is CUDA with Triton."""
    if not has_kernels(device):
        return None
    from sae.intervention import fused

    return fused


class Editor:
    """Edits what passes a site; keeps the edit of each timestep that it has met."""

    def __init__(
        self, pipe: Any, site: Site, interventions: Sequence[Intervention], *, sae: SAE, mode: str
    ) -> None:
        self.site, self.interventions, self.sae, self.mode = site, interventions, sae, mode
        self.module = find_module(pipe, site.hook)
        self.n_train_timesteps = int(pipe.scheduler.config.get("num_train_timesteps", 1000))
        words = list(dict.fromkeys(one.mask_from for one in interventions if one.mask_from))
        self.words = WordMaps(pipe, site.hook, words) if words else None
        """where the words look that masks are taken from; None: none is"""
        self._edits: dict[At, Edit] = {}
        self._fused: dict[At, Any] = {}
        self._schedules = Schedules(site.hook)
        self._n_calls = 0
        self._warned = False
        self._checked: tuple[float, ...] = ()

    def attach(self, watched: Watch) -> Any:
        """Hook the module; returns the handle."""
        if self.site.io == "input":
            return self.module.register_forward_pre_hook(self._before(watched), with_kwargs=True)
        handle = self.module.register_forward_hook(self._after(watched), with_kwargs=True)
        before_recorders(self.module)
        return handle

    def _before(self, watched: Watch) -> Callable[..., Any]:
        hook = self.site.hook

        # Look-ups, counting and choosing positions are no part of a compiled graph.
        @torch.compiler.disable
        def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            entering = module_input(module, args, kwargs, hook)
            edited = self._edited(entering, entering, watched)
            return (
                None
                if edited is None
                else with_input(module, args, kwargs, tensor=edited, hook=hook)
            )

        return before

    def _after(self, watched: Watch) -> Callable[..., Any]:
        hook, io = self.site.hook, self.site.io

        @torch.compiler.disable
        def after(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            leaving = take(output, hook, module)
            seen = (
                leaving - module_input(module, args, kwargs, hook)
                if io == "difference"
                else leaving
            )
            edited = self._edited(seen, leaving, watched)
            return None if edited is None else put(output, edited, hook, module)

        return after

    def _edited(self, seen: Tensor, target: Tensor, watched: Watch) -> Tensor | None:
        """Return ``target`` plus the change that follows from what the SAE sees; None when nothing
        changes."""
        if self.site.branch not in watched.call.branches:
            return None
        part = branch_parts(watched.call, seen, self.site.hook)[self.site.branch]
        positions, layout = as_positions(seen[part])
        # Where the model is: offloading moves it about.
        if self.sae.b_dec.device != seen.device or self.sae.b_dec.dtype != torch.float32:
            self.sae.to(seen.device, torch.float32)
        kernels = (
            None
            if self.words is not None or (seen.requires_grad and torch.is_grad_enabled())
            else kernels_for(seen.device)
        )
        if is_recorded(seen.device):
            fused, timesteps = self._schedules.laid_out(kernels, watched.call, layout)
            lookup = timesteps, timestep_of(watched.given)
        else:
            at = self._at(watched.call, layout, seen.device)
            edit = self._edit(at) if self.words is None else self._edit_by_words(at, watched.call)
            fused, lookup = None if kernels is None else self._fuse(kernels, at, edit), None
            self._schedules.meet(watched.call, layout, fused, watched.given)
            if edit.is_empty:
                return None
        if kernels is not None and fused is not None:
            edited = target.clone(memory_format=torch.contiguous_format)
            out, _ = as_positions(edited[part])
            kernels.apply_(self.sae, fused, positions, out, lookup=lookup)
            return edited
        # The caller's precision does not decide what fires.
        with torch.autocast(seen.device.type, enabled=False):
            x = positions.reshape(-1, positions.shape[-1]).float()
            rows, change = edit_change(self.sae, x, layout, edit)
        if not len(rows):
            return None
        edited = target.clone(memory_format=torch.contiguous_format)
        view, _ = as_positions(edited[part])
        n = positions.shape[1]
        place = (rows // n, rows % n) if len(view) > 1 else (0, rows)
        view[place] = (view[place].float() + change).to(edited.dtype)
        return edited

    def _at(self, call: DenoiserCall, layout: Layout, device: torch.device) -> At:
        if call.schedule != self._checked:
            for one in self.interventions:
                one.window.check_schedule(call.schedule)
            self._checked = call.schedule
        inside = tuple(
            one.window.covers(call, self.n_train_timesteps) for one in self.interventions
        )
        timestep, occurrence = (
            self._counted() if self.mode == "saeuron" else (call.timestep, call.occurrence)
        )
        return At(timestep, occurrence, inside, layout, device)

    def _edit(self, at: At) -> Edit:
        if at not in self._edits:
            self._edits[at] = cast(Edit, on_device(self._make_edit(at), at.device))
        return self._edits[at]

    def _edit_by_words(self, at: At, call: DenoiserCall) -> Edit:
        """Return the edit of one call: the masks are of its own pictures."""
        assert self.words is not None, "asked for"
        maps, present = self.words.of(call)
        inside = looked_at(maps) & present[..., None].to(maps.device)
        named = {word: inside[:, i].flatten().cpu() for i, word in enumerate(self.words.words)}
        return cast(Edit, on_device(self._make_edit(at, named), at.device))

    def _fuse(self, kernels: ModuleType, at: At, edit: Edit) -> Any:
        """Return an edit ready for the kernels; None if they cannot express it."""
        if at not in self._fused:
            only_rules = edit.detectors is None and not edit.steers and not edit.errors
            self._fused[at] = kernels.fuse(self.sae, edit.rules) if only_rules else None
        return self._fused[at]

    def _counted(self) -> tuple[float, int]:
        """Return the recorded step whose turn it is, as timestep and occurrence: the released hook
        counts its calls."""
        recorded, n = self.interventions[0].selection.timesteps, self._n_calls
        if n == len(recorded):
            raise ModelError(
                f"mode saeuron counts calls and has statistics of {len(recorded)} steps: attach it "
                f"anew for every generation, with that many steps."
            )
        self._n_calls += 1
        return recorded[n], recorded[:n].count(recorded[n])

    def _make_edit(self, call: At, words: Mapping[str, Tensor] | None = None) -> Edit:
        """Return the edit of a call; ``words``: masks of its positions, sample after sample."""
        # Made on the CPU, whatever the device: it takes many small operations.
        rules: list[Rule] = []
        detectors: list[Rule] = []
        steers: list[Steer] = []
        masks: list[Tensor | None] = []
        for one in itertools.compress(self.interventions, call.inside):
            at, where = self._features_at(one.selection, call), one.where(call.layout)
            if words:
                n = len(next(iter(words.values())))
                if one.mask_from:
                    where = words[one.mask_from]
                elif where is not None:
                    where = where.repeat(n // len(where))
            masks.append(where)
            if not len(at.features):
                continue
            if one.kind == "add":
                rows = self.sae.W_dec[torch.tensor(at.features, device=self.sae.W_dec.device)]
                steers.append(Steer(one.strength * rows.float().sum(0), where))
            else:
                rule = _rule(one, at, where)._replace(fill=self._fill(one, call))
                (detectors if one.kind == "replace" else rules).append(rule)
        errors = MODES[self.mode] if masks else 0
        if self.mode == "saeuron":
            rules = last_of_each(rules)
        return Edit(join(rules), join(detectors), steers, errors, union(masks) if errors else None)

    def _fill(self, one: Intervention, call: At) -> Fill | None:
        if one.toward is None:
            return None
        kept = self._features_at(one.toward, call)
        level = one.pull * torch.tensor(kept.mean_concept, dtype=torch.float32)
        return Fill(torch.tensor(kept.features, dtype=torch.int64), level)

    def _features_at(self, selection: Selection, call: At) -> FeaturesAt:
        at, timestep = selection.at(call.timestep, call.occurrence), call.timestep
        known = sorted(selection.timesteps)
        widest = max((b - a for a, b in itertools.pairwise(known)), default=0.0)
        if at.distance > max(widest, 1.0) and not self._warned:
            self._warned = True
            warnings.warn(
                f"the selection {selection.family}={selection.concept} has no timestep near "
                f"{timestep:g}; the nearest, {at.timestep:g}, is used.",
                stacklevel=2,
            )
        return at


def _rule(one: Intervention, at: FeaturesAt, where: Tensor | None) -> Rule:
    """Return the rule of every kind but ``add``; for ``replace``, the one that detects its
    positions."""
    features = torch.tensor(at.features, dtype=torch.int64)
    mean_concept, mean_all = (
        torch.tensor(x, dtype=torch.float32) for x in (at.mean_concept, at.mean_all)
    )
    if one.kind in ("paper", "replace"):
        return Rule(features, one.strength * mean_concept, one.threshold * mean_all, where=where)
    nothing = torch.zeros_like(mean_all)
    return Rule(features, nothing, nothing, one.strength if one.kind == "clamp" else 0.0, where)
