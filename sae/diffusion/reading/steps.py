"""At which step of its schedule a running pipeline call is."""

from collections.abc import Sequence
from typing import Any

import torch

from featurestore.errors import ModelError
from sae.diffusion.reading.calls import Branches, Running


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
