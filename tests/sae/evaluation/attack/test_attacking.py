"""An attack from outside: what is kept, continued and reported; what is refused, in one line."""

import contextlib
import json
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline
from PIL import Image

from featurestore.errors import ModelError, SelectionError, UsageError
from featurestore.prompts import Prompt, PromptColumns, read_prompts, start_picture
from sae.diffusion.pipelines import RunSettings, generate
from sae.evaluation.attack import AttackSettings, attack
from sae.evaluation.attack.attacking import attack_defence, spread
from sae.evaluation.attack.loop import places
from sae.evaluation.attack.report import Attacked, AttackReport
from sae.evaluation.attack.settings import Defended
from sae.evaluation.measures.intervals import wilson
from sae.intervention.settings import Intervention
from tests.builders.judges import Scripted
from tests.builders.pipelines import edited_text_encoder
from tests.builders.selections import make_sae, make_selection, timesteps_of

RUN = RunSettings(n_steps=2, guidance=3.0)
PROMPTS = [Prompt(f"a {o}", seed, {"style": "neon"}, 1) for seed in (0, 1) for o in ("cat", "tree")]


def edit(model, **changes):
    rows = [(step, f, 0.4, 0.0) for step in range(2) for f in range(0, 60, 3)]
    return Intervention(
        make_selection(model, rows, timesteps_of(model, 2), **changes), strength=-3.0
    )


def run(model, out, judge, prompts=PROMPTS, interventions=None, **options):
    settings = AttackSettings(rounds=3, iterations=1, n_tokens=2, **options.pop("attack", {}))
    return attack(
        model, interventions or [edit(model)], prompts=prompts, judge=judge, out=out, settings=settings, run=RUN,
        saes=make_sae(3), progress=False, **options,
    )  # fmt: skip


@pytest.mark.parametrize("method", ["tokens", "embedding", "latents"])
def test_pictures_are_attacked_together_until_each_shows_the_concept(model, tmp_path, method):
    """Target; defended: the first shows it anyway; after a round the second comes back, the third
    after two, the last never."""
    script = Scripted([1, 1, 1, 1], [1, 0, 0, 0], [1, 0, 0], [1, 0], [0])
    report = run(model, tmp_path, script(), attack={"method": method})
    assert [(a.shown_before, a.succeeded, a.rounds) for a in report.pictures] == [
        (True, False, 0), (False, True, 1), (False, True, 2), (False, False, 3),
    ]  # fmt: skip
    assert (report.before.value, report.under_attack.value) == (0.25, 0.75)
    assert (
        report.before.low < 0.25 < report.before.high and report.came_back == report.pictures[1:3]
    )
    n_losses = {"tokens": [1, 2, 3], "embedding": [1, 2, 3], "latents": [2, 3, 4]}[method]
    assert [len(a.losses) for a in report.pictures[1:]] == n_losses
    found = report.pictures[1].found
    assert {"tokens": "text", "embedding": "std_ratio", "latents": "std"}[method] in found
    body = json.loads((tmp_path / method / "attack.json").read_text())
    assert body["by_concept"] == {
        "style=neon": {"pictures": 4, "shown_before": 1, "shown_under_attack": 3}
    }
    page = (tmp_path / method / "report.html").read_text()
    pictures = sorted(path.name for path in (tmp_path / method).glob("*.png"))
    assert len(pictures) == 4 + 4 + 3 and all(name in page for name in pictures)
    assert "back after 2 rounds" in page and "held" in page and "shown without an attack" in page
    came_back = tmp_path / method / "came-back.jsonl"
    if method == "tokens":  # Prompts that can be collected, with the concept as their label.
        back = [(p.prompt, p.labels) for p in read_prompts(came_back, [0])]
        assert back == [(a.found["text"], {"style": "neon"}) for a in report.came_back]
    else:
        assert not came_back.exists()
    calls = script.calls
    assert run(model, tmp_path, script(), attack={"method": method}).pictures == report.pictures
    assert script.calls == calls  # All was read.


def test_an_interrupted_attack_goes_on_where_it_stopped(model, tmp_path):
    seen = []

    def stopped(images):
        if len(seen) == 4:
            raise KeyboardInterrupt
        seen.append(len(images))
        return {"style": np.tile([float(len(seen) == 1), 1.0 - (len(seen) == 1)], (len(images), 1))}

    whole = run(model, tmp_path / "whole", Scripted([1], [0])())
    with pytest.raises(KeyboardInterrupt):
        run(model, tmp_path / "cut", Scripted([1], [0])()._replace(probabilities=stopped))
    states = list((tmp_path / "cut/tokens").glob("*.safetensors"))
    assert len(states) == 4 and seen == [4] * 4  # Targets, defended, two of three rounds.
    resumed = Scripted([1], [0])
    assert run(model, tmp_path / "cut", resumed()).pictures == whole.pictures
    assert resumed.calls == 3  # Targets and defended once more, and the last round.
    assert not list((tmp_path / "cut/tokens").glob("*.safetensors"))


