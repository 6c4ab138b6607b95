"""Features that cost what is kept, on a tiny model and a judge that follows a script."""

import numpy as np
import pytest
import torch

from featurestore.errors import UsageError
from featurestore.prompts import Prompt
from sae.diffusion.pipelines import RunSettings, generate
from sae.evaluation import costs as measuring
from sae.evaluation.costs import costs
from sae.evaluation.judge import Judge
from sae.intervention.ablate import ablate
from sae.intervention.settings import Intervention
from tests.builders.selections import make_sae, make_selection, timesteps_of

RUN = RunSettings(2, 3.0)
PROMPTS = [
    Prompt(f"{o} {s}", seed, {"style": s, "object": o}, 1)
    for seed in (0, 1)
    for s in ("neon", "chalk")
    for o in ("cat", "car")
]


def removal(model, features=(0, 3, 6)):
    timesteps = timesteps_of(model, 2)
    rows = [(step, f, 0.4, 0.0) for step in range(2) for f in features]
    return [Intervention(make_selection(model, rows, timesteps), strength=-3.0)]


def scripted(cats):
    """How surely it sees a cat: the next number for each picture."""

    def probabilities(images):
        shown = [cats.pop(0) for _ in images]
        rows = np.array([[p, 1 - p] for p in shown], np.float32)
        return {"style": np.tile([1.0, 0.0], (len(images), 1)), "object": rows}

    labels = {"style": ("neon", "chalk"), "object": ("cat", "car")}
    return Judge("script", labels, probabilities, lambda images: None)


def test_lost_pictures_are_drawn_again_with_one_feature_spared(model, monkeypatch):
    """Two cats of four are lost, of which one is no cat untouched either; feature 3 gives the
    other back, 6 does not."""
    cat, car = 0.9, 0.1
    answers = [0.2, car, cat, car, 0.3, car, cat, car, 0.8, 0.4, 0.7, 0.25]
    asked = []

    def suspects(family, concept, selections):
        asked.append((family, concept, [s.concept for s in selections]))
        return [("1", 3), ("1", 6), ("1", 0)]

    given = {"prompts": PROMPTS, "judge": scripted(answers), "suspects": suspects, "run": RUN}
    drawn = []

    def remembered(*arguments, **how):
        drawn.append((arguments[1], [e.selection.features() for e in arguments[3]]))
        return original(*arguments, **how)

    original = measuring.generate_images
    monkeypatch.setattr(measuring, "generate_images", remembered)
    found = costs(model, removal(model), **given, saes=make_sae(3), most=2)
    assert answers == [] and asked == [("object", "cat", ["neon"])]
    assert [tuple(one[:6]) for one in found] == [
        ("object", "cat", "s", 3, 1, 1),
        ("object", "cat", "s", 6, 1, 0),
    ]
    assert found[0].p_removed == pytest.approx(0.2) and found[0].p_spared == pytest.approx(0.7)
    assert [features for _, features in drawn] == [[[0, 3, 6]], [], [[0, 6]], [[0, 3]]]
    assert [p.seed for p in drawn[2][0]] == [0]


def test_a_spared_feature_is_left_alone(model):
    """What is drawn with feature 3 spared is what a selection without it draws."""
    (edit,) = removal(model)
    pictures = []
    for one in (measuring._without(edit, "1", 3), removal(model, (0, 6))[0], edit):
        with ablate(model.pipe, one, saes=make_sae(3)):
            pictures += generate(model, RUN, ["cat neon"], [0], output_type="latent")
    assert torch.equal(pictures[0], pictures[1]) and not torch.equal(pictures[0], pictures[2])
    assert measuring._without(edit, "another", 3) is edit


def test_nothing_to_find_is_said_in_one_line(model):
    given = {"judge": scripted([]), "suspects": lambda *about: [], "run": RUN}
    with pytest.raises(UsageError, match=r"^nothing is removed: no selection is ablated"):
        costs(model, [], prompts=PROMPTS, **given)
    bare = [Prompt("neon", 0, {"style": "neon"}, 1)]
    with pytest.raises(
        UsageError, match=r"^the prompts name concepts of style only, which are rem"
    ):
        costs(model, removal(model), prompts=bare, **given)
    with pytest.raises(
        UsageError, match=r"^judge script cannot answer object=dog: it knows cat, c"
    ):
        costs(
            model,
            removal(model),
            prompts=[Prompt("dog", 0, {"style": "neon", "object": "dog"}, 1)],
            **given,
        )
