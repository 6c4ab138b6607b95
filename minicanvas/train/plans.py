"""How much is trained, and of what size: a plan per benchmark, the large one's for a CPU and for a
GPU."""

import json
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch

from minicanvas.canvases import CANVASES, LARGE, SMALL, Canvas


class Plan(NamedTuple):
    """What is trained; the defaults made the small benchmark's shipped weights."""

    name: str = SMALL.name
    """of the benchmark"""
    n_pictures: int = 33_000
    n_classifier_pictures: int = 11_000
    n_held_out: int = 2_200
    latent_channels: int = 4
    autoencoder_channels: tuple[int, ...] = (24, 48, 64)
    autoencoder_steps: int = 3_000
    autoencoder_batch: int = 8
    classifier_steps: int = 1_200
    classifier_batch: int = 64
    denoiser_channels: tuple[int, ...] = (64, 128, 128)
    denoiser_steps: int = 3_600
    denoiser_batch: int = 64
    n_measured: int = 5
    """pictures per prompt that the finished model is measured with"""

    @property
    def canvas(self) -> Canvas:
        """The benchmark that the plan is for."""
        return CANVASES[self.name]


SMALL_PLAN: Final = Plan()
LARGE_PLAN: Final = Plan(
    name=LARGE.name,
    n_pictures=63_000,
    n_classifier_pictures=42_000,
    n_held_out=4_200,
    latent_channels=8,
    autoencoder_channels=(32, 64, 64),
    autoencoder_steps=4_000,
    autoencoder_batch=16,
    classifier_steps=3_000,
    denoiser_channels=(80, 144, 144),
    denoiser_steps=12_000,
)
"""For 2 cores, in hours."""
LARGE_GPU_PLAN: Final = LARGE_PLAN._replace(
    autoencoder_steps=3_000,
    autoencoder_batch=48,
    classifier_steps=2_000,
    classifier_batch=128,
    denoiser_steps=8_000,
    denoiser_batch=256,
)
"""For a GPU, which is kept waiting by small batches: fewer and larger steps."""


def device_name() -> str:
    """Return the device to train on: a GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def kept_plan(out: Path, name: str) -> Plan:
    """Return the plan that a working directory was begun with, or begin one for a benchmark.

    So a training goes on as it began, also on another machine.

    Raises:
        ValueError: the directory was begun for another benchmark.
    """
    path = out / "plan.json"
    if not path.exists():
        plan = SMALL_PLAN
        if name == LARGE.name:
            plan = LARGE_GPU_PLAN if device_name() == "cuda" else LARGE_PLAN
        out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(plan._asdict(), indent=2) + "\n")
    entries: dict[str, Any] = json.loads(path.read_text())
    shapes = {key: tuple(value) for key, value in entries.items() if isinstance(value, list)}
    plan = Plan(**(entries | shapes))
    if plan.name != name:
        raise ValueError(
            f"{out} holds a training of {plan.name}, expected {name}: give another --out, or "
            f"--canvas {plan.name}"
        )
    return plan
