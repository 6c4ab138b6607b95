"""Pictures of what questions answer: a concept, a feature, a family or an SAE in one figure
each."""

import io
import warnings
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from featurestore.errors import QueryError, UsageError
from featurestore.format import durable
from featurestore.format.footers import read_schema, read_table
from featurestore.saes import load_config, load_metrics
from featurestore.store import Store
from queries import drawings
from queries.answers import ask
from queries.engine import Engine
from queries.questions import Value

FORMATS = ("png", "svg")


def plot(
    store: Store, sae: str, family: str, concept: str, *, path: Path, kind: str = "lines",
    top: int = 10, branch: str = "cond", engine: Engine | None = None,
) -> int:  # fmt: skip
    """Draw the ``top`` features of a concept by mean score, as ``lines`` or a ``heatmap``, or the
    best of each step with 95 % intervals (``interval``); return how many features there are.

    The same scores give the same bytes with the same matplotlib. ``engine``:
    :class:`queries.spark.Spark` instead of DuckDB.

    Raises:
        UsageError: the suffix is neither .png nor .svg.
        QueryError: no encoded sample carries the concept, or no feature has a positive mean score.
    """
    form = _form_of(path)
    asked: dict[str, Value] = {"sae": sae, "family": family, "branch": branch, "concept": concept}
    question = "bootstrap" if kind == "interval" else "concept_scores"
    rows = ask(store, question, asked | {"top": top}, engine=engine)
    features = rows["feature"].unique().to_pylist()
    if kind != "interval":
        features, timesteps, scores = drawings.grid(rows)
    if not features:
        raise QueryError(
            f"no feature of SAE {sae!r} has a positive mean score for {family}={concept}: nothing "
            f"to draw."
        )
    title = f"{family} = {concept}   (SAE {sae}, {branch})"
    if kind == "heatmap":
        figure = drawings.heatmap(title, features, timesteps, scores)
    elif kind == "interval":
        figure = drawings.intervals(title, rows)
    else:
        figure = drawings.lines(title, features, timesteps, scores)
    _write(figure, path, form)
    return len(features)


def plot_overlap(
    store: Store, sae: str, family: str, path: Path, *, top: int = 10, branch: str = "cond",
    engine: Engine | None = None,
) -> int:  # fmt: skip
    """Draw the share of features that the selections of every two concepts of a family have in
    common (Jaccard); return how many concepts there are.

    Raises:
        UsageError: the suffix is neither .png nor .svg.
        QueryError: the samples have no such family, or none of them is encoded.
    """
    form = _form_of(path)
    asked: dict[str, Value] = {"sae": sae, "family": family, "branch": branch, "top": top}
    rows = ask(store, "overlap_matrix", asked, engine=engine)
    title = f"features that {family}s share   (SAE {sae}, {branch}, best {top} per step)"
    figure, n_concepts = drawings.matrix(title, rows)
    _write(figure, path, form)
    return n_concepts


def plot_profile(
    store: Store, sae: str, feature: int, path: Path, *, branch: str = "cond",
    engine: Engine | None = None,
) -> int:  # fmt: skip
    """Draw how often and how strongly a feature fires at each timestep; return the number of
    timesteps.

    Raises:
        UsageError: the suffix is neither .png nor .svg.
        QueryError: the SAE has no such feature.
    """
    form = _form_of(path)
    rows = ask(
        store,
        "timestep_profile",
        {"sae": sae, "feature": feature, "branch": branch},
        engine=engine,
    )
    _write(drawings.profile(f"feature {feature}   (SAE {sae}, {branch})", rows), path, form)
    return len(rows)


def plot_map(
    store: Store, sae: str, feature: int, path: Path, *, top: int = 4, branch: str = "cond",
    engine: Engine | None = None,
) -> int:  # fmt: skip
    """Draw the pictures that have most of a feature, and over them where it fires at six steps;
    return how many pictures there are.

    Raises:
        UsageError: the suffix is neither .png nor .svg.
        QueryError: the feature fires in no sample, the SAE keeps no map, or the store has no
            pictures.
    """
    form = _form_of(path)
    config = load_config(store, sae)
    size = config["height"], config["width"]
    asked: dict[str, Value] = {"sae": sae, "feature": feature, "branch": branch}
    samples = ask(store, "top_samples", asked | {"top": top}, engine=engine).to_pylist()
    if not samples:
        raise QueryError(f"feature {feature} of SAE {sae!r} fires in no sample: nothing to draw.")
    pictures = _pictures(store, [row["sample_id"] for row in samples])
    maps = [
        ask(store, "feature_map", asked | {"sample": row["sample_id"]}, engine=engine)
        for row in samples
    ]
    timesteps = _timesteps(store, sae, branch, engine)
    title = f"feature {feature}   (SAE {sae}, {branch})"
    _write(drawings.maps(title, pictures, maps, timesteps, size=size), path, form)
    return len(samples)


def plot_fvu(store: Store, sae: str, path: Path) -> int:
    """Draw the FVU of an SAE at each timestep of its held-out samples; return the number of
    timesteps.

    Raises:
        UsageError: the suffix is neither .png nor .svg.
        QueryError: the SAE was never measured: it came from elsewhere.
    """
    form = _form_of(path)
    found = (load_metrics(store, sae) or {}).get("timesteps")
    if not isinstance(found, list) or not found:
        raise QueryError(f"SAE {sae!r} was not measured by training: it has no FVU by timestep.")
    _write(drawings.fvu(f"SAE {sae}", found), path, form)
    return len({row["step"] for row in found})


def _timesteps(store: Store, sae: str, branch: str, engine: Engine | None) -> dict[int, float]:
    rows = ask(store, "sae_steps", {"sae": sae, "branch": branch}, engine=engine)
    return dict(zip(rows["step"].to_pylist(), rows["timestep"].to_pylist(), strict=True))


def _pictures(store: Store, samples: list[int]) -> list[np.ndarray]:
    """Return the pictures ``[height, width, 3]`` of samples, in their order."""
    from PIL import Image

    found: dict[int, np.ndarray] = {}
    for record in store.records("samples"):
        wanted = set(samples) & set(record.sample_ids)
        if not wanted:
            continue
        store.check([record])
        (path,) = store.paths(record)
        if "image" not in read_schema(path).names:
            raise QueryError(
                "the samples of this store have no pictures: collect them with --images."
            )
        rows = read_table(path, ["sample_id", "image"]).to_pylist()
        for row in rows:
            if row["sample_id"] in wanted:
                image = Image.open(io.BytesIO(row["image"]["bytes"]))
                found[row["sample_id"]] = np.asarray(image.convert("RGB"))
    return [found[sample] for sample in samples]


def _form_of(path: Path) -> str:
    """Return the format that a path names, after trying its place."""
    form = path.suffix.lower().removeprefix(".")
    if form not in FORMATS:
        raise UsageError(f"{path}: a picture is .png or .svg; the suffix says which.")
    durable.check_file(path)
    return form


def _write(figure: Figure, path: Path, form: str) -> None:
    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "featurestore"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        metadata = {"Date": None} if form == "svg" else {"Software": None}
        figure.savefig(buffer, format=form, dpi=150, metadata=metadata)
    durable.write_bytes(path, buffer.getvalue())
