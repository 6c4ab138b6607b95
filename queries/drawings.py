"""The figures themselves: tables of answers in, matplotlib figures out."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure

_N_COLUMNS = 6
"""steps that a map over pictures shows"""
_N_LINES = 4
"""features that are drawn with intervals: more bands hide each other"""


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


def lines(
    title: str, features: list[int], timesteps: Sequence[float], scores: np.ndarray
) -> Figure:
    """Draw scores ``[feature, step]``, a line for each feature."""
    figure, axes = _figure(title)
    for feature, values in zip(features, scores, strict=True):
        axes.plot(range(len(timesteps)), values, marker=".", label=str(feature))
    _scores(figure, axes, timesteps)
    return figure


def heatmap(
    title: str, features: list[int], timesteps: Sequence[float], scores: np.ndarray
) -> Figure:
    """Draw scores ``[feature, step]``, a row for each feature."""
    figure, axes = _figure(title, max(3.0, 0.22 * len(features) + 1.5))
    limit = float(np.abs(scores).max())
    image = axes.imshow(
        scores, aspect="auto", cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest"
    )
    axes.set_yticks(range(len(features)), [str(feature) for feature in features], fontsize="small")
    axes.set_ylabel("feature")
    _label_steps(axes, timesteps)
    figure.colorbar(image, ax=axes, label="importance score")
    return figure


def intervals(title: str, rows: pa.Table) -> Figure:
    """Draw an answer of ``bootstrap.sql``: the features that are among the best at most steps, a
    point and an interval wherever one is."""
    figure, axes = _figure(title)
    steps = dict(sorted({row["step"]: row["timestep"] for row in rows.to_pylist()}.items()))
    place = {step: column for column, step in enumerate(steps)}
    by_feature: dict[int, list[dict[str, Any]]] = {}
    for row in rows.to_pylist():
        by_feature.setdefault(row["feature"], []).append(row)
    best = sorted(by_feature, key=lambda f: (-sum(row["score"] for row in by_feature[f]), f))
    for number, feature in enumerate(best[:_N_LINES]):
        x = [place[row["step"]] + 0.15 * (number - 1.5) for row in by_feature[feature]]
        score, low, high = (
            np.array([row[name] for row in by_feature[feature]])
            for name in ("score", "low", "high")
        )
        error = np.stack([score - low, high - score]).clip(0)
        axes.errorbar(x, score, error, fmt=".", capsize=2, linewidth=1, label=str(feature))
    _scores(figure, axes, list(steps.values()))
    return figure


def matrix(title: str, rows: pa.Table) -> tuple[Figure, int]:
    """Draw an answer of ``overlap_matrix.sql``, and return how many concepts it has."""
    found = {(r["concept"], r["other_concept"]): r["jaccard"] for r in rows.to_pylist()}
    names = sorted({name for pair in found for name in pair})
    shares = np.full((len(names), len(names)), np.nan)
    for (one, other), jaccard in found.items():
        i, j = names.index(one), names.index(other)
        shares[i, j] = shares[j, i] = np.nan if jaccard is None else jaccard
    np.fill_diagonal(shares, np.nan)  # a concept shares everything with itself
    size = max(3.5, 0.42 * len(names) + 1.5)
    figure, axes = _figure(title, size, size + 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0)
    for place in (axes.set_xticks, axes.set_yticks):
        place(range(len(names)), names, fontsize="small")
    axes.tick_params(axis="x", rotation=60)
    figure.colorbar(image, ax=axes, label="shared of all that either selects")
    return figure, len(names)


def profile(title: str, rows: pa.Table) -> Figure:
    """Draw an answer of ``timestep_profile.sql``."""
    figure, axes = _figure(title)
    timesteps = rows["timestep"].to_pylist()
    x = range(len(timesteps))
    axes.bar(x, rows["density"].to_pylist(), color="0.85", label="samples in which it fires")
    axes.set_ylabel("share of the samples")
    axes.set_ylim(0, 1)
    _label_steps(axes, timesteps)
    other = axes.twinx()
    other.plot(x, rows["mean"].to_pylist(), marker=".", label="mean over samples and positions")
    other.set_ylabel("activation")
    other.set_ylim(bottom=0)
    figure.legend(loc="outside lower center", ncols=2, fontsize="small")
    return figure


def maps(
    title: str,
    pictures: list[np.ndarray],
    answers: list[pa.Table],
    timesteps: dict[int, float],
    *,
    size: tuple[int, int],
) -> Figure:
    """Draw pictures, and where a feature fires in them: answers of ``feature_map.sql``, one for
    each picture."""
    steps = sorted(timesteps)
    shown = [steps[i] for i in np.unique(np.linspace(0, len(steps) - 1, _N_COLUMNS).round())
             .astype(int)]  # fmt: skip
    heats = np.zeros((len(pictures), len(shown), *size))
    for number, answer in enumerate(answers):
        for row in answer.to_pylist():
            if row["step"] in shown:
                place = shown.index(row["step"]), row["map_row"], row["map_column"]
                heats[(number, *place)] = row["value"]
    figure = Figure(
        figsize=(1.25 * (len(shown) + 1) + 0.6, 1.15 * len(pictures) + 0.7), layout="constrained"
    )
    figure.suptitle(title, fontsize="medium", parse_math=False)
    cells = figure.subplots(len(pictures), len(shown) + 1, squeeze=False)
    largest = max(float(heats.max()), 1e-12)
    for picture, row, heat in zip(pictures, cells, heats, strict=True):
        height, width = picture.shape[:2]
        row[0].imshow(picture)
        for axes, values in zip(row[1:], heat, strict=True):
            axes.imshow(picture.mean(axis=-1), cmap="gray", vmin=0, vmax=255)
            image = axes.imshow(
                values, cmap="autumn", alpha=0.85 * values / largest, vmin=0, vmax=largest,
                extent=(-0.5, width - 0.5, height - 0.5, -0.5), interpolation="nearest",
            )  # fmt: skip
    for axes, label in zip(cells[0], ["picture", *(f"t = {timesteps[s]:g}" for s in shown)],
                           strict=True):  # fmt: skip
        axes.set_title(label, fontsize="small")
    for axes in cells.flat:
        axes.set_axis_off()
    figure.colorbar(
        ScalarMappable(image.norm, image.cmap), ax=cells, label="activation", shrink=0.8
    )
    return figure


def fvu(title: str, rows: list[dict[str, Any]]) -> Figure:
    """Draw the entries of ``timesteps`` in an SAE's metrics, a line for each branch."""
    figure, axes = _figure(title)
    steps = dict(sorted({row["step"]: row["timestep"] for row in rows}.items()))
    place = {step: column for column, step in enumerate(steps)}
    branches = sorted({row["branch"] for row in rows})
    for branch in branches:
        of = sorted((row for row in rows if row["branch"] == branch), key=lambda row: row["step"])
        axes.plot(
            [place[row["step"]] for row in of], [row["fvu"] for row in of], marker=".", label=branch
        )
    axes.set_ylabel("FVU of held-out samples")
    axes.set_ylim(bottom=0)
    _label_steps(axes, list(steps.values()))
    if len(branches) > 1:
        axes.legend(title="branch", fontsize="small")
    return figure


def _figure(title: str, height: float = 4.5, width: float = 8) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, parse_math=False)
    return figure, axes


def _scores(figure: Figure, axes: Axes, timesteps: Sequence[float]) -> None:
    """Label axes of scores over timesteps."""
    axes.axhline(0, color="0.7", linewidth=0.8, zorder=0)
    axes.set_ylabel("importance score")
    _label_steps(axes, timesteps)
    figure.legend(title="feature", loc="outside right upper", fontsize="small")


def _label_steps(axes: Axes, timesteps: Sequence[float]) -> None:
    ticks = range(0, len(timesteps), -(-len(timesteps) // 11))
    axes.set_xticks(ticks, [f"{timesteps[i]:g}" for i in ticks])
    axes.set_xlabel("timestep (noisiest first)")
