"""Hardening with a judge and a teacher that are told what to say: what is attacked, learnt, added,
and why it ends."""

import json
from dataclasses import replace

import numpy as np
import pytest
from diffusers import StableDiffusionImg2ImgPipeline
from PIL import Image

from featurestore.errors import UsageError
from featurestore.prompts import Prompt, start_picture
from featurestore.saes import sae_files_hash
from sae.checkpoint import save_sae
from sae.diffusion.pipelines import RunSettings
from sae.evaluation.attack.hardening import (
    ENDED,
    HOLDS,
    KNOWN,
    SPENT,
    UNTYPED,
    HardenSettings,
    harden,
)
from sae.evaluation.attack.settings import AttackSettings
from sae.evaluation.judge import Judge
from sae.evaluation.measures.accuracy import grouped
from sae.intervention.settings import Intervention
from tests.builders.selections import make_sae, make_selection, timesteps_of

RUN = RunSettings(n_steps=2, guidance=3.0)
PROMPTS = [Prompt(f"a {s}", seed, {"style": s}, 1) for seed in (0, 1) for s in ("neon", "sketch")]
SETTINGS = HardenSettings(
    attack=AttackSettings(rounds=1, iterations=1, n_tokens=2),
    rounds=3,
    budget=0.3,
    weakenings=1,
    n_others=2,
)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    directory = tmp_path_factory.mktemp("harden") / "s"
    save_sae(make_sae(3), directory)
    return directory


def selection(model, files, features):
    rows = [(step, f, 0.4, 0.0) for step in range(2) for f in features]
    return make_selection(model, rows, timesteps_of(model, 2), sae_hash=sae_files_hash(files))


def judge(*script):
    """Each call's answers: for each picture whether it is neon; the last is repeated."""
    calls = []

    def probabilities(images):
        shown = np.broadcast_to(
            np.array(script[min(len(calls), len(script) - 1)], float), len(images)
        )
        calls.append(len(images))
        return {"style": np.stack([shown, 1 - shown], 1)}

    return Judge(
        "scripted",
        {"style": ("neon", "sketch")},
        probabilities,
        lambda images: np.zeros((len(images), 2)),
    )


TARGETS, HELD = [1, 1], [0, 0]
"""what the untouched model shows; what the defence leaves of it"""
GOOD = [0, 0, 0, 0]
"""of two pictures of neon and two of sketch: neon unlearned, sketch kept"""
LOST = [0, 1, 0, 0]
"""one of the pictures of sketch became neon: IRA 1/2"""


def run(model, files, out, judging, learn, settings=SETTINGS, said=None, prompts=PROMPTS):
    own = Intervention(selection(model, files, [0, 3]), strength=-3.0)
    return harden(
        model, [own], prompts=prompts, judge=judging, learn=learn, out=out, settings=settings, run=RUN, saes=[files],
        progress=False, say=(said if said is not None else []).append,
    )  # fmt: skip


def never(*args):
    raise AssertionError("nothing is to be learnt")


def test_what_holds_is_left_as_it_is(model, files, tmp_path):
    found = run(model, files, tmp_path, judge(TARGETS, HELD, [0, 0], GOOD), never)
    assert (found.reason, len(found.interventions), len(found.rounds)) == (HOLDS, 1, 1)
    assert found.rounds[0]["came_back"] == 0 and found.rounds[0]["ira"] == 1
    assert json.loads((tmp_path / "hardened.json").read_text()) == {
        "reason": HOLDS,
        "rounds": found.rounds,
    }


def test_features_of_what_came_back_are_taken_too_until_attacks_fail(model, files, tmp_path):
    asked, said = [], []

    def learn(family, concept, prompts, edits):
        asked.append((family, concept, prompts, len(edits)))
        return replace(selection(model, files, [3, 5, 6]), concept="neon (attacked)")

    script = [TARGETS, HELD, [1, 0], GOOD, [1], GOOD, TARGETS, HELD, [0, 0], GOOD]
    found = run(model, files, tmp_path, judge(*script), learn, said=said)
    assert found.reason == HOLDS and len(found.rounds) == 2
    ((family, concept, prompts, n_edits),) = asked
    assert (family, concept, n_edits, len(prompts)) == ("style", "neon", 1, 1)
    assert (
        prompts[0].prompt.endswith("a neon") and prompts[0].prompt != "a neon"
    )  # With the tokens found before it.
    added = found.interventions[1]
    assert (added.strength, added.selection.concept) == (-3.0, "neon")
    assert set(added.selection.rows["feature"].to_pylist()) == {5, 6}  # 3 is taken out already.
    assert found.rounds[0]["added"][0]["features"] == 2 and found.rounds[1]["came_back"] == 0
    assert (
        "round 1: 1 of 2 came back; UA 100.0, IRA 100.0" in said
        and "round 1: neon: 2 features at -3 taken, too" in said
    )
    assert grouped((e.selection.family, e.selection.concept) for e in found.interventions) == {
        "style": ["neon"]
    }


