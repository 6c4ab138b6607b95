"""Pictures of a concept's importance over the timesteps."""

import io
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from featurestore.errors import QueryError, UsageError
from featurestore.format import durable
from featurestore.store import Store
from queries.importance import importance

FORMATS = ("png", "svg")


def plot_importance(
    store: Store,
    sae: str,
    family: str,
    concept: str,
    path: Path,
    kind: str = "lines",
    top: int = 10,
    branch: str = "cond",
) -> int:
    """Draw the ``top`` features of a concept by mean score, as ``lines`` or a ``heatmap``; return how many there are.

    The same scores give the same bytes with the same matplotlib.

    Raises:
        UsageError: the suffix is neither .png nor .svg.
        QueryError: no encoded sample carries the concept, or no feature has a positive mean score.
    """
    form = path.suffix.lower().removeprefix(".")
    if form not in FORMATS:
        raise UsageError(f"{path}: a picture is .png or .svg; the suffix says which.")
    features, timesteps, scores = grid(importance(store, sae, family, branch, [concept]), top)
    if not features:
        raise QueryError(
            f"no feature of SAE {sae!r} has a positive mean score for {family}={concept}: nothing to draw."
        )
    figure = Figure(figsize=(8, 4.5 if kind == "lines" else max(3.0, 0.22 * len(features) + 1.5)), layout="constrained")
    axes = figure.add_subplot()
    (_lines if kind == "lines" else _heatmap)(figure, axes, features, timesteps, scores)
    axes.set_title(f"{family} = {concept}   (SAE {sae}, {branch})", parse_math=False)
    durable.write_bytes(path, _rendered(figure, form))
    return len(features)


def grid(mine: pa.Table, top: int) -> tuple[list[int], list[float], np.ndarray]:
    """Return the best features by mean score, the timesteps in the order of the steps, and the scores ``[feature, step]``."""
    steps = mine.select(["step", "timestep"]).group_by("step").aggregate([("timestep", "min")]).sort_by("step")
    features, columns = mine["feature"].to_numpy(), np.searchsorted(steps["step"].to_numpy(), mine["step"].to_numpy())
    names, rows = np.unique(features, return_inverse=True)
    scores = np.zeros((len(names), steps.num_rows))
    scores[rows, columns] = mine["score"].to_numpy()
    order = [i for i in np.argsort(-scores.mean(1), kind="stable")[:top] if scores[i].mean() > 0]
    return names[order].tolist(), steps["timestep_min"].to_pylist(), scores[order]


def _lines(figure: Figure, axes: Axes, features: list[int], timesteps: list[float], scores: np.ndarray) -> None:
    for feature, values in zip(features, scores, strict=True):
        axes.plot(range(len(timesteps)), values, marker=".", label=str(feature))
    axes.axhline(0, color="0.7", linewidth=0.8, zorder=0)
    axes.set_ylabel("importance score")
    _label_steps(axes, timesteps)
    figure.legend(title="feature", loc="outside right upper", fontsize="small")


def _heatmap(figure: Figure, axes: Axes, features: list[int], timesteps: list[float], scores: np.ndarray) -> None:
    limit = float(np.abs(scores).max())
    image = axes.imshow(scores, aspect="auto", cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
    axes.set_yticks(range(len(features)), [str(feature) for feature in features], fontsize="small")
    axes.set_ylabel("feature")
    _label_steps(axes, timesteps)
    figure.colorbar(image, ax=axes, label="importance score")


def _label_steps(axes: Axes, timesteps: list[float]) -> None:
    ticks = range(0, len(timesteps), -(-len(timesteps) // 11))
    axes.set_xticks(ticks, [f"{timesteps[i]:g}" for i in ticks])
    axes.set_xlabel("timestep (noisiest first)")


def _rendered(figure: Figure, form: str) -> bytes:
    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "featurestore"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure.savefig(buffer, format=form, dpi=150, metadata={"Date": None} if form == "svg" else {"Software": None})
    return buffer.getvalue()
