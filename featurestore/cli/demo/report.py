"""``report.html``: one page that needs no network."""

import io
from importlib.resources import files
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from jinja2 import Environment
from PIL import Image

from featurestore.cli.demo import figures
from featurestore.cli.demo.outcome import Demo, Result, rows_of_table, store_bytes
from featurestore.cli.terminal.text import human_bytes
from featurestore.format import durable
from featurestore.saes import load_config, load_metrics
from featurestore.selection import Selection
from featurestore.store import Store

_N_MAPS = 10


def write_report(demo: Demo) -> None:
    """Write ``report.html`` into the demo's directory."""
    template = Environment(autoescape=True).from_string(
        files("featurestore.cli.demo").joinpath("report.html.jinja").read_text(encoding="utf-8")
    )
    metrics = {
        result.study.sae: load_metrics(demo.store, result.study.sae) or {}
        for result in demo.results
    }
    page = template.render(
        table=rows_of_table(demo),
        studies=[_study(demo, result) for result in demo.results],
        fvu=figures.fvu_curves(metrics),
        metrics=metrics,
        seconds=demo.seconds,
        commands=demo.commands,
        size=human_bytes(store_bytes(demo.store)),
        tables=[(t, sum(r.rows for r in demo.store.records(t))) for t in demo.store.tables()],
        n_judged=len(demo.prompts),
    )
    durable.write_bytes(demo.out / "report.html", page.encode())


def _study(demo: Demo, result: Result) -> dict[str, Any]:
    study = result.study
    styles = list(dict.fromkeys(p.labels["style"] for p in demo.prompts))
    objects = list(dict.fromkeys(p.labels["object"] for p in demo.prompts))
    return {
        "study": study,
        "styles": styles,
        "objects": objects,
        "before": figures.png_uri(_by_label(demo, demo.before)),
        "after": figures.png_uri(_by_label(demo, result.images)),
        "focus": figures.png_uri(figures.grid(_focus(demo, result))),
        "importance": figures.importance_curves(result.selection),
        "n_features": len(result.selection.features()),
        "maps": figures.png_uri(figures.grid(feature_maps(demo.store, result.selection))),
    }


def _by_label(demo: Demo, images: list[Image.Image]) -> Image.Image:
    """Styles down, objects across."""
    rows: dict[str | None, list[Image.Image]] = {}
    for prompt, image in zip(demo.prompts, images, strict=True):
        rows.setdefault(prompt.labels["style"], []).append(image)
    return figures.grid(list(rows.values()))


def _focus(demo: Demo, result: Result) -> list[list[Image.Image]]:
    """The pictures asked for the concept: as they were, and without it."""
    wanted = [
        i
        for i, p in enumerate(demo.prompts)
        if p.labels[result.study.family] == result.study.concept
    ]
    return [[demo.before[i] for i in wanted], [result.images[i] for i in wanted]]


def feature_maps(store: Store, selection: Selection) -> list[list[Image.Image]]:
    """Return collected pictures, of the concept and then of others, and below each where the
    selected features fire.

    A map is the sum over the steps, position by position, of the activations of the features
    selected at that step.
    """
    columns = ["sample_id", selection.family, "image"]
    samples = store.arrow("samples", columns).to_pylist()
    inside = [s for s in samples if s[selection.family] == selection.concept][: _N_MAPS // 2]
    outside = [s for s in samples if s[selection.family] not in (None, selection.concept)]
    chosen = (
        inside
        + outside[:: max(1, len(outside) // (_N_MAPS - len(inside)))][: _N_MAPS - len(inside)]
    )
    heats = _heat(store, selection, [s["sample_id"] for s in chosen])
    largest = max((float(heat.max()) for heat in heats.values()), default=0.0)
    images = [Image.open(io.BytesIO(s["image"]["bytes"])).convert("RGB") for s in chosen]
    maps = [
        figures.overlay(im, heats[s["sample_id"]], largest)
        for im, s in zip(images, chosen, strict=True)
    ]
    return [images, maps]


def _heat(
    store: Store, selection: Selection, sample_ids: list[int]
) -> dict[int, npt.NDArray[np.float64]]:
    config = load_config(store, selection.sae)
    codes = store.arrow(f"codes/{selection.sae}")
    mine = pc.is_in(codes["sample_id"], value_set=pa.array(sample_ids, pa.int64()))
    codes = codes.filter(pc.and_(mine, pc.equal(codes["branch"], selection.branch)))
    heats = {i: np.zeros(config["height"] * config["width"]) for i in sample_ids}
    for row in codes.to_pylist():
        wanted = set(selection.at(row["timestep"]).features.tolist())
        for position, (features, values) in enumerate(
            zip(row["features"], row["values"], strict=True)
        ):
            heats[row["sample_id"]][position] += sum(
                v for f, v in zip(features, values, strict=True) if f in wanted
            )
    return {i: heat.reshape(config["height"], config["width"]) for i, heat in heats.items()}
