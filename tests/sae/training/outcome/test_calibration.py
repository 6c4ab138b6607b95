"""A TopK SAE with a threshold in the place of its k."""

import pytest
import torch
from click.testing import CliRunner

from featurestore import Store
from featurestore.cli import cli
from featurestore.errors import SAEError
from sae.checkpoint import store_sae
from sae.training.outcome.calibration import calibrate, find_threshold, flips, with_threshold
from sae.training.train import TrainSettings, train
from tests.builders.saes import HOOK, make_store, random_sae

CPU = torch.device("cpu")
SMALL = TrainSettings(k=3, expansion=2, steps=5, batch_size=16, holdout=0.4)


@pytest.mark.parametrize("k", [1, 5, 60])
def test_the_threshold_is_the_value_of_rank_k_n_plus_1(k):
    """Against a sort of everything."""
    sae = random_sae(8, 60, k)
    x = torch.randn(50, 8)
    every = sae.pre_acts(x).flatten().sort(descending=True).values.detach()
    expected = every[50 * k] if 50 * k < every.numel() else torch.tensor(0.0)
    assert find_threshold(sae, lambda: x.split(7)) == float(expected.clamp_min(0))


def test_k_latents_fire_at_a_position_on_average():
    sae, x = random_sae(8, 60, 5), torch.randn(200, 8)
    made = with_threshold(sae, find_threshold(sae, lambda: [x]))
    codes = made.encode(x)
    assert int((codes.values > 0).sum()) == 5 * 200
    assert made.config.architecture == "batchtopk" and made.config.k == 5
    for name in ("W_enc", "W_dec", "b_enc", "b_dec"):
        assert torch.equal(getattr(made, name), getattr(sae, name))


def test_flips_are_the_differences_of_the_two_codes():
    sae, x = random_sae(8, 60, 5), torch.randn(40, 8)
    threshold = find_threshold(sae, lambda: [x])
    made = with_threshold(sae, threshold)
    fires, fired = (one.encode_dense(x) > 0 for one in (made, sae))
    gained, lost = flips(sae, threshold, x.split(9))
    assert gained == int((fires & ~fired).sum()) / 40
    assert lost == int((fired & ~fires).sum()) / 40
    assert gained > 0 and lost > 0, "nothing differs"


def test_a_store_gets_an_sae_of_its_own(tmp_path):
    store = make_store(tmp_path / "store")
    train(store, HOOK, "styles", SMALL, progress=False, device="cpu")
    made = calibrate(store, "styles", "threshold", CPU)
    assert made.held_out and made.record.made_by["calibrated"]["sae"] == "styles"
    assert made.after.l0 == pytest.approx(3, abs=3 / made.after.n_positions)
    sae = store_sae(store, "threshold", CPU)
    assert torch.equal(sae.threshold, torch.full((32,), made.threshold))
    again = calibrate(store, "styles", "threshold", CPU)
    assert again.record == store.record("saes", "threshold")
    with pytest.raises(SAEError, match="'threshold' is batchtopk and has a threshold: only a topk"):
        calibrate(store, "threshold", "other", CPU)
    with pytest.raises(SAEError, match="has another SAE 'styles': use another --name"):
        calibrate(store, "styles", "styles", CPU)


def test_the_command_says_what_changed(tmp_path):
    store = make_store(tmp_path / "store")
    train(store, HOOK, "styles", SMALL, progress=False, device="cpu")
    command = ["sae", "calibrate", str(store.root), "styles", "--name", "new", "--device", "cpu"]
    lines = CliRunner().invoke(cli, command, catch_exceptions=False).output.splitlines()
    assert lines[0].startswith("SAE 'new': 'styles' with a threshold of ")
    assert [line.split(",")[0].split()[:3] for line in lines[1:3]] == [
        ["by", "k", "FVU"],
        ["by", "threshold", "FVU"],
    ]
    assert "latents fire that did not" in lines[3] and lines[4].endswith("of held-out samples")
    assert Store.open(store.root).record("saes", "new") is not None
