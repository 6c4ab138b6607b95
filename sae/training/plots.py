"""A picture of a training."""

import io
import math
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from featurestore.format import durable

PICTURE = "training.png"


def draw_training(metrics: dict[str, Any], title: str, path: Path) -> None:
    """Draw what ``metrics.json`` says of an SAE: FVU and dead latents while it was trained, FVU per timestep at the end."""
    with rc_context({"font.size": 9}):
        figure = Figure(figsize=(9, 3.4), layout="constrained")
        left, right = figure.subplots(1, 2)
        _course(left, metrics["training"])
        _timesteps(right, metrics)
        overall = "undefined" if metrics["fvu"] is None else f"{metrics['fvu']:.4f}"
        where = "held-out samples" if metrics["held_out"] else "the training samples"
        figure.suptitle(f"{title}: FVU {overall} on {where}, L0 {metrics['l0']:.1f}", parse_math=False)
        sink = io.BytesIO()
        figure.savefig(sink, format="png", dpi=110, metadata={"Software": None})
    durable.write_bytes(path, sink.getvalue())


def _course(axes: Axes, training: dict[str, list[float]]) -> None:
    axes.semilogy(training.get("step", []), training.get("fvu", []), color="tab:blue")
    axes.set(xlabel="training step", ylabel="FVU of the batch")
    dead = axes.twinx()
    dead.plot(training.get("step", []), training.get("n_dead", []), color="tab:red", linewidth=0.8)
    dead.set_ylabel("dead latents", color="tab:red")
    dead.set_ylim(bottom=0)


def _timesteps(axes: Axes, metrics: dict[str, Any]) -> None:
    for branch in (part["branch"] for part in metrics["branches"]):
        parts = [part for part in metrics["timesteps"] if part["branch"] == branch]
        values = [math.nan if part["fvu"] is None else part["fvu"] for part in parts]
        axes.plot([part["timestep"] for part in parts], values, marker=".", label=branch)
    axes.set(xlabel="timestep", ylabel="FVU", ylim=(0, None))
    axes.invert_xaxis()
    axes.legend()
