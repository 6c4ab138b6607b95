"""Draw pictures with concepts removed, judge them, and keep each outcome as a file
(docs/evaluation.md)."""

import functools
import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from featurestore.format import durable
from featurestore.format.canonical import canonical_json, sha256_text
from featurestore.prompts import Prompt
from sae.diffusion.pipelines import Model, RunSettings, describe_run
from sae.evaluation.judge import Judge, named
from sae.evaluation.measures.accuracy import Answer, Targets, Unlearning, asks, unlearning
from sae.evaluation.measures.frechet import frechet_distance
from sae.evaluation.memory import peak_bytes, reset_peak
from sae.evaluation.pictures import check_pictures
from sae.evaluation.removals import Removal
from sae.intervention.generate import generate_images

Features = npt.NDArray[np.float32]
VERSION = 2
"""of what is kept of an outcome; older ones are made anew"""


@dataclass
class Outcome:
    """A removal's pictures as the judge saw them."""

    targets: dict[str, list[str]]
    setting: dict[str, Any]
    judge: str
    answers: list[Answer]
    frechet: float = math.nan
    """between the pictures not asked for a target and the reference's, in the judge's features; NaN
    without a reference"""
    seconds_per_picture: float | None = None
    """None: the pictures were not made here"""
    peak_bytes: int | None = None
    """of the device's memory on CUDA, else of the process, while the pictures were made"""
    stored_bytes: int | None = None
    """of what has to be kept beside the model"""
    scores: Unlearning = field(init=False)

    def __post_init__(self) -> None:
        self.scores = unlearning(self.answers, self.targets)


class Reference(NamedTuple):
    """What retained pictures are compared with."""

    features: Features
    """``[n, d]``"""
    keys: list[tuple[str | int | float, ...]] | None = None
    """prompt and seed of each row, of the untouched model's pictures; None: of real pictures"""


def judged(
    folder: Path,
    removal: Removal,
    prompts: Sequence[Prompt],
    judge: Judge,
    *,
    identity: Mapping[str, Any],
    reference: Reference | None,
) -> Outcome:
    """Draw and judge a removal's pictures, or read the outcome of the same from ``folder``.

    ``identity`` is what else the outcome depends on: the run.

    Raises:
        ModelError: a picture is black, not finite or flagged; nothing is kept.
    """
    about, key = depends_on(removal, prompts, judge, identity=identity, reference=reference)
    path = folder / f"{_name(removal)}-{key}.json"
    if path.is_file():
        return _from_json(json.loads(path.read_text(encoding="utf-8")))
    outcome = made(removal, prompts, judge, reference)
    durable.write_bytes(
        path, (json.dumps(_to_json(outcome, about), ensure_ascii=False) + "\n").encode()
    )
    return outcome


def depends_on(
    removal: Removal,
    prompts: Sequence[Prompt],
    judge: Judge,
    *,
    identity: Mapping[str, Any],
    reference: Reference | None,
) -> tuple[dict[str, Any], str]:
    """Return what an outcome depends on beside its prompts, as JSON, and a key of all of it.

    Of the untouched model's pictures as a reference nothing more has to be said: they follow from
    the rest, up to a machine's rounding.
    """
    about: dict[str, Any] = {
        "targets": removal.targets,
        "setting": removal.setting,
        "judge": judge.name,
        **identity,
        "version": VERSION,
        "reference": None if reference is None else "untouched",
    }
    if reference is not None and reference.keys is None:
        about["reference"] = hashlib.sha256(reference.features.tobytes()).hexdigest()[:16]
    asked = [[*p.identity, named(p.labels)] for p in prompts]
    return about, sha256_text(canonical_json(json.loads(json.dumps([about, asked]))))[:16]


