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
from queries.answers import ask
from queries.engine import Engine
from queries.questions import Value

FORMATS = ("png", "svg")


def plot(
    store: Store, sae: str, family: str, concept: str, path: Path, *, kind: str = "lines", top: int = 10,
    branch: str = "cond", engine: Engine | None = None,
) -> int:  # fmt: skip
    """Draw the ``top`` features of a concept by mean score, as ``lines`` or a ``heatmap``; return
    how many there are.

    The same scores give the same bytes with the same matplotlib. ``engine``:
    :class:`queries.spark.Spark` instead of DuckDB.

    Raises:
        UsageError: the suffix is neither .png nor .svg.
        QueryError: no encoded sample carries the concept, or no feature has a positive mean score.
    """
    form = path.suffix.lower().removeprefix(".")
    if form not in FORMATS:
        raise UsageError(f"{path}: a picture is .png or .svg; the suffix says which.")
    asked: dict[str, Value] = {
        "sae": sae,
        "family": family,
        "branch": branch,
        "concept": concept,
        "top": top,
    }
    features, timesteps, scores = grid(ask(store, "concept_scores", asked, engine=engine))
    if not features:
        raise QueryError(
            f"no feature of SAE {sae!r} has a positive mean score for {family}={concept}: nothing "
            f"to draw."
        )
    figure = Figure(
        figsize=(8, 4.5 if kind == "lines" else max(3.0, 0.22 * len(features) + 1.5)),
        layout="constrained",
    )
    axes = figure.add_subplot()
    (_lines if kind == "lines" else _heatmap)(figure, axes, features, timesteps, scores)
    axes.set_title(f"{family} = {concept}   (SAE {sae}, {branch})", parse_math=False)
    durable.write_bytes(path, _rendered(figure, form))
    return len(features)


def grid(rows: pa.Table) -> tuple[list[int], list[float], np.ndarray]:
    """Return the features with a positive mean score, best first, the timesteps in the order of the
    steps, and the scores.

    ``rows`` is an answer of ``concept_scores.sql``; the scores are ``[feature, step]``, 0 where a
    feature fired in no sample.
    """
    timesteps = dict(
        sorted(zip(rows["step"].to_pylist(), rows["timestep"].to_pylist(), strict=True))
    )
    columns = {step: column for column, step in enumerate(timesteps)}
    found: dict[int, np.ndarray] = {}
    for row in rows.to_pylist():
        if row["mean_score"] > 0:
            found.setdefault(row["feature"], np.zeros(len(columns)))[columns[row["step"]]] = row[
                "score"
            ]
    return list(found), list(timesteps.values()), np.array(list(found.values()))


def _lines(
    figure: Figure, axes: Axes, features: list[int], timesteps: list[float], scores: np.ndarray
) -> None:
    for feature, values in zip(features, scores, strict=True):
        axes.plot(range(len(timesteps)), values, marker=".", label=str(feature))
    axes.axhline(0, color="0.7", linewidth=0.8, zorder=0)
    axes.set_ylabel("importance score")
    _label_steps(axes, timesteps)
    figure.legend(title="feature", loc="outside right upper", fontsize="small")


def _heatmap(
    figure: Figure, axes: Axes, features: list[int], timesteps: list[float], scores: np.ndarray
) -> None:
    limit = float(np.abs(scores).max())
    image = axes.imshow(
        scores, aspect="auto", cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest"
    )
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
        figure.savefig(
            buffer,
            format=form,
            dpi=150,
            metadata={"Date": None} if form == "svg" else {"Software": None},
        )
    return buffer.getvalue()
