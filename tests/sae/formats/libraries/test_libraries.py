"""Checkpoints of other libraries are the same function here, or are refused by name."""

import json

import numpy as np
import pytest
import safetensors.torch
import torch

from featurestore.errors import SAEError
from sae.formats.libraries.foreign import Choice
from sae.formats.registry import FORMATS, detect, read_checkpoint
from sae.intervention.change import rules_change
from sae.intervention.rules import Rule, join
from tests.builders import checkpoints as formats
from tests.builders.checkpoints import K, check_same, loaded

SAFE = {
    "sparsify": (formats.sparsify, {}, Choice()),
    "SAeUron": (
        formats.sparsify,
        {"batch_topk": False, "sample_topk": False, "input_unit_norm": False},
        Choice(),
    ),
    "SAeUron, unit norm": (formats.sparsify, {"input_unit_norm": True}, Choice()),
    "SAeUron, served as topk": (formats.sparsify, {"sample_topk": True}, Choice("topk")),
    "SAELens topk": (formats.saelens, {}, Choice()),
    "SAELens rescaled": (formats.saelens, {"rescale_acts_by_decoder_norm": True}, Choice()),
    "SAELens layer norm": (formats.saelens, {"normalize_activations": "layer_norm"}, Choice()),
    "SAELens jumprelu": (formats.saelens, {"architecture": "jumprelu"}, Choice()),
    "SAELens b_dec": (
        formats.saelens,
        {"architecture": "jumprelu", "apply_b_dec_to_input": False},
        Choice(),
    ),
    "SAELens rescaled norm": (
        formats.saelens,
        {"normalize_activations": "constant_norm_rescale", "apply_b_dec_to_input": False},
        Choice(),
    ),
    "SAELens standard": (formats.saelens, {"architecture": "standard"}, Choice()),
}


@pytest.mark.parametrize("case", SAFE)
def test_safetensors_are_the_same_function(case, tmp_path):
    write, changes, choice = SAFE[case]
    reference = write(tmp_path, **changes)
    check_same(loaded(tmp_path, choice=choice), reference)


def test_latents_by_expansion_factor(tmp_path):
    formats.sparsify(tmp_path, num_latents=0, expansion_factor=3)
    with pytest.raises(
        SAEError, match=r"encoder.weight is float32 \[30, 12\], expected floating point \[36, 12\]"
    ):
        loaded(tmp_path)
    change(tmp_path, "cfg.json", d_in=10)
    path = tmp_path / "sae.safetensors"
    tensors = safetensors.torch.load_file(path)
    cut = {
        key: (value if key == "encoder.bias" else value[..., :10].contiguous())
        for key, value in tensors.items()
    }
    safetensors.torch.save_file(cut, path)
    assert loaded(tmp_path).config.n_latents == 30


def test_serving_batch_topk_with_a_threshold(tmp_path):
    formats.sparsify(tmp_path, batch_topk=True)
    sae = loaded(tmp_path, choice=Choice(threshold=1.5))
    W_enc, b_enc, W_dec, b_dec = (t.double() for t in formats.weights())
    x = formats.inputs()
    pre = (x.double() - b_dec) @ W_enc.T + b_enc
    z = torch.where(pre > 1.5, pre, 0)
    torch.testing.assert_close(sae.encode_dense(x).double(), z, atol=1e-5, rtol=0)
    torch.testing.assert_close(sae(x).double(), z @ W_dec + b_dec, atol=2e-5, rtol=0)


PICKLED = [
    "AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE", "JumpReluAutoEncoder", "AutoEncoder", "sdxl-unbox",
    "overcomplete topk", "overcomplete batchtopk", "overcomplete jump", "overcomplete untied",
]  # fmt: skip


def write_pickled(case, root):
    """Write a checkpoint; return its path, what the user has to say, and the reference."""
    if case.startswith("overcomplete"):
        kind = case.removeprefix("overcomplete ")
        path = root / "sae.pt"
        choice = {"batchtopk": Choice(threshold=1.3), "jump": Choice()}.get(kind, Choice(k=K))
        encoder = "untied" if kind == "untied" else "linear"
        return (
            path,
            choice,
            formats.overcomplete(path, "topk" if kind == "untied" else kind, encoder=encoder),
        )
    if case == "sdxl-unbox":
        return root, Choice(), formats.sdxl_unbox(root)
    return root, Choice(), formats.dictionary_learning(root, case)