def made(
    removal: Removal, prompts: Sequence[Prompt], judge: Judge, reference: Reference | None
) -> Outcome:
    """Draw and judge a removal's pictures.

    Raises:
        ModelError: a picture is black, not finite or flagged.
    """
    reset_peak()
    began = time.perf_counter()
    images = list(removal.images(prompts))
    seconds = time.perf_counter() - began
    check_pictures(images, [f"{p.prompt!r}, seed {p.seed}" for p in prompts])
    answers = judge.answers(prompts, images)
    distance = math.nan
    if reference is not None:
        distance = _distance(judge, prompts, images, targets=removal.targets, reference=reference)
    return Outcome(
        removal.targets,
        removal.setting,
        judge.name,
        answers,
        frechet=distance,
        seconds_per_picture=seconds / max(1, len(images)),
        peak_bytes=peak_bytes(),
        stored_bytes=removal.stored_bytes,
    )


def untouched(
    folder: Path,
    model: Model,
    run: RunSettings,
    *,
    prompts: Sequence[Prompt],
    judge: Judge,
    batch_size: int,
) -> tuple[Outcome, Reference]:
    """Draw and judge the untouched model's pictures, and keep their features as a reference, in
    ``folder``; or read what is there."""
    images = functools.partial(
        generate_images, model, run=run, batch_size=batch_size, progress=None
    )
    kept: list[Any] = []

    def remember(wanted: Sequence[Prompt]) -> list[Any]:
        kept[:] = images(wanted)
        return kept

    identity = {"run": describe_run(model, run)}
    nothing = Removal({}, {"method": "none"}, remember)
    outcome = judged(folder, nothing, prompts, judge, identity=identity, reference=None)
    about = canonical_json([judge.name, identity, [list(p.identity) for p in prompts]])
    path = folder / f"features-{sha256_text(about)[:16]}.npy"
    if kept or not path.is_file():
        features = judge.features(kept or remember(prompts))
        durable.write_file(path, lambda file: np.save(file, features))
    return outcome, Reference(np.load(path), [p.identity for p in prompts])


def per_target(outcome: Outcome) -> dict[str, float]:
    """Return UA of each target by itself: ``family=concept`` → UA."""
    return {
        f"{family}={concept}": unlearning(outcome.answers, {family: [concept]}).ua
        for family, concepts in outcome.targets.items()
        for concept in concepts
    }


def _distance(
    judge: Judge,
    prompts: Sequence[Prompt],
    images: Sequence[Any],
    *,
    targets: Targets,
    reference: Reference,
) -> float:
    """Return the distance of the pictures not asked for a target; NaN of fewer than two."""
    rows = [i for i, p in enumerate(prompts) if not asks(p.labels, targets)]
    if len(rows) < 2:
        return math.nan
    compared = reference.features
    if reference.keys is not None:
        place = {key: i for i, key in enumerate(reference.keys)}
        compared = compared[[place[prompts[i].identity] for i in rows]]
    return frechet_distance(judge.features([images[i] for i in rows]), compared)


def _name(removal: Removal) -> str:
    """Return what an outcome's file begins with, for people."""
    concepts = [c for concepts in removal.targets.values() for c in concepts]
    return "+".join(concepts)[:40].replace("/", "-").replace(" ", "-") or "untouched"


def _to_json(outcome: Outcome, about: Mapping[str, Any]) -> dict[str, Any]:
    rest = {
        name: getattr(outcome, name)
        for name in ("seconds_per_picture", "peak_bytes", "stored_bytes")
    }
    distance = outcome.frechet if math.isfinite(outcome.frechet) else None
    return {
        **about,
        **rest,
        "frechet": distance,
        "answers": [[a.seed, a.asked, a.seen, a.p] for a in outcome.answers],
    }


def _from_json(body: dict[str, Any]) -> Outcome:
    answers = [Answer(asked, seen, seed, p) for seed, asked, seen, p in body["answers"]]
    distance = float("nan") if body["frechet"] is None else body["frechet"]
    names = ("targets", "setting", "judge", "seconds_per_picture", "peak_bytes", "stored_bytes")
    return Outcome(answers=answers, frechet=distance, **{name: body[name] for name in names})
