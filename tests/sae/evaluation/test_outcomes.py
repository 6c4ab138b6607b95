"""Protocols on a tiny model, judged by a judge that looks at colours: what is removed, searched,
kept and reported."""

import json
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from featurestore.errors import ModelError, PromptsError, UsageError
from featurestore.prompts import Prompt
from featurestore.saes import sae_files_hash
from sae.checkpoint import save_sae
from sae.diffusion.pipelines import RunSettings
from sae.evaluation import evaluate
from sae.evaluation.attack import AttackSettings
from sae.evaluation.judge import Judge, check_labels
from sae.evaluation.measures.accuracy import Answer
from sae.evaluation.measures.frechet import frechet_distance
from sae.evaluation.memory import peak_bytes, reset_peak
from sae.evaluation.outcomes import Outcome, Reference, judged
from sae.evaluation.pictures import read_pictures
from sae.evaluation.protocols import Evaluation, Search, run_protocol
from sae.evaluation.removals import Removal, Request, sequence
from sae.evaluation.report import report
from sae.evaluation.search import thinned
from sae.evaluation.together import Toward
from sae.intervention.settings import Intervention
from tests.builders.pipelines import edited_text_encoder
from tests.builders.selections import make_sae, make_selection, timesteps_of

STYLES, OBJECTS = ("red", "green"), ("cat", "tree")
PROMPTS = [
    Prompt(f"{o} {s}", seed, {"style": s, "object": o}, 1)
    for seed in (0, 1)
    for s in (*STYLES, None)
    for o in OBJECTS
]
RUN = RunSettings(2, 3.0)


def mean_colours(images):
    return np.stack([np.asarray(image, np.float32).mean((0, 1)) for image in images])


def judge(name="colours"):
    """Sees red or green, whichever is more; every object is a cat."""

    def probabilities(images):
        red = np.array([r > g for r, g, _ in mean_colours(images)])
        return {
            "style": np.stack([red, ~red], 1),
            "object": np.tile([0.75, 0.25], (len(images), 1)),
        }

    return Judge(name, {"style": STYLES, "object": OBJECTS}, probabilities, mean_colours)


def paint(prompts, removed=()):
    """Pictures of the colour asked for; a removed style is painted in the other."""
    colours = {"red": (200, 10, 0), "green": (10, 200, 0), None: (0, 0, 99)}
    other = {"red": "green", "green": "red", None: None}
    return [
        Image.fromarray(
            np.full((8, 8, 3), colours[other[s] if s in removed else s], np.uint8)
            + np.uint8(p.seed)
        )
        for p in prompts
        for s in [p.labels["style"]]
    ]


def test_an_outcome_is_scored_kept_and_read_again(tmp_path):
    calls = []

    def images(prompts):
        calls.append(len(prompts))
        return paint(prompts, ["red"])

    removal = Removal({"style": ["red"]}, {"method": "paint"}, images, 123)
    keys = [(p.prompt, p.seed) for p in PROMPTS]
    reference = Reference(judge().features(paint(PROMPTS)), keys)
    first = judged(tmp_path, removal, PROMPTS, judge(), identity={"run": {}}, reference=reference)
    assert first.scores[:3] == pytest.approx((1, 1, 0.5))
    assert first.scores.cra_plain == pytest.approx(0.5)
    assert first.frechet == pytest.approx(0, abs=1e-6)  # what is retained is as it was
    again = judged(tmp_path, removal, PROMPTS, judge(), identity={"run": {}}, reference=reference)
    assert (calls, again) == ([12], first)
    judged(tmp_path, removal, PROMPTS[:6], judge(), identity={"run": {}}, reference=reference)
    judged(tmp_path, removal, PROMPTS, judge("other"), identity={"run": {}}, reference=reference)
    judged(
        tmp_path,
        Removal({"style": ["red"]}, {"method": "other"}, images),
        PROMPTS,
        judge(),
        identity={"run": {}},
        reference=reference,
    )
    judged(
        tmp_path, removal, PROMPTS, judge(), identity={"run": {"n_steps": 3}}, reference=reference
    )
    real = Reference(judge().features(paint(PROMPTS[:4])))
    other = judged(tmp_path, removal, PROMPTS, judge(), identity={"run": {}}, reference=real)
    assert calls == [12, 6, 12, 12, 12, 12]
    assert other.frechet > 1 and other.answers == first.answers