@pytest.mark.parametrize("case", PICKLED)
def test_pickles_are_the_same_function(case, tmp_path, in_process):
    path, choice, reference = write_pickled(case, tmp_path)
    sae = loaded(path, choice=choice)
    check_same(sae, reference)
    if case == "MatryoshkaBatchTopKSAE":
        assert sae.config.group_sizes == (5, 10, 15)


def test_a_threshold_that_is_reached_counts_in_overcomplete(tmp_path, in_process):
    """``a ≥ θ`` there, ``a > θ`` here: equal to the last bit where an activation is the
    threshold."""
    path = tmp_path / "sae.pt"
    formats.overcomplete(path, "batchtopk")
    x = formats.inputs()
    open_ = loaded(path, choice=Choice(threshold=0.0))
    exactly = float(open_.encode_dense(x).max())
    at = loaded(path, choice=Choice(threshold=exactly)).encode_dense(x)
    assert at.count_nonzero() == 1 and float(at.max()) == exactly


def test_ablation_with_a_foreign_decoder_is_in_raw_space(tmp_path):
    reference = formats.saelens(
        tmp_path, normalize_activations="layer_norm", rescale_acts_by_decoder_norm=True
    )
    sae, x = loaded(tmp_path), formats.inputs()
    z, _ = reference(x)
    feature = int(np.argmax((z > 0).sum(0)))
    rule = Rule(torch.tensor([feature]), torch.tensor([-2.0]), torch.tensor([0.0]))
    rows, moved = rules_change(sae, x, join([rule]))
    np.testing.assert_array_equal(rows[(moved != 0).any(1)], np.flatnonzero(z[:, feature]))
    W_dec = formats.weights()[2].double().numpy()[feature]
    std = x.double().numpy().std(-1, ddof=1, keepdims=True)[rows]
    expected = -3 * z[rows][:, [feature]] * W_dec / np.linalg.norm(W_dec) * std
    np.testing.assert_allclose(moved, expected, atol=1e-4)


def change(directory, name, **fields):
    path = directory / name
    found = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({key: value for key, value in found.items() if value != "absent"}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"skip_connection": True},
            "has skip_connection = True, which cannot be honoured: an SAE here has no path",
        ),
        (
            {"transcode": True},
            "has transcode = True, which cannot be honoured: it predicts another tensor",
        ),
        ({"activation": "groupmax"}, "has activation = 'groupmax', which cannot be honoured"),
        ({"signed": True}, "has signed = True, which cannot be honoured"),
        (
            {"batch_topk": True},
            r"batch_topk = true: .* holds no threshold. Give --calibrate to find it",
        ),
        (
            {"sample_topk": True},
            r"sample_topk = true: .* Give --architecture topk to serve it with 4 latents",
        ),
        ({"colour": 1}, r"has fields that are not known and may change the function: \['colour'\]"),
        ({"k": "absent"}, "has no k, expected an integer of at least 1"),
        ({"k": 2.5}, "has k = 2.5, expected an integer"),
        ({"k": 31}, r": k = 31 does not fit n_latents = 30"),
        (
            {"num_latents": 31},
            r"encoder.weight is float32 \[30, 12\], expected floating point \[31, 12\]",
        ),
        ({"d_in": 13}, r"expected floating point \[30, 13\]"),
    ],
)
def test_sparsify_configurations_that_are_refused(fields, message, tmp_path):
    formats.sparsify(tmp_path)
    change(tmp_path, "cfg.json", **fields)
    with pytest.raises(SAEError, match=message):
        loaded(tmp_path)


