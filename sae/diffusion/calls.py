"""Which samples of a denoiser call are which: read from the pipeline call that is running, never
from what is left of one before.

A denoiser's hook finds the pipeline that called it on the stack: its variables say, at that moment,
whether guidance is on, which embeddings are the prompt's, at which step it is. What they say is
checked against the batch that the denoiser was given. Nothing of the pipeline is replaced, so any
number of readers may come and go in any order.
"""

import contextlib
import functools
import inspect
import sys
import weakref
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import nn

from featurestore.errors import ModelError

Branches = tuple[str, ...]
"""How a denoiser call's batch is divided, in equal parts, from its start: ``cond``, ``uncond``, and
what a guidance of three parts has beside them: ``perturbed`` (PAG), ``skip`` (skip-layer guidance),
``image`` (InstructPix2Pix)."""
HALVES: Branches = ("uncond", "cond")


class Running(NamedTuple):
    """A denoiser call and the pipeline call that made it, as they stand."""

    pipe: Any
    variables: Mapping[str, Any]
    """of the pipeline's call: its arguments and all that it has named since"""
    arguments: Mapping[str, Any]
    """of the denoiser's call, by name"""
    batch: int
    """samples that the denoiser was given"""

    def variable(self, name: str) -> Any:
        """Return a variable of the pipeline's call.

        Raises:
            ModelError: it has none of that name.
        """
        if name not in self.variables:
            raise ModelError(
                f"{type(self.pipe).__name__} calls its denoiser without a variable {name!r} to "
                f"read: {HOW_TO_DECLARE}"
            )
        return self.variables[name]


HOW_TO_DECLARE = (
    "say how its calls are read with sae.diffusion.declare (docs/pipelines.md, 'Your "
    "own pipeline in ten lines')."
)
Reader = Callable[[Running], Branches]
"""says how the batch of a denoiser call is divided"""


class DenoiserCall(NamedTuple):
    """One call of the denoiser, as it was made."""

    timestep: float
    branches: Branches
    """how the batch is divided, in equal parts, from its start"""
    step: int = 0
    """index of the timestep in ``schedule``"""
    schedule: tuple[float, ...] = ()
    """the timesteps of the run, in their order; empty: the denoiser was called by itself"""
    batch: int = 0
    """samples that the denoiser was given; 0: not known"""

    @property
    def occurrence(self) -> int:
        """How often the schedule has had the timestep before this step (PNDM and Heun repeat
        some)."""
        return self.schedule[: self.step].count(self.timestep)

    @property
    def part(self) -> float | None:
        """Where in its schedule the call is: 0 at the first step, 1 at the last; None without a
        schedule."""
        return self.step / max(1, len(self.schedule) - 1) if self.schedule else None


def running(
    module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], owns: Callable[[Any], bool]
) -> Running | None:
    """Return the pipeline call that is calling ``module`` now; None if no pipeline is.

    ``owns`` says whether an object is a pipeline with that denoiser. Variables of the pipeline's
    own methods on the way from its ``__call__`` to the denoiser count too, the nearest first.
    """
    pipe, frames = None, []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        # Looking at a frame's variables keeps them alive for as long as it runs: methods only.
        caller = frame.f_locals.get("self") if frame.f_code.co_varnames[:1] == ("self",) else None
        if caller is not None and (caller is pipe or (pipe is None and owns(caller))):
            pipe = caller
            frames.append(dict(frame.f_locals))
            if frame.f_code.co_name == "__call__":
                break
        frame = frame.f_back
    if pipe is None:
        return None
    arguments = bound(module, args, kwargs)
    return Running(pipe, ChainMap(*frames), arguments, batch_size(arguments))


