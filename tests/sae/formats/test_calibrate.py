"""Thresholds that a checkpoint does not have, found on a store's activations."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from featurestore import Store
from featurestore.cli import cli
from featurestore.errors import SAEError
from sae.checkpoint import store_sae
from sae.feed.batches import PositionBatches
from sae.formats.exchange import import_sae
from sae.formats.libraries.foreign import Choice
from sae.formats.registry import read_checkpoint
from tests.builders import checkpoints as formats
from tests.builders.checkpoints import D_IN, K
from tests.builders.saes import HOOK, make_store

SIZE = 16


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setattr("sae.formats.calibrate._BATCH_SIZE", SIZE)
    return make_store(tmp_path / "store", d_in=D_IN)


def oracle(store, sae, k):
    """The running mean, momentum 0.99, of the smallest of each batch's k · B largest activations,
    in NumPy."""
    W_enc, b_enc, b_dec = (
        getattr(sae, name).detach().double().numpy() for name in ("W_enc", "b_enc", "b_dec")
    )
    threshold = None
    for batch in PositionBatches(store, HOOK, "cond", SIZE, seed=0, holdout=0).epoch(0):
        x = batch.double().numpy()
        if sae.config.normalize_activations == "layer_norm":
            x = x - x.mean(axis=1, keepdims=True)
            x = x / (x.std(axis=1, ddof=1, keepdims=True) + 1e-5)
        pre = ((x - b_dec) @ W_enc.T + b_enc).ravel()
        kept = np.sort(pre)[-k * SIZE :]
        smallest = kept[kept > 0].min()
        threshold = smallest if threshold is None else 0.99 * threshold + 0.01 * smallest
    return threshold


def sparsify(path):
    formats.sparsify(path, batch_topk=True, input_unit_norm=True)
    return path, None


def dictionary_learning(path):
    formats.dictionary_learning(path, "BatchTopKSAE", threshold=-1.0)
    return path, None


def matryoshka(path):
    formats.dictionary_learning(path, "MatryoshkaBatchTopKSAE", threshold=-1.0)
    return path, None


def without(path):
    formats.dictionary_learning(path, "BatchTopKSAE")
    state = torch.load(path / "ae.pt", weights_only=True)
    del state["threshold"]
    torch.save(state, path / "ae.pt")
    return path, None


def overcomplete(path):
    path.mkdir()
    formats.overcomplete(path / "sae.pt", "topk")
    return path / "sae.pt", K


@pytest.mark.parametrize("make", [sparsify, dictionary_learning, matryoshka, without, overcomplete])
def test_the_threshold_is_that_of_training(make, store, tmp_path, in_process):
    path, k = make(tmp_path / "theirs")
    record = import_sae(store, str(path), "theirs", hook=HOOK, choice=Choice(k=k, calibrate=True))
    sae = store_sae(store, "theirs")
    assert sae.config.architecture in ("batchtopk", "matryoshka_batchtopk")
    assert (sae.threshold == sae.threshold[0]).all()
    assert float(sae.threshold[0]) == pytest.approx(oracle(store, sae, K), rel=1e-5)
    batches = PositionBatches(store, HOOK, "cond", SIZE, seed=0, holdout=0)
    assert batches.n_batches > 2
    assert record.made_by["calibrated"] == {
        "data": batches.data,
        "n_positions": batches.n_batches * SIZE,
    }
    assert (
        import_sae(store, str(path), "theirs", hook=HOOK, choice=Choice(k=k, calibrate=True))
        == record
    )


@pytest.mark.parametrize("make", [dictionary_learning, without])
def test_without_being_asked_nothing_is_calibrated(make, tmp_path, in_process):
    path, _ = make(tmp_path / "theirs")
    with pytest.raises(
        SAEError,
        match=r"has (no threshold|threshold = -1): it was never calibrated. Give --calibrate",
    ):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("kind", "choice", "message"),
    [
        (
            "BatchTopKSAE",
            Choice(calibrate=True),
            "has threshold = 1.3, given or in its file: leave out --calibrate",
        ),
        (
            "AutoEncoderTopK",
            Choice(calibrate=True),
            "is of architecture 'topk': --calibrate is for BatchTopK",
        ),
    ],
)
def test_what_needs_no_calibration_gets_none(kind, choice, message, tmp_path, in_process):
    formats.dictionary_learning(tmp_path, kind)
    with pytest.raises(SAEError, match=message):
        read_checkpoint(tmp_path, choice=choice)


def test_a_store_without_activations_of_the_hook_cannot_calibrate(store, tmp_path):
    sparsify(tmp_path / "theirs")
    with pytest.raises(SAEError, match=r"has no activations of hook 'unet\.mid_block'"):
        import_sae(
            store,
            str(tmp_path / "theirs"),
            "a",
            hook="unet.mid_block",
            choice=Choice(calibrate=True),
        )
    assert store.record("saes", "a") is None


def test_on_the_command_line(store, tmp_path):
    path, _ = overcomplete(tmp_path / "theirs")
    args = [
        "sae",
        "import",
        str(path),
        "--store",
        str(store.root),
        "--name",
        "a",
        "--hook",
        HOOK,
        "--k",
        str(K),
    ]
    result = CliRunner().invoke(
        cli, [*args, "--calibrate"], standalone_mode=False, catch_exceptions=False
    )
    assert result.output.startswith(f"SAE 'a': batchtopk, 30 latents on {D_IN} channels, k {K}\n")
    args = ["encode", "--store", str(store.root), "--sae", "a", "--device", "cpu", "--quiet"]
    CliRunner().invoke(cli, args, standalone_mode=False, catch_exceptions=False)
    config = json.loads((store.root / "saes" / "a" / "config.json").read_bytes())
    assert (config["architecture"], config["k"]) == ("batchtopk", K)
    values = Store.open(store.root).arrow("codes/a", ["values"])["values"].to_pylist()
    threshold = float(store_sae(store, "a").threshold[0])
    assert min(v for row in values for position in row for v in position) > 0.999 * threshold