def test_a_refusal_names_the_file(tmp_path):
    formats.sparsify(tmp_path, batch_topk=True)
    with pytest.raises(SAEError) as error:
        loaded(tmp_path)
    assert str(error.value) == (
        f"{tmp_path / 'cfg.json'} has batch_topk = true: it was trained to keep the largest "
        f"activations of a whole batch, and "
        "holds no threshold. Give --calibrate to find it on the store's activations, --threshold "
        "with the smallest that "
        "training kept, or --architecture topk to serve it with 4 latents a position, as "
        "SAeUron's own loader does."
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"architecture": "gated"},
            "has architecture = 'gated', which cannot be honoured: a gate of its own",
        ),
        (
            {"architecture": "batchtopk"},
            r"it is a training state: save it with save_inference_model\(\)",
        ),
        (
            {"normalize_activations": "expected_average_only_in"},
            "normalize_activations = 'expected_average_only_in', which cannot be honoured: the "
            "factors",
        ),
        ({"normalize_activations": "covariance_whitening"}, "fold them in SAELens"),
        ({"normalize_activations": "l3"}, "only none, layer_norm, constant_norm_rescale are known"),
        (
            {"reshape_activations": "hook_z"},
            "has reshape_activations = 'hook_z', which cannot be honoured",
        ),
        (
            {"metadata": "absent"},
            r"not known and may change the function: \['k', 'rescale_acts_by_decoder_norm'\]",
        ),
        (
            {"finetuning_scaling_factor": True},
            r"not known and may change the function: \['finetuning_scaling_factor'\]",
        ),
        ({"apply_b_dec_to_input": 0.5}, "has apply_b_dec_to_input = 0.5"),
        ({"d_sae": 0}, "has d_sae = 0, expected an integer of at least 1"),
    ],
)
def test_saelens_configurations_that_are_refused(fields, message, tmp_path):
    formats.saelens(tmp_path)
    change(tmp_path, "cfg.json", **fields)
    with pytest.raises(SAEError, match=message):
        loaded(tmp_path)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            {"b_dec": None},
            r"has no tensor 'b_dec': it has \['W_dec', 'encoder.bias', 'encoder.weight'\]",
        ),
        (
            {"W_skip": torch.zeros(12, 12)},
            r"tensors that are not known and may change the function: \['W_skip'\]",
        ),
        (
            {"W_dec": torch.zeros(12, 30)},
            r"W_dec is float32 \[12, 30\], expected floating point \[30, 12\]",
        ),
        (
            {"b_dec": torch.zeros(12, dtype=torch.int32)},
            r"b_dec is int32 \[12\], expected floating point",
        ),
        (
            {"encoder.bias": torch.full((30,), torch.nan)},
            "encoder.bias holds values that are not finite",
        ),
    ],
)
def test_tensors_that_are_refused(tensors, message, tmp_path):
    formats.sparsify(tmp_path)
    path = tmp_path / "sae.safetensors"
    found = safetensors.torch.load_file(path) | tensors
    safetensors.torch.save_file(
        {key: value for key, value in found.items() if value is not None}, path
    )
    with pytest.raises(SAEError, match=message):
        loaded(tmp_path)


@pytest.mark.parametrize(
    ("kind", "kwargs", "message"),
    [
        (
            "BatchTopKSAE",
            {"threshold": -1.0},
            r"has threshold = -1: it was never calibrated. Give --calibrate to do so",
        ),
        ("AutoEncoderTopK", {"k": 5}, r"config.json has k = 5, .*ae.pt has k = 4"),
        (
            "AutoEncoderTopK",
            {"dict_class": "GatedAutoEncoder"},
            "dict_class = 'GatedAutoEncoder', which cannot be",
        ),
        (
            "AutoEncoderTopK",
            {"dict_class": "BatchTopK"},
            "only AutoEncoder, AutoEncoderTopK, BatchTopKSAE",
        ),
        (
            "AutoEncoderTopK",
            {"buffer": {"io": "in_and_out"}},
            "has io = 'in_and_out', which cannot be honoured",
        ),
        (
            "AutoEncoderTopK",
            {"activation_dim": 13},
            r"encoder.weight is float32 \[30, 12\], expected .* \[30, 13\]",
        ),
        (
            "BatchTopKSAE",
            {"threshold": float("nan")},
            r"threshold is \[\], expected one finite number",
        ),
        (
            "JumpReluAutoEncoder",
            {"dict_class": "BatchTopKSAE", "k": 4},
            "has no tensor 'encoder.weight'",
        ),
    ],
)
def test_dictionary_learning_that_is_refused(kind, kwargs, message, tmp_path, in_process):
    formats.dictionary_learning(tmp_path, kind, **kwargs)
    with pytest.raises(SAEError, match=message):
        loaded(tmp_path)


