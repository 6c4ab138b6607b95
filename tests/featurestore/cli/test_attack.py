"""``featurestore attack`` on the included model, as short as can be."""

import functools
import json
import shutil

import pytest

from collectors.learner import learner
from featurestore import Selection, Store
from featurestore.cli import main
from featurestore.prompts import Prompt
from featurestore.saes import sae_files_hash
from minicanvas import OBJECTS, prompt
from queries import ask
from queries.selections import select
from sae.checkpoint import save_sae
from sae.diffusion.pipelines import RunSettings, load_model
from sae.intervention.settings import Intervention
from sae.model import SAE, SAEConfig
from tests.builders.cli import run
from tests.builders.selections import make_selection, timesteps_of

HOOK = "unet.up_blocks.1.attentions.1"


@pytest.fixture(scope="module")
def edited(tmp_path_factory):
    """A selection of many features of a random SAE: enough to destroy pictures, so that nothing is
    shown."""
    root = tmp_path_factory.mktemp("attack")
    model = load_model("minicanvas", "cpu")
    sae = SAE(SAEConfig(d_in=128, n_latents=128, k=16))
    save_sae(sae, root / "s")
    rows = [(step, f, 40.0, 0.0) for step in range(10) for f in range(128)]
    selection = make_selection(
        model, rows, timesteps_of(model, 10), hook=HOOK, d_in=128, n_latents=128, k=16, sae_hash=sae_files_hash(root / "s"),
        family="style", concept="neon",
    )  # fmt: skip
    selection.save(root / "neon.json")
    lines = [{"prompt": prompt(o, "neon"), "style": "neon", "object": o} for o in OBJECTS[:2]]
    (root / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


def test_attacks_are_made_kept_and_tabulated(capsys, edited, tmp_path):
    command = [
        "attack", "--model", "minicanvas", "--prompts", edited / "prompts.jsonl", "--judge", "minicanvas", "--steps", 10,
        "--ablate", edited / "neon.json", "--multiplier", -1, "--sae", edited / "s", "--method", "tokens", "--method", "latents",
        "--rounds", 1, "--iterations", 1, "--n-tokens", 2, "--pictures", 1, "--out", tmp_path, "--quiet",
    ]  # fmt: skip
    status, text, said = run(capsys, *command)
    assert status == 0, said
    lines = text.splitlines()
    assert [line.split()[0] for line in lines[2:4]] == ["tokens", "latents"]
    assert lines[4:] == [str(tmp_path / method / "report.html") for method in ("tokens", "latents")]
    assert "shown under attack, %" in lines[0] and (tmp_path / "latents/report.html").is_file()
    body = json.loads((tmp_path / "tokens/attack.json").read_text())
    assert (
        body["pictures"] == 1
        and body["shown_before"]["value"] <= body["shown_under_attack"]["value"]
    )
    assert run(capsys, *command)[1] == text


def test_wrong_attacks_are_one_line(capsys, edited, tmp_path):
    common = ["attack", "--model", "minicanvas", "--prompts", edited / "prompts.jsonl", "--judge", "minicanvas", "--steps", 2,
              "--out", tmp_path]  # fmt: skip
    cases = [
        ([], "nothing to attack: no selection is ablated"),
        (
            ["--ablate", edited / "neon.json", "--learning-rate", 0],
            "learning_rate = 0.0, expected more than 0",
        ),
        (
            ["--ablate", edited / "neon.json", "--sae", edited / "s", "--n-tokens", 99],
            "n_tokens = 99, a text of StableDiffusionPipeline has room for 14",
        ),
    ]
    for more, message in cases:
        status, text, err = run(capsys, *common, *more)
        assert (status, text, err.count("\n")) == (1, "", 1) and message in err, err


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A store of the included model with an SAE, a selection for neon, and prompts."""
    root = tmp_path_factory.mktemp("harden")
    lines = [
        {"prompt": prompt(o, s), "style": s, "object": o}
        for s in ("neon", "sketch")
        for o in OBJECTS[:2]
    ]
    (root / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    common = ["--store", root / "store", "--quiet"]
    commands = [
        [
            "collect",
            "--model",
            "minicanvas",
            "--prompts",
            root / "prompts.jsonl",
            "--hook",
            HOOK,
            "--steps",
            4,
            *common,
        ],
        [
            "train",
            "--hook",
            HOOK,
            "--name",
            "s",
            "--k",
            8,
            "--expansion",
            1,
            "--steps",
            5,
            "--batch-size",
            64,
            *common,
        ],
        ["encode", "--sae", "s", *common],
        [
            "export",
            root / "store",
            "--sae",
            "s",
            "--concept",
            "style=neon",
            "-o",
            root / "neon.json",
        ],
    ]
    for command in commands:
        with pytest.raises(SystemExit) as stop:
            main([*map(str, command)])
        assert not stop.value.code
    return root


def test_what_an_attack_brings_back_is_collected_scored_and_selected(study):
    """What the command does between attacks: samples with a label of their own, under the defence,
    then SQL."""
    store, model = Store.open(study / "store"), load_model("minicanvas", "cpu")
    edit = Intervention(Selection.load(study / "neon.json"), strength=-1.0)
    best = functools.partial(select, top=3)
    how = {"select": best, "batch_size": 2, "progress": False}
    learn = learner(store, model, RunSettings(4, model.guidance), **how)
    texts = [Prompt(f"cat cat {prompt(o, 'neon')}", 60, {"style": "neon"}, 0) for o in OBJECTS[:2]]
    selection = learn("style", "neon", texts, [edit])
    assert (selection.family, selection.concept, selection.rule) == (
        "style",
        "neon (attacked)",
        {"top": 3},
    )
    samples = (
        Store.open(study / "store").arrow("samples", ["prompt", "style", "object"]).to_pylist()
    )
    added = [row for row in samples if row["style"] == "neon (attacked)"]
    assert {row["prompt"] for row in added} == {p.prompt for p in texts} and all(
        r["object"] is None for r in added
    )
    means = selection.rows["mean_concept"].to_pylist()
    assert min(means) > 0 and len(means) <= 3 * 4
    plain = learner(store, model, RunSettings(4, model.guidance), **how)
    assert plain("style", "neon", texts, [edit]).rows.equals(selection.rows)  # Collected once.


def test_hardening_from_the_command_line_ends_with_the_options_that_ablate(capsys, study, tmp_path):
    command = [
        "harden", study / "store", "--model", "minicanvas", "--prompts", study / "prompts.jsonl", "--judge",
        "minicanvas:selection", "--steps", 4, "--seeds", 7, "--ablate", study / "neon.json", "--multiplier", -1, "--rounds", 1,
        "--iterations", 1, "--n-tokens", 2, "--pictures", 1, "--hardenings", 1, "--others", 2, "--out", tmp_path, "--quiet",
    ]  # fmt: skip
    status, text, said = run(capsys, *command)
    assert status == 0, said
    assert ", after 1 rounds. Ablate with:" in text
    assert f"    --ablate {study / 'neon.json'} --multiplier -1 --threshold 1" in text
    body = json.loads((tmp_path / "hardened.json").read_text())
    assert len(body["rounds"]) == 1 and body["rounds"][0]["pictures"] == 1
    assert run(capsys, *command)[1] == text
    toward = ["--toward", study / "neon.json", "--pull", 0.25]
    status, text, _ = run(capsys, *command[:-2], tmp_path / "toward", "--quiet", *toward)
    kept = next((tmp_path / "toward").glob("toward-style-neon-*.json"))
    assert status == 0 and f"--threshold 1 --toward {kept} --pull 0.25" in text
    status, _, err = run(capsys, *command, "--method", "latents")
    assert status == 2 and "'latents' is not one of 'words', 'tokens'" in err
    status, _, err = run(capsys, *command, "--method", "words", "--method", "tokens")
    assert (status, err.count("\n")) == (1, 1)
    assert "hardening attacks by one method: give one --method, words or tokens" in err


def test_a_concept_is_scored_over_all_wordings_that_carry_its_label(capsys, study, tmp_path):
    """A paraphrase or a prompt that an attack found is one more sample of its concept."""
    store, more = tmp_path / "store", tmp_path / "came-back.jsonl"
    shutil.copytree(study / "store", store)
    more.write_text(json.dumps({"prompt": "neon neon cat", "style": "neon"}) + "\n")
    before = select(Store.open(store), "s", "style", "neon", top=2)
    collecting = ["--model", "minicanvas", "--prompts", more, "--hook", HOOK, "--steps", 4]
    for command in (["collect", *collecting], ["encode", "--sae", "s"]):
        status, _, said = run(capsys, *command, "--store", store, "--quiet")
        assert status == 0, said
    opened = Store.open(store)
    rows = opened.arrow("samples", ["style", "object"]).to_pylist()
    assert {"style": "neon", "object": None} in rows
    after = select(opened, "s", "style", "neon", top=2)
    assert after.timesteps == before.timesteps
    assert after.rows["mean_concept"].to_pylist() != before.rows["mean_concept"].to_pylist()
    (counted,) = [
        c for c in ask(opened, "concepts", {"sae": "s"}).to_pylist() if c["concept"] == "neon"
    ]
    assert counted["n_samples"] == 1 + sum(
        r["style"] == "neon" and r["object"] is not None for r in rows
    )


def test_features_that_cost_what_is_kept_are_tabulated(capsys, study, tmp_path):
    command = [
        "costs", "--model", "minicanvas", "--prompts", study / "prompts.jsonl", "--judge", "minicanvas:selection",
        "--steps", 4, "--seeds", 7, "--ablate", study / "neon.json", "--out", tmp_path, "--most", 1,
    ]  # fmt: skip
    status, text, said = run(capsys, *command, "--multiplier", -300)
    assert status == 0, said
    rows = json.loads((tmp_path / "costs.json").read_text())
    assert rows and text.splitlines()[0].split()[:4] == ["family", "concept", "sae", "feature"]
    taken = Selection.load(study / "neon.json").features()
    for row in rows:
        assert row["family"] == "object" and row["feature"] in taken
        assert 0 <= row["back"] <= row["lost"] <= 2
    status, text, _ = run(capsys, *command, "--multiplier", 1, "--threshold", 1e9)
    assert (status, text) == (0, "No picture lost a concept of another family.\n")
