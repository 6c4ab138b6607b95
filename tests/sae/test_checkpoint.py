import json
import pickle
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch

from featurestore.errors import DamageError, SAEError, SelectionError, UsageError
from featurestore.saes import sae_hash
from sae.checkpoint import load_sae, load_selection_sae, save_sae, store_sae
from sae.devices import pick_device
from sae.training.train import TrainSettings, train
from tests.builders.saes import HOOK, make_store, random_sae


@pytest.fixture
def saved(tmp_path):
    save_sae(random_sae(hook=HOOK, height=4), tmp_path)
    return tmp_path


def change(directory, **tensors):
    """Replace, add, or with None remove tensors of the file."""
    path = directory / "sae.safetensors"
    found = safetensors.torch.load_file(path) | tensors
    safetensors.torch.save_file(
        {key: value for key, value in found.items() if value is not None}, path
    )


def change_config(directory, **fields):
    path = directory / "config.json"
    found = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({key: value for key, value in found.items() if value != "absent"}))


def test_what_is_loaded_is_what_was_saved(saved):
    sae, loaded = random_sae(hook=HOOK, height=4), load_sae(saved)
    assert loaded.config == sae.config
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    for name, parameter in sae.named_parameters():
        assert torch.equal(loaded.get_parameter(name), parameter)


def test_loading_in_another_precision(saved):
    loaded = load_sae(saved, dtype=torch.bfloat16)
    assert all(parameter.dtype == torch.bfloat16 for parameter in loaded.parameters())
    save_sae(loaded, saved)
    assert load_sae(saved).W_enc.dtype == torch.float32


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            {"b_enc": None},
            r"has tensors \['W_dec', 'W_enc', 'b_dec'\], expected \['W_dec', 'W_enc', 'b_dec', "
            r"'b_enc'\]",
        ),
        ({"more": torch.zeros(1)}, r"has tensors \[.*'more'\], expected"),
        (
            {"W_dec": torch.zeros(16, 40)},
            r"W_dec is float32 \[16, 40\], expected floating point \[40, 16\]",
        ),
        (
            {"b_enc": torch.zeros(40, dtype=torch.int32)},
            r"b_enc is int32 \[40\], expected floating point",
        ),
        ({"b_dec": torch.full((16,), float("nan"))}, "b_dec holds values that are not finite"),
    ],
)
def test_weights_that_are_not_an_sae_are_refused(saved, tensors, message):
    change(saved, **tensors)
    with pytest.raises(SAEError, match=message):
        load_sae(saved)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"k": "absent"}, r"fields missing: \['k'\]"),
        ({"colour": 1}, r"fields unknown: \['colour'\]"),
        ({"k": "four"}, "k is 'four', expected int"),
        ({"k": True}, "k is True, expected int"),
        ({"k": 41}, "k = 41 does not fit n_latents = 40"),
        ({"architecture": "gated"}, "architecture 'gated' is not known"),
    ],
)
def test_configurations_that_are_not_an_sae_are_refused(saved, fields, message):
    change_config(saved, **fields)
    with pytest.raises(SAEError, match=message):
        load_sae(saved)


def test_files_that_are_something_else_are_refused(saved):
    (saved / "sae.safetensors").write_bytes(pickle.dumps({"W_enc": [1.0]}))
    with pytest.raises(SAEError, match="is no safetensors file"):
        load_sae(saved)
    (saved / "sae.safetensors").unlink()
    with pytest.raises(SAEError, match=r"sae.safetensors cannot be read: No such file"):
        load_sae(saved)
    (saved / "config.json").write_text("[]")
    with pytest.raises(SAEError, match="holds list, expected an object"):
        load_sae(saved)
    (saved / "config.json").write_text("{")
    with pytest.raises(SAEError, match="is no JSON"):
        load_sae(saved)


def test_an_sae_in_a_store_is_checked_against_its_record(tmp_path):
    store = make_store(tmp_path / "s")
    train(
        store,
        HOOK,
        "styles",
        TrainSettings(k=2, n_latents=24, steps=2, batch_size=8),
        progress=False,
        device="cpu",
    )
    assert store_sae(store, "styles").config.n_latents == 24
    with pytest.raises(SAEError, match=r"no SAE 'style'. Did you mean 'styles'"):
        store_sae(store, "style")
    change(store.root / "saes/styles", b_dec=torch.zeros(16))
    with pytest.raises(
        DamageError, match=r"was changed: its SHA-256 is .* run 'featurestore verify"
    ):
        store_sae(store, "styles")


def test_the_sae_of_a_selection(tmp_path):

    store = make_store(tmp_path / "s")
    settings = TrainSettings(k=2, n_latents=24, steps=2, batch_size=8)
    digest = sae_hash(train(store, HOOK, "styles", settings, progress=False, device="cpu"))
    about = {
        "family": "style",
        "concept": "neon",
        "store": str(store.root),
        "sae": "styles",
        "sae_hash": digest,
    }
    assert load_selection_sae(SimpleNamespace(**about)).config.k == 2
    with pytest.raises(
        SelectionError, match=r"style=neon was made with SAE 'styles' \(beef…\).* is another"
    ):
        load_selection_sae(SimpleNamespace(**about | {"sae_hash": "beef"}))
    with pytest.raises(SelectionError, match="where there is no store"):
        load_selection_sae(SimpleNamespace(**about | {"store": str(tmp_path / "gone")}))


def test_devices():
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type in ("cpu", "cuda")
    with pytest.raises(UsageError, match="device 'quantum' cannot be used here"):
        pick_device("quantum")