def test_serving_a_batch_topk_otherwise_has_to_be_asked_for(tmp_path, in_process):
    formats.dictionary_learning(tmp_path, "MatryoshkaBatchTopKSAE")
    x = formats.inputs()
    served = loaded(tmp_path, choice=Choice("topk"))
    assert (served.config.architecture, served.config.group_sizes) == ("topk", ())
    assert (served.encode_dense(x).count_nonzero(dim=1) == K).all()
    with pytest.raises(
        SAEError, match=r"has threshold = 1.3: --threshold 2.5 would be another function"
    ):
        loaded(tmp_path, choice=Choice(threshold=2.5))
    formats.dictionary_learning(tmp_path, "MatryoshkaBatchTopKSAE", threshold=-1.0)
    with pytest.raises(SAEError, match=r"--threshold -1 is no threshold: it must be at least 0"):
        loaded(tmp_path, choice=Choice(threshold=-1.0))
    given = loaded(tmp_path, choice=Choice(threshold=2.5)).encode_dense(x)
    assert float(given[given > 0].min()) > 2.5


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (Choice(k=5), "has k = 4: --k 5 would be another function"),
        (Choice(threshold=1.0), "is of architecture 'topk': --threshold is for BatchTopK"),
        (Choice("batchtopk"), "is of architecture 'topk': it cannot be served as 'batchtopk'"),
    ],
)
def test_a_choice_that_the_file_contradicts_is_refused(choice, message, tmp_path):
    formats.sparsify(tmp_path)
    with pytest.raises(SAEError, match=message):
        loaded(tmp_path, choice=choice)
    assert loaded(tmp_path, choice=Choice("topk", K)).config.k == K


@pytest.mark.parametrize(
    ("kwargs", "choice", "message"),
    [
        (
            {},
            Choice(),
            r"does not say whether it is a TopK or a BatchTopK SAE: give --k \(its top_k\) for TopK",
        ),
        (
            {"unit": False},
            Choice(k=4),
            r"rows of dictionary._weights have norms .*call eval\(\) before saving",
        ),
        (
            {"encoder": "layer norm"},
            Choice(k=4),
            r"may change the function: \['encoder.final_block.1.weight'\]",
        ),
        ({"encoder": "none"}, Choice(k=4), "has no tensor 'encoder.final_block.0.weight'"),
    ],
)
def test_overcomplete_that_is_refused(kwargs, choice, message, tmp_path, in_process):
    formats.overcomplete(tmp_path / "sae.pth", **kwargs)
    with pytest.raises(SAEError, match=message):
        loaded(tmp_path / "sae.pth", choice=choice)


def test_more_than_a_state_dict_is_refused(tmp_path, in_process):
    formats.sdxl_unbox(tmp_path, optimizer={"lr": 0.1})
    with pytest.raises(
        SAEError, match=r"holds 'optimizer/lr', expected only tensors under 'state_dict'"
    ):
        loaded(tmp_path)


def test_formats_are_told_by_their_files(tmp_path):
    formats.sparsify(tmp_path / "a")
    formats.saelens(tmp_path / "b")
    formats.dictionary_learning(tmp_path / "c", "AutoEncoder")
    formats.sdxl_unbox(tmp_path / "d")
    formats.overcomplete(tmp_path / "e.pt")
    found = [detect(tmp_path / name) for name in ("a", "b", "c", "d", "e.pt")]
    assert (
        found
        == ["sparsify", "saelens", "dictionary_learning", "sdxl-unbox", "overcomplete"]
        == list(FORMATS)
    )
    with pytest.raises(
        SAEError, match=f"{tmp_path} holds several checkpoints; name one of them: a, b, c, d"
    ):
        detect(tmp_path)
    formats.saelens(tmp_path / "a")
    with pytest.raises(
        SAEError, match=r"fits several formats: sparsify, saelens. Name one with --format"
    ):
        detect(tmp_path / "a")
    assert read_checkpoint(tmp_path / "a", "saelens").fields["k"] == K


def test_what_is_no_checkpoint_is_listed(tmp_path):
    (tmp_path / "model.bin").touch()
    expected = (
        r"expected cfg.json and sae.safetensors \(sparsify\), .* or a file ending in .pt "
        r"or .pth \(overcomplete\)"
    )
    with pytest.raises(
        SAEError, match=f"is no checkpoint of a known format: found model.bin; {expected}"
    ):
        read_checkpoint(tmp_path)
    with pytest.raises(SAEError, match=f"model.bin is no checkpoint of a known format: {expected}"):
        read_checkpoint(tmp_path / "model.bin")
    with pytest.raises(SAEError, match=r"there is no file or directory .*absent\."):
        read_checkpoint(tmp_path / "absent")
    with pytest.raises(SAEError, match=r"format 'onnx' is not known. Known: sparsify, saelens"):
        read_checkpoint(tmp_path, "onnx")
    (tmp_path / "cfg.json").write_text("[]")
    with pytest.raises(SAEError, match="holds list, expected an object"):
        read_checkpoint(tmp_path, "sparsify")