def test_black_and_broken_pictures_are_refused_and_nothing_is_kept(tmp_path):
    """Faults, line C2: a black picture counted as unlearned."""
    spoilt = paint(PROMPTS)
    spoilt[2] = Image.new("RGB", (8, 8))
    removal = Removal({"style": ["red"]}, {"method": "broken"}, lambda prompts: spoilt)
    message = (
        r"^1 of 12 pictures are no results: 'cat green', seed 0 \(black\)\. Judged, they "
        r"would count as unlearned"
    )
    with pytest.raises(ModelError, match=message):
        judged(tmp_path, removal, PROMPTS, judge(), identity={}, reference=None)
    assert not list(tmp_path.iterdir())


def test_the_distance_is_of_the_retained_pictures_to_the_same_ones_untouched(tmp_path):
    before = paint(PROMPTS)
    removal = Removal(
        {"style": ["red"]},
        {"method": "dim"},
        lambda prompts: [i.point(lambda v: v // 2) for i in paint(prompts)],
    )
    reference = Reference(mean_colours(before), [(p.prompt, p.seed) for p in PROMPTS])
    outcome = judged(tmp_path, removal, PROMPTS, judge(), identity={}, reference=reference)
    kept = [i for i, p in enumerate(PROMPTS) if p.labels["style"] != "red"]
    after = [before[i].point(lambda v: v // 2) for i in kept]
    expected = frechet_distance(mean_colours(after), mean_colours([before[i] for i in kept]))
    assert outcome.frechet == pytest.approx(expected) and expected > 100


def test_thinning_keeps_every_prompt_of_a_target_and_spreads_the_others():
    kept = thinned(PROMPTS, {"style": ["red"]}, 4)
    assert [p for p in kept if p.labels["style"] == "red"] == [
        p for p in PROMPTS if p.labels["style"] == "red"
    ]
    others = [p for p in kept if p.labels["style"] != "red"]
    assert len(others) == 4 and {p.seed for p in others} == {0, 1}
    assert [p for p in PROMPTS if p in kept] == kept
    assert thinned(PROMPTS, {"style": ["red"]}, 100) == PROMPTS
    assert len(thinned(PROMPTS, {"style": ["red"]}, 0)) == 4


def test_of_prompts_in_rows_thinning_shows_every_label_and_seed_alike():
    prompts = [
        Prompt(f"{o} {s}", seed, {"object": f"o{o}", "style": f"s{s}"}, 1)
        for o in range(10)
        for s in range(10)
        for seed in range(3)
    ]
    others = [p for p in thinned(prompts, {"style": ["s0"]}, 90) if p.labels["style"] != "s0"]
    shown = [Counter(p.labels[name] for p in others) for name in ("object", "style")]
    assert [sorted(set(one.values())) for one in shown] == [[9], [10]]
    assert set(Counter(p.seed for p in others).values()) == {30}


def test_a_sequence_of_requests_adds_up():
    requests = [{"style": ["red"]}, {"object": ["cat"]}, {"style": ["green"]}]
    assert list(sequence(requests)) == [
        {"style": ["red"]},
        {"style": ["red"], "object": ["cat"]},
        {"style": ["red", "green"], "object": ["cat"]},
    ]


def evaluation(model, tmp_path, **changes):
    directory = tmp_path / "s"
    if not directory.exists():
        save_sae(make_sae(3), directory)
    settings = {
        "folder": tmp_path / "outcomes",
        "model": model,
        "run": RUN,
        "prompts": PROMPTS,
        "judge": judge(),
        "saes": [directory],
    }
    return Evaluation(**(settings | changes))


def request(model, tmp_path, family, concept, strengths=(-3.0,)):
    evaluation(model, tmp_path)
    timesteps = timesteps_of(model, 2)
    rows = [(step, f, 0.4, 0.0) for step in range(2) for f in range(0, 60, 3)]
    digest = sae_files_hash(tmp_path / "s")
    selection = make_selection(
        model, rows, timesteps, family=family, concept=concept, sae_hash=digest
    )
    return Request(family, concept, [[Intervention(selection, strength=s)] for s in strengths])


def test_the_three_protocols_remove_what_they_say(model, tmp_path):
    requests = [request(model, tmp_path, "style", "red"), request(model, tmp_path, "object", "cat")]
    ran = evaluation(model, tmp_path)
    expected = {
        "each": [{"style": ["red"]}, {"object": ["cat"]}],
        "sequential": [{"style": ["red"]}, {"style": ["red"], "object": ["cat"]}],
        "joint": [{"style": ["red"], "object": ["cat"]}],
    }
    for protocol, targets in expected.items():
        before, outcomes = run_protocol(ran, requests, protocol)
        assert [o.targets for o in outcomes] == targets
        assert all(len(o.answers) == len(PROMPTS) for o in outcomes)
        body = report(ran, before, outcomes, protocol=protocol, search=None)
        assert json.loads(json.dumps(body)) == body
        assert (body["average"] is None) == (protocol != "each")
        assert set(body["removals"][-1]["ua_by_target"]) == {
            f"{f}={c}" for f, cs in targets[-1].items() for c in cs
        }
    assert before.targets == {} and before.frechet is not None
    assert outcomes[0].stored_bytes == 4 * (64 * 16 * 2 + 64 + 16)


def test_an_edited_text_encoder_does_not_meet_old_outcomes(model, tmp_path):
    """Faults, line C: what an outcome depends on is part of its key."""
    ran, (one,) = evaluation(model, tmp_path), [request(model, tmp_path, "style", "red")]
    run_protocol(ran, [one], "each")
    old = sorted((tmp_path / "outcomes").iterdir())
    run_protocol(ran, [one], "each")
    assert sorted((tmp_path / "outcomes").iterdir()) == old
    edited = edited_text_encoder(model)
    run_protocol(replace(ran, model=edited), [one], "each")
    new = sorted((tmp_path / "outcomes").iterdir())
    assert len(old) == 3 and len(new) == 6  # The untouched pictures, their features, the removal.


def test_a_search_chooses_by_its_own_judge_and_seeds_and_is_not_reported(model, tmp_path):
    searched = [Prompt(p.prompt, p.seed + 10, p.labels, 1) for p in PROMPTS]
    wanted = request(model, tmp_path, "style", "red", (-1.0, -2.0, -3.0))
    asked = []

    def probabilities(images):
        asked.append(len(images))
        red = {2: 0.4, 3: 0.3}.get(
            len(asked), 0.9
        )  # Both unlearn; the third setting does so more clearly.
        n = len(images)
        return {"style": np.tile([red, 1 - red], (n, 1)), "object": np.tile([0.9, 0.1], (n, 1))}

    choosing = judge("choosing")._replace(probabilities=probabilities)
    search = Search(choosing, searched, 0)
    ran = evaluation(model, tmp_path)
    _, (outcome,) = run_protocol(ran, [wanted], "each", search=search)
    assert asked == [4, 4, 4]
    assert outcome.setting["edits"][0]["strength"] == -3.0
    assert (outcome.judge, {a.seed for a in outcome.answers}) == ("colours", {0, 1})
    run_protocol(ran, [wanted], "each", search=search)
    assert asked == [4, 4, 4]  # Read again.


def test_the_best_settings_are_attacked_and_the_first_that_holds_is_taken(model, tmp_path):
    searched = [Prompt(p.prompt, p.seed + 10, p.labels, 1) for p in PROMPTS]
    wanted = request(model, tmp_path, "style", "red", (-1.0, -2.0, -3.0))
    judging, said, attacked = judge("choosing"), [], []

    def probabilities(images):
        return {
            "style": np.tile([0.1, 0.9], (len(images), 1)),
            "object": np.tile([0.9, 0.1], (len(images), 1)),
        }

    def comes_back(edits):
        attacked.append(edits[0].strength)
        return 0.5 if len(attacked) < 2 else 0.0

    search = Search(judging._replace(probabilities=probabilities), searched, 4, comes_back, tries=2)
    _, (outcome,) = run_protocol(
        evaluation(model, tmp_path), [wanted], "each", search=search, say=said.append
    )
    assert attacked == [-1.0, -2.0] and outcome.setting["edits"][0]["strength"] == -2.0
    assert (
        "attack on style=red: setting 1: 50% shown" in said
        and "attack on style=red: setting 2: 0% shown" in said
    )


def test_of_several_settings_only_the_best_at_the_first_look_are_looked_at_with_all_seeds(
    model, tmp_path
):
    searched = [Prompt(p.prompt, p.seed + 10, p.labels, 1) for p in PROMPTS]
    wanted = request(model, tmp_path, "style", "red", [-1.0 - i for i in range(8)])
    asked = []

    def probabilities(images):
        asked.append(len(images))
        green = {3: 0.9}.get(len(asked), 0.6)
        return {
            "style": np.tile([1 - green, green], (len(images), 1)),
            "object": np.tile([0.9, 0.1], (len(images), 1)),
        }

    said = []
    search = Search(judge("choosing")._replace(probabilities=probabilities), searched, 4)
    _, (outcome,) = run_protocol(
        evaluation(model, tmp_path), [wanted], "each", search=search, say=said.append
    )
    assert (
        asked == [3] * 8 + [8] * 6
    )  # Two of one seed and one other; four of two seeds and four others.
    assert "search style=red: setting 3 of 8, seeds 10: 0.889" in said
    assert outcome.setting["edits"][0]["strength"] == -3.0


def test_several_removals_at_once_are_balanced_on_the_search_and_not_without_one(model, tmp_path):
    searched = [Prompt(p.prompt, p.seed + 10, p.labels, 1) for p in PROMPTS]
    requests = [request(model, tmp_path, "style", "red"), request(model, tmp_path, "object", "cat")]
    looks = []

    def probabilities(images):
        looks.append(len(images))
        # Less red changes nothing; the cat is gone with four times the multiplier.
        cat = [0.9, 0.9, 0.6, 0.6, 0.2, 0.2][len(looks) - 1]
        return {
            "style": np.tile([0.1, 0.9], (len(images), 1)),
            "object": np.tile([cat, 1 - cat], (len(images), 1)),
        }

    search = Search(judge("choosing")._replace(probabilities=probabilities), searched, 4)
    said = []
    _, (outcome,) = run_protocol(
        evaluation(model, tmp_path), requests, "joint", search=search, say=said.append
    )
    assert [edit["strength"] for edit in outcome.setting["edits"]] == [-3.0, -12.0]
    assert said[1:] == [
        "search together style=red, object=cat: -3, -3: 0.250",
        "search together style=red, object=cat: -1.5, -3: 0.250",
        "search together style=red, object=cat: -3, -6: 0.250",
        "search together style=red, object=cat: -1.5, -6: 0.250",
        "search together style=red, object=cat: -3, -12: 1.000",
        "search together style=red, object=cat: -1.5, -12: 1.000",
        "search together style=red, object=cat: -3, -6: 0.250",
        "without style=red, object=cat",
    ]
    _, (outcome,) = run_protocol(evaluation(model, tmp_path), requests, "joint")
    assert [edit["strength"] for edit in outcome.setting["edits"]] == [-3.0, -3.0]


def test_several_removals_go_towards_what_is_kept_as_the_search_finds_best(model, tmp_path):
    searched = [Prompt(p.prompt, p.seed + 10, p.labels, 1) for p in PROMPTS]
    requests = [request(model, tmp_path, "style", "red"), request(model, tmp_path, "object", "cat")]
    own = requests[0].candidates[0][0].selection
    kept = [
        replace(own, concept=concept, sae_hash=digest)
        for concept, digest in (("red", own.sae_hash), ("blue", "other"), ("green", own.sae_hash))
    ]
    toward, looks = Toward(kept, (0.5, 0.25)), []

    def probabilities(images):
        """Of none, half and a quarter, the quarter removes both."""
        looks.append(len(images))
        shown = 0.1 if len(looks) == 3 else 0.9
        both = np.tile([shown, 1 - shown], (len(images), 1))
        return {"style": both, "object": both}

    search, said = Search(judge("choosing")._replace(probabilities=probabilities), searched, 4), []
    _, (outcome,) = run_protocol(
        evaluation(model, tmp_path),
        requests,
        "joint",
        search=search,
        say=said.append,
        toward=toward,
    )
    red, cat = outcome.setting["edits"]
    assert (red["toward"]["concept"], red["pull"]) == ("green", 0.25)  # red goes, blue is another's
    assert "toward" not in cat  # Nothing of its family is kept.
    assert [line.partition(": ")[2].rpartition(":")[0] for line in said[1:4]] == [
        "-3, -3",
        "-3, -3, 0.5 towards style=green",
        "-3, -3, 0.25 towards style=green",
    ]
    ran = evaluation(model, tmp_path)
    _, (outcome,) = run_protocol(ran, requests, "joint", say=said.append, toward=toward)
    assert outcome.setting["edits"][0]["pull"] == 0.5  # The first, without a search.
    _, outcomes = run_protocol(ran, requests, "each", say=said.append, toward=toward)
    red, cat = (o.setting["edits"][0] for o in outcomes)
    assert (red["toward"]["concept"], red["pull"]) == ("green", 0.5) and "toward" not in cat


def test_one_concept_is_searched_with_each_pull_beside_none(model, tmp_path):
    red, cat = (
        request(model, tmp_path, *target) for target in (("style", "red"), ("object", "cat"))
    )
    kept = replace(red.candidates[0][0].selection, concept="green")
    toward = Toward([kept], (0.5, 0.25))
    tried = toward.beside(("style", "red"), red.candidates, searched=True)
    assert [[one.pull if one.toward else None for one in own] for own in tried] == [
        [None],
        [0.5],
        [0.25],
    ] * len(red.candidates)
    once = toward.beside(("style", "red"), red.candidates, searched=False)
    assert [own[0].pull for own in once] == [0.5] * len(red.candidates)
    for searched in (True, False):  # Nothing of its family is kept.
        assert toward.beside(("object", "cat"), cat.candidates, searched=searched) == list(
            cat.candidates
        )


def test_what_would_tune_on_what_is_reported_is_refused(model, tmp_path):
    wanted = request(model, tmp_path, "style", "red", (-1.0, -2.0))
    ran = evaluation(model, tmp_path)
    cases = [
        (
            [wanted],
            None,
            "2 settings per concept: say what to choose them by, --search-judge and --search-seeds",
        ),
        (
            [wanted],
            Search(judge("x"), PROMPTS, 4),
            r"seeds \[0, 1\] are both searched and reported on",
        ),
        ([wanted], Search(judge(), [], 4), "the judge colours is both searched and reported on"),
        (
            [wanted],
            Search(judge("x"), [Prompt("cat", 9, {"style": "green", "object": "cat"}, 1)], 4),
            "^no prompt of the search asks for style=red: nothing would say whether a setting",
        ),
        ([], None, "no concept is named"),
    ]
    for requests, search, message in cases:
        with pytest.raises(UsageError, match=message):
            run_protocol(ran, requests, "each", search=search)
    with pytest.raises(UsageError, match=r"^an attack in the search, and no search: say what"):
        evaluate(
            model,
            [wanted],
            prompts=PROMPTS,
            judge=judge(),
            out=tmp_path,
            run=RUN,
            search_attack=AttackSettings(),
        )
    assert not (tmp_path / "outcomes").exists()


def test_labels_that_the_judge_cannot_answer_are_refused():
    check_labels(judge(), [{"style": "red", "object": None}])
    with pytest.raises(
        UsageError, match="judge colours cannot answer style=blue: it knows red, green"
    ):
        check_labels(judge(), [{"style": "blue"}])
    with pytest.raises(UsageError, match="cannot answer mood=sad: it knows style, object"):
        check_labels(judge(), [{"mood": "sad"}])


def test_folders_of_pictures_by_their_names(tmp_path):
    labels = {"style": ["Van_Gogh", "Van", "Pop_Art"], "object": ["Cats", "Gogh_Trees", "Trees"]}
    names = ["{style}_{object}_seed{seed}", "{object}_seed{seed}"]
    for name in ("Van_Gogh_Cats_seed188.jpg", "Pop_Art_Trees_seed5.png", "Trees_seed7.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("")
    found = {p.path.name: (p.labels, p.seed) for p in read_pictures(tmp_path, names, labels)}
    assert found == {
        "Van_Gogh_Cats_seed188.jpg": ({"style": "Van_Gogh", "object": "Cats"}, 188),
        "Pop_Art_Trees_seed5.png": ({"style": "Pop_Art", "object": "Trees"}, 5),
        "Trees_seed7.png": ({"object": "Trees"}, 7),
    }
    Image.new("RGB", (4, 4)).save(tmp_path / "Other_seed1.png")
    cases = [
        (tmp_path, names, PromptsError, "Other_seed1.png in .* matches none of"),
        (
            tmp_path,
            ["{mood}"],
            UsageError,
            "'mood' is not one of the judge's families: style, object",
        ),
        (tmp_path / "absent", names, PromptsError, "no folder of pictures"),
        (
            tmp_path,
            [],
            PromptsError,
            "cannot be read: No such file.*featurestore generate.*--names",
        ),
    ]
    for folder, given, error, message in cases:
        with pytest.raises(error, match=message):
            read_pictures(folder, given, labels)
    line = {"file": "Trees_seed7.png", "seed": 7, "prompt": "x", "object": "Trees", "style": None}
    (tmp_path / "generated.jsonl").write_text(json.dumps(line) + "\n")
    (picture,) = read_pictures(tmp_path)
    assert (picture.labels, picture.seed, picture.open().size) == ({"object": "Trees"}, 7, (4, 4))
    (tmp_path / "generated.jsonl").write_text('{"seed": 7}\n')
    with pytest.raises(PromptsError, match="line 1: expected an object with file and seed"):
        read_pictures(tmp_path)


def test_an_outcome_keeps_its_answers_exactly():
    answers = [Answer({"style": "red"}, {"style": "green", "object": "cat"}, 3)]
    assert Outcome({"style": ["red"]}, {}, "j", answers, math.nan, 0.1, 5, 6).scores.ua == 1


def test_the_peak_is_that_since_it_was_reset():
    reset_peak()
    quiet = peak_bytes()
    block = np.ones(30_000_000)
    loud = peak_bytes()
    del block
    reset_peak()
    assert loud - quiet > 200e6 > peak_bytes() - quiet


def test_an_unknown_protocol_is_one_line():
    with pytest.raises(
        UsageError, match="protocol 'twice': expected one of each, sequential, joint"
    ):
        run_protocol(None, [], "twice")