def test_prompts_that_brought_it_back_go_where_another_attack_brings_nothing_back(model, tmp_path):
    came_back = tmp_path / "tokens/came-back.jsonl"
    run(model, tmp_path, Scripted([1], [0], [1])(), PROMPTS[:1])
    assert came_back.is_file()
    run(model, tmp_path, Scripted([1], [0])(), PROMPTS[:1], attack={"seed": 1})
    assert not came_back.exists()


def test_labels_that_the_judge_does_not_know_do_not_matter_beside_the_attacked_one(model, tmp_path):
    """A classifier of styles judges prompts that name objects, too."""
    prompts = [replace(PROMPTS[0], labels={"style": "neon", "object": "cat"})]
    assert run(model, tmp_path, Scripted([1], [0], [1])(), prompts).under_attack.value == 1


def test_an_edited_text_encoder_does_not_meet_old_outcomes(model, tmp_path):
    """Faults, line C: what an outcome depends on is part of its key."""
    script = Scripted([1], [0], [1])
    run(model, tmp_path, script(), PROMPTS[:1])
    calls = script.calls
    run(model, tmp_path, script(), PROMPTS[:1])
    assert script.calls == calls
    run(edited_text_encoder(model), tmp_path, Scripted([1], [0], [1])(), PROMPTS[:1])
    assert len(list((tmp_path / "tokens").glob("neon-*.json"))) == 2


def test_seeds_of_attacks_differ_and_one_repeats(model, tmp_path):
    losses = [
        run(model, tmp_path / str(i), Scripted([1], [0])(), PROMPTS[:1], attack={"seed": seed})
        .pictures[0]
        .losses
        for i, seed in enumerate((0, 0, 1))
    ]
    assert losses[0] == losses[1] != losses[2]


def test_what_cannot_be_attacked_is_said_in_one_line(model, tmp_path):
    unknown = Scripted([1])()._replace(labels={"style": ("sketch", "none")})
    cases = [
        (unknown, {}, UsageError, "^judge scripted cannot answer style=neon: it knows sketch, none.$"),
        (Scripted([0])(), {}, UsageError,
         "^nothing to bring back: scripted sees style=neon in none of 4 pictures that are drawn without a defence."),
        (Scripted([1])(), {"interventions": [edit(model, model_hash="0" * 64)]}, SelectionError, "made for the weights of"),
        (Scripted([1])(), {"interventions": [edit(model, concept="sketch")]}, UsageError,
         "^no prompt asks for style=sketch: give prompts with this label.$"),
        (Scripted([1])(), {"mode": "saeuron"}, UsageError, "mode saeuron counts its calls and has no timestep to attack"),
    ]  # fmt: skip
    for judge, options, error, message in cases:
        with pytest.raises(error, match=message) as raised:
            run(model, tmp_path, judge, **options)
        assert "\n" not in str(raised.value)
    own = [replace(PROMPTS[0], guidance=5.0)]
    with pytest.raises(
        UsageError, match=r"^prompt 'a cat' has a guidance scale of its own, 5, and"
    ):
        run(model, tmp_path, Scripted([1])(), own)
    with pytest.raises(UsageError, match=r"^nothing to attack: no selection is ablated.$"):
        attack(model, [], prompts=PROMPTS, judge=Scripted([1])(), out=tmp_path)
    for wrong, message in (({"method": "magic"}, "attack 'magic': expected one of tokens, words, embedding, latents"),
                           ({"learning_rate": math.nan}, "learning_rate = nan, expected more than 0"),
                           ({"rounds": 0}, "attack tokens: rounds = 0, expected more than 0")):  # fmt: skip
        with pytest.raises(UsageError, match=message):
            AttackSettings(**wrong)


def started(tmp_path, *kinds):
    """Prompts that start from pictures of their own."""
    paths = {}
    for number, kind in enumerate(kinds):
        Image.new("RGB", (64, 64), (90, 60 + 90 * number, 30)).save(tmp_path / f"{kind}.png")
        paths[kind] = start_picture(tmp_path / f"{kind}.png", "test")
    return [replace(prompt, starts=paths) for prompt in PROMPTS]


def test_a_pipeline_that_is_given_more_than_text_is_not_attacked(model, tmp_path):
    pipe = StableDiffusionInpaintPipeline(**model.pipe.components, requires_safety_checker=False)
    prompts = started(tmp_path, "image", "mask")
    with pytest.raises(
        ModelError, match=r"^StableDiffusionInpaintPipeline starts from a picture: "
    ):
        run(replace(model, pipe=pipe), tmp_path, Scripted([1])(), prompts=prompts)


