"""Which samples of a denoiser call are which: read from the pipeline call that is running, never
from what is left of one before.

A denoiser's hook finds the pipeline that called it on the stack: its variables say, at that moment,
whether guidance is on, which embeddings are the prompt's, at which step it is. What they say is
checked against the batch that the denoiser was given. Nothing of the pipeline is replaced, so any
number of readers may come and go in any order.
"""

import functools
import inspect
import sys
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any, NamedTuple

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
    frame: FrameType | None = None
    """of the pipeline's call"""

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompts of the pipeline's call; empty where it has none."""
        given = self.frame.f_locals.get("prompt") if self.frame is not None else None
        texts = [given] if isinstance(given, str) else given
        if not isinstance(texts, (list, tuple)) or not all(isinstance(t, str) for t in texts):
            return ()
        return tuple(texts)

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
    prompts: tuple[str, ...] = ()
    """of the pipeline's call, a text per picture; empty: it was given none"""
    grid: tuple[int, int, int] | None = None
    """frames, height and width of a transformer's patches, in the order of its image tokens; None:
    not known"""

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
    pipe, frames, outermost = None, [], None
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        # Looking at a frame's variables keeps them alive for as long as it runs: methods only.
        caller = frame.f_locals.get("self") if frame.f_code.co_varnames[:1] == ("self",) else None
        if caller is not None and (caller is pipe or (pipe is None and owns(caller))):
            pipe, outermost = caller, frame
            frames.append(dict(frame.f_locals))
            if frame.f_code.co_name == "__call__":
                break
        frame = frame.f_back
    if pipe is None:
        return None
    arguments = bound(module, args, kwargs)
    return Running(pipe, ChainMap(*frames), arguments, batch_size(arguments), outermost)


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
            f"{n_samples} pictures, which are not {' and '.join(branches)} of each: "
            f"{HOW_TO_DECLARE}"
        )
