"""Take a concept's features out while pictures are generated (arXiv 2501.18052, section 3; docs/ablation.md)."""

import contextlib
import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from featurestore.errors import ModelError, SelectionError, UsageError
from featurestore.selection import FeaturesAt, Selection
from featurestore.vocabulary import BRANCHES, MODES, Branch
from sae.checkpoint import load_selection_sae
from sae.diffusion.architectures import split_hook
from sae.diffusion.hooks import (
    Layout,
    Watch,
    as_positions,
    branch_parts,
    module_input,
    put,
    take,
    watch,
    with_input,
)
from sae.diffusion.modules import denoiser, find_module
from sae.diffusion.weights import model_hash, same_model
from sae.intervention.rules import Rule, Steer, Step, ablation_change, join, on_device, step_change, union
from sae.intervention.settings import Intervention
from sae.model import SAE

__all__ = ["Handle", "Rule", "ablate", "ablation_change", "attach"]


class Handle:
    """An attached ablation."""

    def __init__(self, hooks: contextlib.ExitStack) -> None:
        self._hooks = hooks

    def detach(self) -> None:
        """Remove every hook; a second call does nothing."""
        self._hooks.close()


@contextlib.contextmanager
def ablate(
    pipe: Any,
    selection: Selection | Intervention | Sequence[Selection | Intervention],
    multiplier: float = -5.0,
    sae: Mapping[str, SAE] | SAE | None = None,
    mode: str = "paper",
) -> Iterator[None]:
    """Ablate selected features in everything that ``pipe`` generates inside the ``with`` block; see :func:`attach`."""
    handle = attach(pipe, selection, multiplier, sae, mode)
    try:
        yield
    finally:
        handle.detach()


def attach(
    pipe: Any,
    selection: Selection | Intervention | Sequence[Selection | Intervention],
    multiplier: float = -5.0,
    sae: Mapping[str, SAE] | SAE | None = None,
    mode: str = "paper",
) -> Handle:
    """Ablate selected features in everything that ``pipe`` generates, until the handle's ``detach``.

    A selection stands for the paper's rule: at every denoiser call and position ``f_i ← γ · μ(i,t,D_c) · f_i`` where feature
    ``i`` is selected at the call's timestep and ``f_i > μ(i,t,D)``; γ is ``multiplier``. An :class:`Intervention` says
    otherwise. The reconstruction error is kept, so the hooked tensor becomes ``x + Σ (f_i' − f_i) · W_dec[i]``; positions
    that no edit reaches, and everything when nothing is selected, stay the same bit for bit. The features of the nearest
    recorded timestep are used. Several interventions may share a hook: where two edit one feature at one position, the
    larger edit holds; steering adds up; a replaced position is edited by nothing else; another SAE on the same hook sees what
    the first has left. Differentiable where gradients are on.

    ``sae``: the SAE, or several by ``Selection.sae_hash`` or ``.sae``; by default they are loaded from the selections' stores.
    ``mode``: ``paper``; ``no-error``, the reconstruction in place of the tensor; or ``saeuron``, for comparison only.

    Raises:
        SelectionError: a selection was made for another model, SAE or hook; nothing was hooked.
        UsageError: there is no selection, or no such mode.
    """
    given = [selection] if isinstance(selection, (Selection, Intervention)) else list(selection)
    if not given:
        raise UsageError("no selection to ablate.")
    if mode not in MODES:
        raise UsageError(f"mode {mode!r}: expected one of {', '.join(MODES)}.")
    wanted = [Intervention(one, strength=multiplier) if isinstance(one, Selection) else one for one in given]
    groups: dict[tuple[str, str, str, Branch], list[Intervention]] = {}
    for intervention in wanted:
        chosen = intervention.selection
        _check(pipe, intervention, mode)
        for branch in BRANCHES if mode == "saeuron" else intervention.branches:
            groups.setdefault((chosen.hook, chosen.io, chosen.sae_hash, branch), []).append(intervention)
    saes = {key[2]: _find_sae(group[0].selection, sae) for key, group in groups.items()}
    edits = [_Edit(pipe, group, key[3], saes[key[2]], mode) for key, group in groups.items()]
    with contextlib.ExitStack() as stack:
        state = stack.enter_context(watch(pipe))
        for edit in edits:
            stack.callback(edit.attach(state).remove)
        return Handle(stack.pop_all())


def _check(pipe: Any, intervention: Intervention, mode: str) -> None:
    selection = intervention.selection
    if not same_model(model_hash(denoiser(pipe)), selection.model_hash):
        raise SelectionError(
            f"the selection {selection.family}={selection.concept} was made for the weights of model {selection.model!r} "
            f"({selection.model_hash[:16]}…), this pipeline has others ({model_hash(denoiser(pipe))[:16]}…)."
        )
    if intervention.mask is not None and split_hook(selection.hook)[1]:
        raise UsageError(f"a mask is spatial: the tokens of {selection.hook!r} are words.")
    if mode == "saeuron" and intervention.kind != "paper":
        raise UsageError(f"mode saeuron has the paper's rule only, found {intervention.kind!r}.")


def _find_sae(selection: Selection, given: Mapping[str, SAE] | SAE | None) -> SAE:
    if isinstance(given, Mapping):
        given = given.get(selection.sae_hash, given.get(selection.sae))
    found = given if given is not None else load_selection_sae(selection)
    if (found.config.d_in, found.config.n_latents) != (selection.d_in, selection.n_latents):
        raise SelectionError(
            f"the selection {selection.family}={selection.concept} was made for SAE {selection.sae!r} with d_in "
            f"{selection.d_in} and {selection.n_latents} latents, this SAE has {found.config.d_in} and "
            f"{found.config.n_latents}."
        )
    return found.requires_grad_(False)


