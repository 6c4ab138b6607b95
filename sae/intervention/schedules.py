"""What an edit does at every step of a schedule, laid out on the device: for a denoiser that is
recorded in a CUDA graph, where nothing can be decided on the host (docs/ablation.md)."""

from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from featurestore.errors import ModelError
from sae.diffusion.hooks import Layout
from sae.diffusion.reading.calls import Branches, DenoiserCall


class _Met(NamedTuple):
    """A step at which the denoiser was called."""

    fused: Any
    """its edit, ready for the kernels; None: they cannot express it"""
    given: Tensor | None
    """the timestep that the denoiser was given, ``[1]``; None: it was no tensor of the device"""
    branches: Branches


class Schedules:
    """The edits of one site at the steps of the schedules that it has met."""

    def __init__(self, hook: str) -> None:
        self._hook = hook
        self._met: dict[tuple[tuple[float, ...], Layout], dict[int, _Met]] = {}
        self._laid_out: dict[tuple[tuple[float, ...], Layout], tuple[Any, Tensor]] = {}

    def meet(self, call: DenoiserCall, layout: Layout, fused: Any, given: Any) -> None:
        """Keep what is done at a call's step, the first time that it is met."""
        steps = self._met.setdefault((call.schedule, layout), {})
        if call.schedule and call.step not in steps:
            steps[call.step] = _Met(fused, timestep_of(given), call.branches)

    def laid_out(
        self, kernels: ModuleType | None, call: DenoiserCall, layout: Layout
    ) -> tuple[Any, Tensor]:
        """Return the edits of all steps as one, and the timesteps ``[steps]`` by which they are
        looked up.

        Raises:
            ModelError: not every step has been met, or a graph cannot express what is done there.
        """
        key = call.schedule, layout
        if key not in self._laid_out:
            steps = self._met.get(key, {})
            reason = _hindrance(call, steps)
            if kernels is None or reason:
                reason = reason or "that takes Triton, and is without gradients"
                raise ModelError(
                    f"the edit at {self._hook!r} cannot be recorded in a CUDA graph: {reason}."
                )
            met = [steps[step] for step in range(len(call.schedule))]
            timesteps = torch.cat([one.given for one in met if one.given is not None])
            self._laid_out[key] = kernels.stack([one.fused for one in met]), timesteps
        return self._laid_out[key]


def _hindrance(call: DenoiserCall, steps: dict[int, _Met]) -> str:
    """Return why a schedule's edits cannot be laid out; empty: they can."""
    n = len(call.schedule)
    if not n:
        return "the denoiser is called by itself, and no pipeline says which timesteps will come"
    if len(set(call.schedule)) < n:
        return "its schedule has a timestep twice, which are different steps"
    if len(steps) < n:
        return (
            f"{len(steps)} of the schedule's {n} steps have been met; generate once, with the "
            f"same settings, before it is recorded"
        )
    if any(one.branches != call.branches for one in steps.values()):
        return "the halves of guidance are calls of their own, and a graph is the same for both"
    if any(one.given is None for one in steps.values()):
        return "the denoiser is given its timestep as a number, not as a tensor on the device"
    if any(one.fused is None for one in steps.values()):
        return (
            "only rules of at most 64 features per step can (paper, clamp and zero, towards "
            "nothing)"
        )
    return ""


def is_recorded(device: torch.device) -> bool:
    """Say whether what is done on a device now is being recorded in a CUDA graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def timestep_of(given: Any) -> Tensor | None:
    """Return the timestep that a denoiser is given as float32 ``[1]``, where it is on the device;
    None if it is no tensor."""
    return given.flatten()[:1].float() if isinstance(given, Tensor) else None
