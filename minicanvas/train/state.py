"""What the stages' training loops share: checkpoints, replaced whole so that a killed run can go
on, and the rate."""

import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from tqdm import tqdm

SAVE_SECONDS = 120


class Stateful(Protocol):
    """What can be saved and restored: a module, an optimiser."""

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` restores."""

    def load_state_dict(self, state: dict[str, Any], /) -> Any:
        """Become what was saved."""


def resumed_steps(
    path: Path, n_steps: int, parts: Mapping[str, Stateful], *, title: str, writes: bool = True
) -> Iterator[int]:
    """Yield the steps that are left, after restoring `parts` from a checkpoint at `path`.

    What the caller did in a step is saved every two minutes and after the last one, so that a
    killed run goes on from there. `writes` is False for all but one of several processes.
    """
    state, start, saved = load_state(path), 0, time.monotonic()
    if state is not None:
        for name, part in parts.items():
            part.load_state_dict(state[name])
        start = int(state["step"])
    for step in tqdm(
        range(start, n_steps),
        initial=start,
        total=n_steps,
        desc=title,
        disable=not writes,
        mininterval=20,
    ):
        yield step
        if writes and (time.monotonic() - saved > SAVE_SECONDS or step + 1 == n_steps):
            saved = time.monotonic()
            content = {name: part.state_dict() for name, part in parts.items()}
            save_state(path, {**content, "step": step + 1})


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint to a temporary file, flush it to disk and put it in place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def load_state(path: Path) -> dict[str, Any] | None:
    """Return a checkpoint, tensors on the CPU, or None if the file does not exist."""
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def needed_state(path: Path, stage: str) -> dict[str, Any]:
    """Return a checkpoint.

    Raises:
        FileNotFoundError: the stage that writes it has not run.
    """
    state = load_state(path)
    if state is None:
        raise FileNotFoundError(f"{path} is missing; run `--stage {stage}` first")
    return state


def learning_rate(
    step: int, n_steps: int, peak: float, *, rise: int = 1, floor: float = 0.0
) -> float:
    """Return the rate of a step: up to `peak` over `rise` steps, then a cosine down to `floor` of
    it."""
    return (
        peak
        * min(1, (step + 1) / rise)
        * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * step / n_steps)))
    )


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Give every group of parameters a rate."""
    for group in optimiser.param_groups:
        group["lr"] = rate