class _Edit:
    """What is done with one SAE at one hook in one branch."""

    def __init__(self, pipe: Any, interventions: Sequence[Intervention], branch: Branch, sae: SAE, mode: str) -> None:
        self.hook, self.io = interventions[0].selection.hook, interventions[0].selection.io
        self.branch, self.mode = branch, mode
        self.module = find_module(pipe, self.hook)
        self.n_train_timesteps = int(pipe.scheduler.config.get("num_train_timesteps", 1000))
        self.sae = sae
        self.interventions = interventions
        self._steps: dict[tuple[float, Layout, torch.device], Step] = {}
        self._calls = 0
        self._warned = False

    def attach(self, state: Watch) -> Any:
        """Hook the module; returns the handle."""
        if self.io == "input":
            return self.module.register_forward_pre_hook(self._before(state), with_kwargs=True)
        return self.module.register_forward_hook(self._after(state), with_kwargs=True)

    def _before(self, state: Watch) -> Callable[..., Any]:
        # Look-ups, counting and choosing positions are no part of a compiled graph.
        @torch.compiler.disable
        def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            entering = module_input(args, kwargs, self.hook)
            edited = self._edited(entering, entering, state)
            return None if edited is None else with_input(args, kwargs, edited, self.hook)

        return before

    def _after(self, state: Watch) -> Callable[..., Any]:
        @torch.compiler.disable
        def after(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            leaving = take(output, self.hook, module)
            seen = leaving - module_input(args, kwargs, self.hook) if self.io == "difference" else leaving
            edited = self._edited(seen, leaving, state)
            return None if edited is None else put(output, edited, self.hook, module)

        return after

    def _edited(self, seen: Tensor, target: Tensor, state: Watch) -> Tensor | None:
        """Return ``target`` plus the edit that is made of what the SAE sees; None when nothing changes."""
        if self.branch not in state.call.branches:
            return None
        part = branch_parts(state.call, seen, self.hook)[self.branch]
        positions, layout = as_positions(seen[part])
        step = self._step(state.call.timestep, layout, seen.device)
        if step.is_empty:
            return None
        if self.sae.b_dec.device != seen.device or self.sae.b_dec.dtype != torch.float32:
            self.sae.to(seen.device, torch.float32)  # Where the model is: offloading moves it about.
        with torch.autocast(seen.device.type, enabled=False):  # What a feature is does not depend on the caller's.
            rows, change = step_change(self.sae, positions.reshape(-1, positions.shape[-1]).float(), layout, step)
        if not len(rows):
            return None
        edited = target.clone(memory_format=torch.contiguous_format)
        view, _ = as_positions(edited[part])
        n = positions.shape[1]
        at = (rows // n, rows % n) if len(view) > 1 else (0, rows)
        view[at] = (view[at].float() + change).to(edited.dtype)
        return edited

    def _step(self, timestep: float, layout: Layout, device: torch.device) -> Step:
        if self.mode == "saeuron":
            timestep = self._counted()
        key = (timestep, layout, device)
        if key not in self._steps:
            self._steps[key] = self._make_step(*key)
        return self._steps[key]

    def _counted(self) -> float:
        """Return the recorded timestep whose turn it is: the released hook counts its calls."""
        recorded = self.interventions[0].selection.timesteps
        if self._calls == len(recorded):
            raise ModelError(
                f"mode saeuron counts calls and has statistics of {len(recorded)} steps: attach it anew for every "
                f"generation, with that many steps."
            )
        self._calls += 1
        return recorded[self._calls - 1]

    def _make_step(self, timestep: float, layout: Layout, device: torch.device) -> Step:
        # Made on the CPU, whatever the device: it takes many small operations.
        rules: list[Rule] = []
        detectors: list[Rule] = []
        steers: list[Steer] = []
        masks: list[Tensor | None] = []
        for one in self.interventions:
            if not one.window.covers(timestep, self.n_train_timesteps):
                continue
            at, where = self._at(one.selection, timestep), one.where(layout)
            masks.append(where)
            if not len(at.features):
                continue
            if one.kind == "add":
                rows = self.sae.W_dec[torch.tensor(at.features, device=self.sae.W_dec.device)]
                steers.append(Steer(one.strength * rows.float().sum(0), where))
            else:
                (detectors if one.kind == "replace" else rules).append(_rule(one, at, where))
        errors = MODES[self.mode] if masks else 0
        errors_where = union(masks) if errors else None
        step = Step(join(rules), join(detectors), steers, errors, errors_where)
        return cast(Step, on_device(step, device))

    def _at(self, selection: Selection, timestep: float) -> FeaturesAt:
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
        return at


def _rule(one: Intervention, at: FeaturesAt, where: Tensor | None) -> Rule:
    """Return the rule of every kind but ``add``; of ``replace``, whose positions are replaced."""
    features = torch.tensor(at.features, dtype=torch.int64)
    mean_concept, mean_all = (torch.tensor(x, dtype=torch.float32) for x in (at.mean_concept, at.mean_all))
    if one.kind in ("paper", "replace"):
        return Rule(features, one.strength * mean_concept, mean_all, 0.0, where)
    nothing = torch.zeros_like(mean_all)
    return Rule(features, nothing, nothing, one.strength if one.kind == "clamp" else 0.0, where)