def test_what_costs_too_much_is_taken_more_weakly_or_not_at_all(model, files, tmp_path):
    learn = lambda *args: selection(model, files, [5])  # noqa: E731
    script = [TARGETS, HELD, [1, 1], GOOD, [1, 1], LOST, GOOD, TARGETS, HELD, [0, 0]]
    found = run(model, files, tmp_path / "weaker", judge(*script), learn)
    assert found.reason == HOLDS and found.interventions[1].strength == -1.5
    script = [TARGETS, HELD, [1, 1], GOOD, [1, 1], LOST]
    found = run(model, files, tmp_path / "spent", judge(*script), learn)
    assert found.reason == SPENT and len(found.interventions) == 1


def test_it_ends_where_nothing_can_be_learnt(model, files, tmp_path):
    untyped = judge(TARGETS, HELD, [1, 1], GOOD, [0, 0])
    assert run(model, files, tmp_path / "text", untyped, never).reason == UNTYPED
    known = judge(TARGETS, HELD, [1, 1], GOOD, [1, 1])
    assert (
        run(model, files, tmp_path / "known", known, lambda *a: selection(model, files, [3])).reason
        == KNOWN
    )
    features = iter(range(10, 20))
    later = [TARGETS, HELD, [1, 1], [1, 1], GOOD]  # What was accepted has been judged already.
    script = [TARGETS, HELD, [1, 1], GOOD, [1, 1], GOOD, *later, *later]
    found = run(
        model,
        files,
        tmp_path / "ended",
        judge(*script),
        lambda *a: selection(model, files, [next(features)]),
    )
    assert found.reason == ENDED and len(found.interventions) == 4


def test_prompts_with_pictures_of_their_own_are_hardened_with_these(model, files, tmp_path):
    """Issue 19, item 3: two prompts of one text and seed, of which one picture each comes back."""
    pipe = StableDiffusionImg2ImgPipeline(**model.pipe.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    prompts = []
    for number, style in enumerate(("neon", "neon", "sketch", "sketch")):
        Image.new("RGB", (64, 64), (40, 60 * number, 30)).save(tmp_path / f"{number}.png")
        starts = {"image": start_picture(tmp_path / f"{number}.png", "test")}
        prompts.append(Prompt(f"a {style}", 0, {"style": style}, 1, starts=starts))
    asked, drawn = [], []

    def learn(family, concept, found, edits):
        asked.extend(found)
        return selection(model, files, [5])

    watched = pipe.prepare_latents
    pipe.prepare_latents = lambda image, *a, **k: drawn.append(image.clone()) or watched(image, *a, **k)  # fmt: skip
    script = [TARGETS, HELD, [0, 1], GOOD, [1], GOOD, TARGETS, HELD, [0, 0], GOOD]
    found = run(replace(model, pipe=pipe), files, tmp_path / "h", judge(*script), learn, prompts=prompts)  # fmt: skip
    assert found.reason == HOLDS
    (one,) = asked
    assert one.starts == prompts[1].starts and one.prompt.endswith("a neon")
    assert len({image.mean().item() for images in drawn for image in images}) == 4


def test_wrong_settings_are_one_line():
    cases = [
        (
            {"attack": AttackSettings(method="latents")},
            "hardening learns from prompts that an attack finds: attack 'latents', expected words",
        ),
        ({"rounds": 0}, "0 rounds, budget 0.02: expected at least 1 round"),
    ]
    for options, message in cases:
        with pytest.raises(UsageError, match=message):
            HardenSettings(**options)
