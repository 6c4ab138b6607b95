"""The ways in: a folder of pictures, and requests made of selections."""

import json
import math

import numpy as np
import pytest
from PIL import Image

import sae.evaluation
from featurestore.errors import ModelError, UsageError
from sae.evaluation import score_folder
from sae.evaluation.judge import Judge
from sae.evaluation.removals import requests
from sae.evaluation.report import summary
from tests.builders.selections import make_selection


def brightness(images):
    return np.stack([np.asarray(image, np.float32).mean((0, 1)) for image in images])


def bright(images):
    light = np.array([row.mean() > 100 for row in brightness(images)], float)
    return {"style": np.stack([light, 1 - light], 1)}


JUDGE = Judge("brightness", {"style": ("light", "dark")}, bright, brightness)


@pytest.fixture
def folder(tmp_path):
    """Four pictures: two asked to be light, of which one is; two asked to be dark, which are."""
    lines = []
    for i, (asked, value) in enumerate([("light", 200), ("light", 20), ("dark", 20), ("dark", 30)]):
        Image.new("RGB", (4, 4), (value,) * 3).save(tmp_path / f"{i}.png")
        lines.append({"file": f"{i}.png", "seed": i, "style": asked})
    (tmp_path / "generated.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def test_the_public_names():
    assert sae.evaluation.__all__ == ["evaluate", "score_folder"]
    assert all(callable(getattr(sae.evaluation, name)) for name in sae.evaluation.__all__)


def test_a_folder_is_scored_without_making_up_how_long_it_took(folder):
    outcome = score_folder(folder, judge=JUDGE, targets={"style": ["light"]})
    assert outcome.scores[:2] == (0.5, 1) and math.isnan(outcome.frechet)
    figures = summary([outcome])
    assert [
        figures[key] for key in ("seconds_per_picture", "peak_bytes", "stored_bytes", "frechet")
    ] == [None] * 4
    assert figures["pictures"] == 4
    same = score_folder(folder, judge=JUDGE, targets={"style": ["light"]}, reference=folder)
    assert same.frechet > 0  # The reference also has the pictures asked to be light.
    with pytest.raises(
        UsageError, match=r"^--reference: 0 of the 4 pictures in .* ask for nothing"
    ):
        score_folder(folder, judge=JUDGE, targets={"style": ["light", "dark"]}, reference=folder)


def test_a_black_picture_is_refused(folder):
    Image.new("RGB", (4, 4)).save(folder / "1.png")
    with pytest.raises(ModelError, match=r"^1 of 4 pictures are no results: 1.png \(black\)"):
        score_folder(folder, judge=JUDGE, targets={"style": ["light"]})


def test_a_target_that_the_judge_does_not_know_is_refused(folder):
    with pytest.raises(
        UsageError, match="judge brightness cannot answer style=neon: it knows light, dark"
    ):
        score_folder(folder, judge=JUDGE, targets={"style": ["neon"]})


def test_requests_are_every_selection_of_a_concept_with_every_strength(model):
    neon, other, cat = (
        make_selection(model, [], [1.0], family=family, concept=concept)
        for family, concept in (("style", "neon"), ("style", "neon"), ("object", "cat"))
    )
    found = requests([[neon], [cat], [other, neon]], strengths=(-1.0, -2.0), kind="zero")
    assert [(r.family, r.concept) for r in found] == [("style", "neon"), ("object", "cat")]
    tried = [[(one.selection, one.strength) for one in group] for group in found[0].candidates]
    assert tried == [
        [(neon, -1.0)], [(neon, -2.0)],
        [(other, -1.0), (neon, -1.0)], [(other, -1.0), (neon, -2.0)],
        [(other, -2.0), (neon, -1.0)], [(other, -2.0), (neon, -2.0)],
    ]  # fmt: skip
    assert {one.kind for group in found[1].candidates for one in group} == {"zero"}
    (three,) = requests([[neon, other, neon]], strengths=(-1.0, -2.0), thresholds=(0.0, 1.0))
    assert [[(one.strength, one.threshold) for one in group] for group in three.candidates] == [
        3 * [(strength, threshold)] for strength in (-1.0, -2.0) for threshold in (0.0, 1.0)
    ]  # not each beside each: that would be sixteen
