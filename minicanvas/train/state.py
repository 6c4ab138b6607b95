"""What the stages' training loops share: checkpoints, replaced whole so that a killed run can go
on, and the rate."""

import math
import os
from pathlib import Path
from typing import Any

import torch


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
