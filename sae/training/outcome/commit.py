"""From trained weights to a committed SAE, its metrics and their picture."""

import io
import math
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from featurestore.errors import SAEError
from featurestore.format import durable
from featurestore.format.canonical import canonical_json
from featurestore.format.records import Record
from featurestore.saes import commit_sae
from featurestore.store import Store
from sae.checkpoint import CONFIG, METRICS, WEIGHTS, config_bytes, weights_bytes
from sae.feed.batches import Source
from sae.training.outcome.metrics import chunks_of_rows, measure
from sae.training.settings import Plan
from sae.training.state import State

PICTURE = "training.png"
_DEFAULTS = {
    "architecture": "topk",
    "group_sizes": [],
    "scale_inputs": False,
    "betas": [0.9, 0.999],
    "warmup": 0.05,
}


def existing(store: Store, name: str, plan: Plan) -> Record | None:
    """Return the record of an SAE that exists already, provided it was trained by this plan.

    Raises:
        SAEError: the name is taken by another SAE.
    """
    record = store.record("saes", name)
    if record is None:
        return None
    there, here = dict(record.made_by), plan.made_by()
    # An SAE of before a setting existed was trained by its default.
    old, new = _DEFAULTS | there.get("settings", {}), here["settings"]
    changed = [f"{k}: {old.get(k)} there, {v} here" for k, v in new.items() if old.get(k) != v]
    if not changed and there.get("data") != here["data"]:
        changed = ["activations were added or replaced since"]
    if changed:
        raise SAEError(
            f"{store.root} has another SAE {name!r} ({'; '.join(changed)}): use another --name."
        )
    return record


def finish(store: Store, name: str, plan: Plan, *, state: State, source: Source) -> Record:
    """Measure an SAE, write its three files and commit them; a picture of the training lies beside
    them."""
    sae = state.sae.cpu().requires_grad_(False)
    rows, indices, held_out = source.evaluation()
    metrics = measure(sae, chunks_of_rows(rows, indices)).to_json()
    metrics |= {"held_out": held_out, "n_samples": len(set(rows.sample_id[indices].tolist()))}
    columns = zip(*state.history, strict=True)
    metrics["training"] = dict(
        zip(("step", "fvu", "l0", "n_dead"), map(list, columns), strict=False)
    )
    files = {
        CONFIG: config_bytes(plan.config),
        METRICS: (canonical_json(metrics) + "\n").encode(),
        WEIGHTS: weights_bytes(sae),
    }
    draw_training(metrics, f"SAE {name}", store.root / "saes" / name / PICTURE)
    return commit_sae(store, name, files, plan.made_by())


def draw_training(metrics: dict[str, Any], title: str, path: Path) -> None:
    """Draw what ``metrics.json`` says: FVU and dead latents while training, FVU per timestep at the
    end."""
    with rc_context({"font.size": 9}):
        figure = Figure(figsize=(9, 3.4), layout="constrained")
        left, right = figure.subplots(1, 2)
        _course(left, metrics["training"])
        _timesteps(right, metrics)
        overall = "undefined" if metrics["fvu"] is None else f"{metrics['fvu']:.4f}"
        where = "held-out samples" if metrics["held_out"] else "the training samples"
        figure.suptitle(
            f"{title}: FVU {overall} on {where}, L0 {metrics['l0']:.1f}", parse_math=False
        )
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
