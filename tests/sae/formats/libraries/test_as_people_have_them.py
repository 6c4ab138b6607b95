"""Fault C8, and the end of issue 17, item 6: SAE files as they lie about; each is the same
function, or refused by name."""

import json

import pytest
import safetensors.torch
import torch

from featurestore.errors import SAEError
from sae.formats.libraries.foreign import Choice
from sae.formats.registry import detect
from tests.builders import checkpoints as formats
from tests.builders.checkpoints import K, check_same, loaded


def change(path, edit):
    tensors = safetensors.torch.load_file(path)
    edit(tensors)
    safetensors.torch.save_file(tensors, path)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod."])
def test_names_that_a_wrapper_put_before_all(prefix, tmp_path):
    reference = formats.sparsify(tmp_path)

    def wrap(tensors):
        for name in list(tensors):
            tensors[prefix + name] = tensors.pop(name)

    change(tmp_path / "sae.safetensors", wrap)
    check_same(loaded(tmp_path), reference)


def test_a_prefix_of_some_names_only_is_no_wrapper(tmp_path):
    formats.sparsify(tmp_path)
    change(
        tmp_path / "sae.safetensors",
        lambda tensors: tensors.update({"module.b_dec": tensors.pop("b_dec")}),
    )
    with pytest.raises(SAEError, match="has no tensor 'b_dec'"):
        loaded(tmp_path)


def test_shards(tmp_path):
    reference = formats.sparsify(tmp_path)
    whole = tmp_path / "sae.safetensors"
    tensors = list(safetensors.torch.load_file(whole).items())
    whole.unlink()
    for number, part in enumerate((tensors[:1], tensors[1:]), 1):
        safetensors.torch.save_file(dict(part), tmp_path / f"sae-{number:05d}-of-00002.safetensors")
    assert detect(tmp_path) == "sparsify"
    check_same(loaded(tmp_path), reference)
    (tmp_path / "sae-00001-of-00002.safetensors").unlink()
    with pytest.raises(SAEError, match=r"has 1 of the 2 shards of sae\.safetensors"):
        loaded(tmp_path)


@pytest.mark.parametrize(
    ("architecture", "activation", "scaled"),
    [
        ("standard", "relu", False),
        ("standard", "topk", False),
        ("jumprelu", "relu", False),
        ("standard", "relu", True),
    ],
)
def test_saelens_before_6(architecture, activation, scaled, tmp_path):
    reference = formats.saelens_5(tmp_path, architecture, activation, scaled)
    check_same(loaded(tmp_path), reference)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architecture": "gated"},
            "architecture = 'gated', which cannot be honoured: a gate of its own decides",
        ),
        (
            {"activation": "tanh-relu"},
            "activation_fn_str = 'tanh-relu', which cannot be honoured: only 'relu', and",
        ),
        ({"hook_head_index": 3}, "hook_head_index = 3, which cannot be honoured"),
        (
            {"use_ghost": True},
            r"fields that are not known and may change the function: \['use_ghost'\]",
        ),
        (
            {"normalize_activations": "expected_average_only_in"},
            "'expected_average_only_in', which cannot be honoured",
        ),
    ],
)
def test_saelens_before_6_that_is_another_function(changes, message, tmp_path):
    formats.saelens_5(tmp_path, **changes)
    with pytest.raises(SAEError, match=message):
        loaded(tmp_path)


@pytest.mark.parametrize("architecture", ["transcoder", "skip_transcoder", "jumprelu_transcoder"])
def test_transcoders_are_refused_by_name(architecture, tmp_path):
    formats.saelens(tmp_path)
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps(cfg | {"architecture": architecture}))
    with pytest.raises(
        SAEError,
        match=f"architecture = '{architecture}', .*: it predicts another tensor than it reads",
    ):
        loaded(tmp_path)


def test_a_gated_dictionary_is_refused_by_name(tmp_path, in_process):
    formats.dictionary_learning(tmp_path, "AutoEncoderTopK", dict_class="GatedAutoEncoder")
    with pytest.raises(
        SAEError,
        match="dict_class = 'GatedAutoEncoder', which cannot be honoured: a gate of its own",
    ):
        loaded(tmp_path)


def test_a_vector_that_is_kept_as_a_row(tmp_path):
    reference = formats.sparsify(tmp_path)
    change(
        tmp_path / "sae.safetensors",
        lambda tensors: tensors.update(b_dec=tensors["b_dec"][None].clone()),
    )
    check_same(loaded(tmp_path), reference)


def test_num_latents_null_means_the_expansion_factor(tmp_path):
    reference = formats.sparsify(tmp_path, expansion_factor=2.5)
    cfg = json.loads((tmp_path / "cfg.json").read_text()) | {
        "num_latents": None,
        "expansion_factor": 2,
    }
    (tmp_path / "cfg.json").write_text(json.dumps(cfg))
    change(
        tmp_path / "sae.safetensors",
        lambda t: t.update(
            {name: t[name][:24].clone() for name in ("encoder.weight", "encoder.bias", "W_dec")}
        ),
    )
    assert loaded(tmp_path).config.n_latents == 24 and reference is not None


def test_an_integer_k_beside_the_tensors(tmp_path, in_process):
    reference = formats.dictionary_learning(tmp_path, "AutoEncoderTopK")
    state = torch.load(tmp_path / "ae.pt", weights_only=True)
    torch.save(state | {"k": K}, tmp_path / "ae.pt")
    check_same(loaded(tmp_path), reference)
    torch.save(state | {"k": K + 1}, tmp_path / "ae.pt")
    with pytest.raises(SAEError, match=r"config\.json has k = 4, .*ae\.pt has k = 5"):
        loaded(tmp_path)
    torch.save(state | {"k": "four"}, tmp_path / "ae.pt")
    with pytest.raises(SAEError, match="holds 'k', expected only named tensors"):
        loaded(tmp_path)


def test_an_autoencoder_is_what_its_own_loader_gives(tmp_path, in_process):
    """dictionary_learning's load_dictionary: unit rows in the decoder, their norms in the
    encoder."""
    reference = formats.dictionary_learning(tmp_path, "AutoEncoder")
    sae = loaded(tmp_path)
    check_same(sae, reference)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(30))
    state = torch.load(tmp_path / "ae.pt", weights_only=True)
    state["decoder.weight"] = state["decoder.weight"].clone()
    state["decoder.weight"][:, 3] = 0
    torch.save(state, tmp_path / "ae.pt")
    with pytest.raises(SAEError, match="W_dec has rows of zeros, which its own loader divides by"):
        loaded(tmp_path)


def test_a_relu_sae_of_overcomplete_is_no_batchtopk(tmp_path, in_process):
    reference = formats.overcomplete(tmp_path / "sae.pt", "relu")
    with pytest.raises(SAEError, match="--architecture relu if it is neither but a plain SAE"):
        loaded(tmp_path / "sae.pt")
    sae = loaded(tmp_path / "sae.pt", choice=Choice("relu"))
    assert sae.config.architecture == "jumprelu" and not sae.threshold.any()
    check_same(sae, reference)
    formats.sparsify(tmp_path / "other")
    with pytest.raises(SAEError, match="is of architecture 'topk': it cannot be served as 'relu'"):
        loaded(tmp_path / "other", choice=Choice("relu"))
