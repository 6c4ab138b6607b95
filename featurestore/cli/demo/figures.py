"""The report's pictures: grids, curves and maps."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from featurestore.selection import Selection

_GAP = 2


def png_uri(image: Image.Image) -> str:
    """Return a picture as a data URI."""
    sink = io.BytesIO()
    image.save(sink, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(sink.getvalue()).decode()}"


def grid(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Return pictures of one size as rows and columns, with a thin gap."""
    width, height = rows[0][0].size
    n_columns = max(len(row) for row in rows)
    sheet = Image.new(
        "RGB", (n_columns * (width + _GAP) - _GAP, len(rows) * (height + _GAP) - _GAP), "white"
    )
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            sheet.paste(image, (x * (width + _GAP), y * (height + _GAP)))
    return sheet


def overlay(image: Image.Image, heat: npt.NDArray[np.floating], largest: float) -> Image.Image:
    """Return a grey copy of a picture with a map ``[height, width]`` over it, from clear (0) to
    red-yellow (``largest``)."""
    scale = np.clip(heat / largest, 0, 1) if largest > 0 else np.zeros_like(heat)
    spread = Image.fromarray((scale * 255).astype(np.uint8)).resize(
        image.size, Image.Resampling.BILINEAR
    )
    strength = np.asarray(spread, np.float32)[..., None] / 255
    grey = np.asarray(image.convert("L").convert("RGB"), np.float32)
    colour = np.concatenate(
        [np.full_like(strength, 255), 210 * strength, np.zeros_like(strength)], -1
    )
    mixed = grey * (1 - 0.85 * strength) + colour * 0.85 * strength
    return Image.fromarray(mixed.clip(0, 255).astype(np.uint8))


def importance_curves(selection: Selection) -> str:
    """Return an SVG: the score of each selected feature over the timesteps; points where it is
    selected."""
    table = selection.rows.to_pydict()
    by_feature: dict[int, list[tuple[float, float]]] = {}
    for feature, timestep, score in zip(
        table["feature"], table["timestep"], table["score"], strict=True
    ):
        by_feature.setdefault(feature, []).append((timestep, score))
    figure, axes = _axes("timestep (noise on the left, picture on the right)", "importance score")
    order = sorted(by_feature, key=lambda f: -max(score for _, score in by_feature[f]))
    for rank, feature in enumerate(order):
        x, y = zip(*sorted(by_feature[feature], reverse=True), strict=True)
        label = f"feature {feature}" if rank < 10 else None
        axes.plot(x, y, marker="o", markersize=3.5, linewidth=1.4, label=label)
    axes.invert_xaxis()
    axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return _svg(figure)


def fvu_curves(metrics: dict[str, dict[str, Any]]) -> str:
    """Return an SVG: the FVU of SAEs over the timesteps, from their ``metrics.json``."""
    figure, axes = _axes(
        "timestep (noise on the left, picture on the right)", "FVU (held-out samples)"
    )
    for name, values in metrics.items():
        steps = values["timesteps"]
        axes.plot(
            [s["timestep"] for s in steps],
            [s["fvu"] for s in steps],
            marker="o",
            markersize=3.5,
            label=name,
        )
    axes.set_ylim(bottom=0)
    axes.invert_xaxis()
    axes.legend(fontsize=8, frameon=False)
    return _svg(figure)


def _axes(x: str, y: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 2.8), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x, fontsize=8)
    axes.set_ylabel(y, fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Any) -> str:
    sink = io.StringIO()
    figure.savefig(sink, format="svg", metadata={"Date": None})
    return sink.getvalue()[sink.getvalue().index("<svg") :]
