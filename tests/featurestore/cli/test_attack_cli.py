"""``featurestore attack`` on the included model, as short as can be."""

import json

import pytest

from featurestore.saes import sae_files_hash
from minicanvas import OBJECTS, prompt
from sae.checkpoint import save_sae
from sae.diffusion.pipelines import load_model
from sae.model import SAE, SAEConfig
from tests.builders.cli import run
from tests.builders.selections import make_selection, timesteps_of

HOOK = "unet.up_blocks.1.attentions.1"


@pytest.fixture(scope="module")
def edited(tmp_path_factory):
    """A selection of many features of a random SAE: enough to destroy pictures, so that nothing is shown."""
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
    assert body["pictures"] == 1 and body["shown_before"]["value"] <= body["shown_under_attack"]["value"]
    assert run(capsys, *command)[1] == text


def test_wrong_attacks_are_one_line(capsys, edited, tmp_path):
    common = ["attack", "--model", "minicanvas", "--prompts", edited / "prompts.jsonl", "--judge", "minicanvas", "--steps", 2,
              "--out", tmp_path]  # fmt: skip
    cases = [
        ([], "nothing to attack: no selection is ablated"),
        (["--ablate", edited / "neon.json", "--learning-rate", 0], "learning_rate = 0.0, expected more than 0"),
    ]
    for more, message in cases:
        status, text, err = run(capsys, *common, *more)
        assert (status, text, err.count("\n")) == (1, "", 1) and message in err, err