@pytest.mark.parametrize("method", ["tokens", "embedding"])
def test_what_noises_a_picture_is_attacked_by_its_words(model, tmp_path, method):
    """Issue 19, item 3."""
    pipe = StableDiffusionImg2ImgPipeline(**model.pipe.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    other, script = replace(model, pipe=pipe), Scripted([1, 1, 1, 1], [1, 0, 0, 0], [1, 0, 0], [1, 0], [0])  # fmt: skip
    found = run(
        other, tmp_path, script(), prompts=started(tmp_path, "image"), attack={"method": method}
    ).pictures  # fmt: skip
    assert [one.rounds for one in found] == [0, 1, 2, 3]
    came_back = tmp_path / method / "came-back.jsonl"
    if method == "tokens":  # Prompts that can be collected, each from its picture.
        columns = PromptColumns(starts={"image": "image"})
        back = read_prompts(came_back, [0], columns)
        assert [(p.prompt, p.labels, p.start_hashes) for p in back] == [
            (one.found["text"], {"style": "neon"}, one.starts) for one in found if one.succeeded
        ]
        assert len(back) == 2 and set(back[0].starts) == {"image"}
    with pytest.raises(ModelError, match=r"the tokens and embeddings before the prompt\.$"):
        run(
            other, tmp_path, Scripted([1])(), prompts=started(tmp_path, "image"), attack={"method": "latents"}
        )  # fmt: skip


def test_pictures_that_do_not_show_the_concept_anyway_do_not_count(model, tmp_path):
    report = run(model, tmp_path, Scripted([1, 0, 1, 0], [0], [1])())
    assert (len(report.pictures), report.not_shown, report.under_attack.value) == (2, 2, 1)


def test_where_a_negative_prompt_is_the_defence_the_target_is_drawn_without_it(model, tmp_path):
    run = replace(RUN, negative_prompt="neon", guidance=9.0)
    defended = Defended(
        model=model, run=run, plain=RUN, attached=contextlib.nullcontext, setting={}, guided=True
    )
    (case,) = spread(PROMPTS, "style", "neon", 1)
    settings = AttackSettings(rounds=1, iterations=1, n_tokens=2)
    attack_defence(
        defended, [case], judge=Scripted([1], [0], [1])(), out=tmp_path, settings=settings,
        progress=False,
    )  # fmt: skip
    for name, how in {"target": RUN, "defended": run}.items():
        (drawn,) = generate(model, how, [case.prompt.prompt], [case.prompt.seed])
        (kept,) = tmp_path.glob(f"tokens/*-{name}.png")
        np.testing.assert_array_equal(np.asarray(Image.open(kept)), np.asarray(drawn))
    places_of = [
        places(tmp_path, replace(defended, plain=plain), Scripted([1])(), settings)(case)
        for plain in (RUN, None)
    ]
    assert places_of[0] != places_of[1]


def test_attacked_are_prompts_that_ask_for_it_spread_over_all():
    prompts = [Prompt(str(i), 0, {"style": "neon" if i % 2 else "sketch"}, 1) for i in range(20)]
    assert [case.prompt.prompt for case in spread(prompts, "style", "neon", 2)] == ["1", "11"]
    assert (
        len(spread(prompts, "style", "neon", None))
        == len(spread(prompts, "style", "neon", 99))
        == 10
    )


@pytest.mark.parametrize(("n", "n_seeds"), [(2, 3), (5, 5), (4, 2)])
def test_attacked_pictures_have_seeds_and_objects_alike(n, n_seeds):
    """Prompts come in rows, each with all seeds: at even distances all had one seed of five."""
    prompts = [
        Prompt(f"{o} in neon", seed, {"style": "neon", "object": o}, 1)
        for o in "abcdefghij"
        for seed in range(n_seeds)
    ]
    taken = [case.prompt for case in spread(prompts, "style", "neon", n)]
    assert len(taken) == n == len({p.labels["object"] for p in taken})
    seeds = Counter(p.seed for p in taken)
    assert len(seeds) == min(n, n_seeds) and max(seeds.values()) - min(seeds.values()) == 0
    assert max(prompts.index(p) for p in taken) > len(prompts) / 3  # not the first ones


def test_rates_are_means_over_concepts_with_wilsons_intervals():
    outcome = {"prompt": "a", "family": "style", "method": "tokens"}
    pictures = [
        Attacked(**outcome, seed=i, concept=c, succeeded=i < 2)
        for c in ("neon", "sketch")
        for i in range(10)
    ]
    rate = AttackReport("tokens", pictures, 0, []).under_attack
    assert rate.value == pytest.approx(0.2)
    assert rate.low <= wilson(0.2, 20).low and rate.high >= wilson(0.2, 20).high