def bound(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a module's call by name."""
    call = _signature(type(module).forward).bind(module, *args, **kwargs)
    return dict(list(call.arguments.items())[1:])


@functools.cache
def _signature(forward: Callable[..., Any]) -> inspect.Signature:
    """Return what a module's ``forward`` takes; asked at every call of a denoiser."""
    return inspect.signature(forward)


def batch_size(arguments: Mapping[str, Any]) -> int:
    """Return how many samples a denoiser was given: of its first argument, a tensor or a list of
    one for each."""
    return len(next(iter(arguments.values())))


def check_batch(call: Running, branches: Branches, n_samples: int) -> None:
    """Refuse a reading that the batch contradicts.

    Raises:
        ModelError: the batch is not ``n_samples`` for each branch.
    """
    if call.batch != len(branches) * n_samples:
        raise ModelError(
            f"{type(call.pipe).__name__} called its denoiser with {call.batch} samples for "
            f"{n_samples} pictures, which are "
            f"not {' and '.join(branches)} of each: {HOW_TO_DECLARE}"
        )


# How guidance is read. Each says in its first line which pipelines it fits.


def halves(call: Running) -> Branches:
    """Both halves in one call, the unconditional first, where guidance is on (Stable Diffusion and
    most others)."""
    return HALVES if guided(call) else ("cond",)


def halves_cond_first(call: Running) -> Branches:
    """Both halves in one call, the conditional first, where the scale is above 1 (DiT)."""
    return ("cond", "uncond") if call.variable("guidance_scale") > 1 else ("cond",)


def alone(call: Running) -> Branches:
    """One call a step without guidance, or with its scale told to the denoiser (FLUX Fill,
    DDPM)."""
    return ("cond",)


def guided(call: Running) -> bool:
    """Say whether guidance is on: a variable ``do_classifier_free_guidance`` of the running call,
    or the pipeline's property.

    Raises:
        ModelError: there is neither.
    """
    name = "do_classifier_free_guidance"
    told = call.variables.get(name, getattr(call.pipe, name, None))
    if told is None:
        raise ModelError(
            f"{type(call.pipe).__name__} does not say whether guidance is on (no {name}): "
            f"{HOW_TO_DECLARE}"
        )
    return bool(told)


def passes(call: Running) -> Branches:
    """A call for each branch, told by whose embeddings the denoiser is given (FLUX, Qwen-Image,
    Wan, CogView4 …)."""
    given = call.arguments.get("encoder_hidden_states")
    for branch, name in (("cond", "prompt_embeds"), ("uncond", "negative_prompt_embeds")):
        if given is not None and given is call.variables.get(name):
            return (branch,)
    raise ModelError(
        f"{type(call.pipe).__name__} called its denoiser with embeddings that are neither its "
        f"prompt_embeds nor its "
        f"negative_prompt_embeds: {HOW_TO_DECLARE}"
    )


class Steps:
    """At which step of its schedule a pipeline call is."""

    def __init__(self) -> None:
        self._listed: Any = None
        self._schedule: tuple[float, ...] = ()
        self._seen: set[str] = set()
        self._timestep = float("nan")
        self.step = -1

    def timestep(self, call: Running, given: Any) -> float:
        """Return the value of the timestep that a pipeline gives its denoiser.

        Where it is the very element of the loop's own list that the loop is at, its value is known
        without waiting for the device, which would otherwise stand idle once per step.
        """
        listed, step = call.variables.get("timesteps"), call.variables.get("i")
        if (
            isinstance(listed, torch.Tensor)
            and isinstance(step, int)
            and _is_element(given, listed, step)
        ):
            return self._as_tuple(listed)[step]
        return scalar(given)

    def find(
        self, call: Running, timestep: float, branches: Branches
    ) -> tuple[int, tuple[float, ...]]:
        """Return the step and the schedule of a denoiser call.

        The loop's own ``i`` and ``timesteps`` where they agree with its timestep; else the next
        place of the timestep in the scheduler's list: a timestep that returns (PNDM, Heun) is
        another step, and a second pass of guidance is not.

        Raises:
            ModelError: the scheduler's list does not hold the timestep after the step before.
        """
        listed, step = call.variables.get("timesteps"), call.variables.get("i")
        if isinstance(step, int) and _is_schedule(listed):
            schedule = self._as_tuple(listed)
            if schedule[step : step + 1] == (timestep,):
                self.step = step
                return step, schedule
        schedule = self._as_tuple(call.pipe.scheduler.timesteps)
        return self.advance(schedule, timestep, branches), schedule

    def advance(self, schedule: Sequence[float], timestep: float, branches: Branches) -> int:
        """Move to the step of a denoiser call, and return it."""
        if timestep == self._timestep and self._seen.isdisjoint(branches):
            self._seen.update(branches)
            return self.step
        later = (
            index for index in range(self.step + 1, len(schedule)) if schedule[index] == timestep
        )
        step = next(later, None)
        if step is None:
            raise ModelError(
                f"the denoiser was called at timestep {timestep:g}, which the scheduler's list "
                f"does not hold."
            )
        self.step, self._timestep, self._seen = step, timestep, set(branches)
        return step

    def _as_tuple(self, listed: Any) -> tuple[float, ...]:
        if listed is not self._listed:  # A new run. One wait for the device.
            self._listed, self._schedule = (
                listed,
                tuple(map(float, torch.as_tensor(listed).tolist())),
            )
            self.step, self._timestep, self._seen = -1, float("nan"), set()
        return self._schedule


def _is_element(given: Any, listed: torch.Tensor, index: int) -> bool:
    """Say whether a tensor is, in memory, one element of a list."""
    if not isinstance(given, torch.Tensor) or listed.dim() != 1 or not 0 <= index < len(listed):
        return False
    return (
        given.numel() == 1
        and given.dtype == listed.dtype
        and given.data_ptr() == listed[index].data_ptr()
    )


def _is_schedule(listed: Any) -> bool:
    return isinstance(listed, (list, tuple)) or (
        isinstance(listed, torch.Tensor) and listed.dim() == 1
    )


def scalar(timestep: Any) -> float:
    """Return the one value of a timestep.

    Raises:
        ModelError: it has several.
    """
    values = torch.as_tensor(timestep).flatten().tolist()  # One wait for the device, not two.
    if len(set(values)) > 1:
        raise ModelError(
            f"one denoiser call has several timesteps ({values}): pipelines give all samples the "
            f"same."
        )
    return float(values[0])


_direct: "weakref.WeakKeyDictionary[nn.Module, list[tuple[Branches, float | None]]]" = (
    weakref.WeakKeyDictionary()
)


@contextlib.contextmanager
def said_of(module: nn.Module, branches: Branches, timestep: float | None) -> Iterator[None]:
    """Say what the calls of a denoiser are that no pipeline makes, for as long as the block
    lasts."""
    told = _direct.setdefault(module, [])
    told.append((branches, timestep))
    try:
        yield
    finally:
        told.remove((branches, timestep))


def direct_call(
    module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> DenoiserCall | None:
    """Return a denoiser's call that no pipeline makes, as :func:`said_of` has it; None if nothing
    was said.

    Raises:
        ModelError: its batch cannot be divided so.
    """
    told = _direct.get(module)
    if not told:
        return None
    branches, timestep = told[-1]
    arguments = bound(module, args, kwargs)
    batch = batch_size(arguments)
    if batch % len(branches):
        raise ModelError(
            f"the denoiser was called with {batch} samples, which are not "
            f"{' and '.join(branches)} of each."
        )
    at = scalar(arguments["timestep"]) if timestep is None else timestep
    return DenoiserCall(at, branches, batch=batch)
