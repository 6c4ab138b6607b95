"""Checkpoints of other libraries are the same function here, or are refused by name."""

import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from featurestore import Store
from featurestore.errors import SAEError, UsageError
from sae.ablate import Rule, ablation_change
from sae.checkpoint import load_sae
from sae.formats import pickles
from sae.formats.foreign import Choice
from sae.formats.hub import local_path
from sae.formats.pickles import check_pickle, state_dict
from sae.formats.registry import FORMATS, detect, read_checkpoint
from sae.importing import export_sae, foreign_sae, import_sae
from tests.sae import formats
from tests.sae.formats import D_IN, K
from tests.sae.helpers import HOOK, make_store, random_sae


def loaded(path, format="auto", choice=Choice()):  # noqa: B008
    return foreign_sae(path, read_checkpoint(path, format, choice))


def check_same(sae, reference, x=None):
    """Codes and reconstruction, and what an ablation of three latents changes, equal the reference's."""
    x = formats.inputs() if x is None else x
    z, x_hat = reference(x)
    assert (z > 0).any(0).sum() > 5
    np.testing.assert_allclose(sae.encode_dense(x).double(), z, atol=1e-5)
    np.testing.assert_allclose(sae(x).double(), x_hat, atol=2e-5)
    features = torch.from_numpy(np.sort(np.argsort((z > 0).sum(0))[-3:]))
    np.testing.assert_allclose(sae.encode_some(x, features), z[:, features], atol=1e-5)
    return z, x_hat


SAFE = {
    "sparsify": (formats.sparsify, {}, Choice()),
    "SAeUron": (formats.sparsify, {"batch_topk": False, "sample_topk": False, "input_unit_norm": False}, Choice()),
    "SAeUron, unit norm": (formats.sparsify, {"input_unit_norm": True}, Choice()),
    "SAeUron, served as topk": (formats.sparsify, {"sample_topk": True}, Choice("topk")),
    "SAELens topk": (formats.saelens, {}, Choice()),
    "SAELens rescaled": (formats.saelens, {"rescale_acts_by_decoder_norm": True}, Choice()),
    "SAELens layer norm": (formats.saelens, {"normalize_activations": "layer_norm"}, Choice()),
    "SAELens jumprelu": (formats.saelens, {"architecture": "jumprelu"}, Choice()),
    "SAELens b_dec": (formats.saelens, {"architecture": "jumprelu", "apply_b_dec_to_input": False}, Choice()),
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
    with pytest.raises(SAEError, match=r"encoder.weight is float32 \[30, 12\], expected floating point \[36, 12\]"):
        loaded(tmp_path)
    change(tmp_path, "cfg.json", d_in=10)
    path = tmp_path / "sae.safetensors"
    tensors = safetensors.torch.load_file(path)
    cut = {key: (value if key == "encoder.bias" else value[..., :10].contiguous()) for key, value in tensors.items()}
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


@pytest.fixture
def in_process(monkeypatch):
    """Read pickles in this process, which is faster: the separate one has its own tests below."""

    def load(path):
        check_pickle(path)
        found, others = {}, {}
        import sae.formats.unpickle as program

        program._walk("", torch.load(path, weights_only=True), found, others)
        return safetensors.torch.save(found, {"others": json.dumps(others)})

    monkeypatch.setattr(pickles, "_loaded", load)


def write_pickled(case, root):
    """Write a checkpoint; return its path, what the user has to say, and the reference."""
    if case.startswith("overcomplete"):
        kind = case.removeprefix("overcomplete ")
        path = root / "sae.pt"
        choice = {"batchtopk": Choice(threshold=1.3), "jump": Choice()}.get(kind, Choice(k=K))
        encoder = "untied" if kind == "untied" else "linear"
        return path, choice, formats.overcomplete(path, "topk" if kind == "untied" else kind, encoder=encoder)
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
    """``a ≥ θ`` there, ``a > θ`` here: equal to the last bit where an activation is the threshold."""
    path = tmp_path / "sae.pt"
    formats.overcomplete(path, "batchtopk")
    x = formats.inputs()
    open_ = loaded(path, choice=Choice(threshold=0.0))
    exactly = float(open_.encode_dense(x).max())
    at = loaded(path, choice=Choice(threshold=exactly)).encode_dense(x)
    assert at.count_nonzero() == 1 and float(at.max()) == exactly


def test_ablation_with_a_foreign_decoder_is_in_raw_space(tmp_path):
    reference = formats.saelens(tmp_path, normalize_activations="layer_norm", rescale_acts_by_decoder_norm=True)
    sae, x = loaded(tmp_path), formats.inputs()
    z, _ = reference(x)
    feature = int(np.argmax((z > 0).sum(0)))
    rule = Rule(torch.tensor([feature]), torch.tensor([-2.0]), torch.tensor([0.0]))
    rows, moved = ablation_change(sae, x, [rule])
    np.testing.assert_array_equal(rows, np.flatnonzero(z[:, feature]))
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
        ({"skip_connection": True}, "has skip_connection = True, which cannot be honoured: an SAE here has no path"),
        ({"transcode": True}, "has transcode = True, which cannot be honoured: it predicts another tensor"),
        ({"activation": "groupmax"}, "has activation = 'groupmax', which cannot be honoured"),
        ({"signed": True}, "has signed = True, which cannot be honoured"),
        ({"batch_topk": True}, r"batch_topk = true: .* holds no threshold. Give --threshold with"),
        ({"sample_topk": True}, r"sample_topk = true: .* Give --architecture topk to serve it with 4 latents"),
        ({"colour": 1}, r"has fields that are not known and may change the function: \['colour'\]"),
        ({"k": "absent"}, "has no k, expected an integer of at least 1"),
        ({"k": 2.5}, "has k = 2.5, expected an integer"),
        ({"k": 31}, r": k = 31 does not fit n_latents = 30"),
        ({"num_latents": 31}, r"encoder.weight is float32 \[30, 12\], expected floating point \[31, 12\]"),
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
        f"{tmp_path / 'cfg.json'} has batch_topk = true: it was trained to keep the largest activations of a whole batch, and "
        "holds no threshold. Give --threshold with the smallest activation that training kept, or --architecture topk to "
        "serve it with 4 latents a position, as SAeUron's own loader does."
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architecture": "gated"}, "has architecture = 'gated', which cannot be honoured: only standard, jumprelu"),
        ({"architecture": "batchtopk"}, r"it is a training state: save it with save_inference_model\(\)"),
        (
            {"normalize_activations": "expected_average_only_in"},
            "normalize_activations = 'expected_average_only_in', which cannot be honoured: the factors",
        ),
        ({"normalize_activations": "covariance_whitening"}, "fold them in SAELens"),
        ({"normalize_activations": "l3"}, "only none, layer_norm, constant_norm_rescale are known"),
        ({"reshape_activations": "hook_z"}, "has reshape_activations = 'hook_z', which cannot be honoured"),
        ({"metadata": "absent"}, "is older than SAELens 6. Load it with SAELens 6 and save it again"),
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
        ({"b_dec": None}, r"has no tensor 'b_dec': it has \['W_dec', 'encoder.bias', 'encoder.weight'\]"),
        ({"W_skip": torch.zeros(12, 12)}, r"tensors that are not known and may change the function: \['W_skip'\]"),
        ({"W_dec": torch.zeros(12, 30)}, r"W_dec is float32 \[12, 30\], expected floating point \[30, 12\]"),
        ({"b_dec": torch.zeros(12, dtype=torch.int32)}, r"b_dec is int32 \[12\], expected floating point"),
        ({"encoder.bias": torch.full((30,), torch.nan)}, "encoder.bias holds values that are not finite"),
    ],
)
def test_tensors_that_are_refused(tensors, message, tmp_path):
    formats.sparsify(tmp_path)
    path = tmp_path / "sae.safetensors"
    found = safetensors.torch.load_file(path) | tensors
    safetensors.torch.save_file({key: value for key, value in found.items() if value is not None}, path)
    with pytest.raises(SAEError, match=message):
        loaded(tmp_path)


@pytest.mark.parametrize(
    ("kind", "kwargs", "message"),
    [
        ("BatchTopKSAE", {"threshold": -1.0}, r"has threshold = -1: it was never calibrated. Give --threshold, or"),
        ("AutoEncoderTopK", {"k": 5}, r"config.json has k = 5, .*ae.pt has k = 4"),
        ("AutoEncoderTopK", {"dict_class": "GatedAutoEncoder"}, "dict_class = 'GatedAutoEncoder', which cannot be"),
        ("AutoEncoderTopK", {"dict_class": "BatchTopK"}, "only AutoEncoder, AutoEncoderTopK, BatchTopKSAE"),
        ("AutoEncoderTopK", {"buffer": {"io": "in_and_out"}}, "has io = 'in_and_out', which cannot be honoured"),
        ("AutoEncoderTopK", {"activation_dim": 13}, r"encoder.weight is float32 \[30, 12\], expected .* \[30, 13\]"),
        ("BatchTopKSAE", {"threshold": float("nan")}, r"threshold is \[\], expected one finite number"),
        ("JumpReluAutoEncoder", {"dict_class": "BatchTopKSAE", "k": 4}, "has no tensor 'encoder.weight'"),
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
    with pytest.raises(SAEError, match=r"has threshold = 1.3: --threshold 2.5 would be another function"):
        loaded(tmp_path, choice=Choice(threshold=2.5))
    formats.dictionary_learning(tmp_path, "MatryoshkaBatchTopKSAE", threshold=-1.0)
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
        ({}, Choice(), r"does not say whether it is a TopK or a BatchTopK SAE: give --k \(its top_k\) for TopK"),
        ({"unit": False}, Choice(k=4), r"rows of dictionary._weights have norms .*call eval\(\) before saving"),
        ({"encoder": "layer norm"}, Choice(k=4), r"may change the function: \['encoder.final_block.1.weight'\]"),
        ({"encoder": "none"}, Choice(k=4), "has no tensor 'encoder.final_block.0.weight'"),
    ],
)
def test_overcomplete_that_is_refused(kwargs, choice, message, tmp_path, in_process):
    formats.overcomplete(tmp_path / "sae.pth", **kwargs)
    with pytest.raises(SAEError, match=message):
        loaded(tmp_path / "sae.pth", choice=choice)


def test_more_than_a_state_dict_is_refused(tmp_path, in_process):
    formats.sdxl_unbox(tmp_path, optimizer={"lr": 0.1})
    with pytest.raises(SAEError, match=r"holds 'optimizer/lr', expected only tensors under 'state_dict'"):
        loaded(tmp_path)


def test_formats_are_told_by_their_files(tmp_path):
    formats.sparsify(tmp_path / "a")
    formats.saelens(tmp_path / "b")
    formats.dictionary_learning(tmp_path / "c", "AutoEncoder")
    formats.sdxl_unbox(tmp_path / "d")
    formats.overcomplete(tmp_path / "e.pt")
    found = [detect(tmp_path / name) for name in ("a", "b", "c", "d", "e.pt")]
    assert found == ["sparsify", "saelens", "dictionary_learning", "sdxl-unbox", "overcomplete"] == list(FORMATS)
    with pytest.raises(SAEError, match=f"{tmp_path} holds several checkpoints; name one of them: a, b, c, d"):
        detect(tmp_path)
    formats.saelens(tmp_path / "a")
    with pytest.raises(SAEError, match=r"fits several formats: sparsify, saelens. Name one with --format"):
        detect(tmp_path / "a")
    assert read_checkpoint(tmp_path / "a", "saelens").fields["k"] == K


def test_what_is_no_checkpoint_is_listed(tmp_path):
    (tmp_path / "model.bin").touch()
    expected = (
        r"expected cfg.json and sae.safetensors \(sparsify\), .* or a file ending in .pt or .pth \(overcomplete\)"
    )
    with pytest.raises(SAEError, match=f"is no checkpoint of a known format: found model.bin; {expected}"):
        read_checkpoint(tmp_path)
    with pytest.raises(SAEError, match=f"model.bin is no checkpoint of a known format: {expected}"):
        read_checkpoint(tmp_path / "model.bin")
    with pytest.raises(SAEError, match=r"there is no .*absent\."):
        read_checkpoint(tmp_path / "absent")
    with pytest.raises(SAEError, match=r"format 'onnx' is not known. Known: sparsify, saelens"):
        read_checkpoint(tmp_path, "onnx")
    (tmp_path / "cfg.json").write_text("[]")
    with pytest.raises(SAEError, match="holds list, expected an object"):
        read_checkpoint(tmp_path, "sparsify")


# Pickles


class Canary:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def torch_file(path, pickled):
    """A torch file whose pickle is ``pickled``."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
    return path


def test_the_separate_process_hands_back_tensors_bit_for_bit(tmp_path):
    """Every dtype and layout that a checkpoint may have, a transposed view, a nested dictionary, numbers beside them."""
    tensors = {
        "a": torch.randn(3, 4).T,
        "b": torch.randn(5).half(),
        "c": torch.randn(2, 2, dtype=torch.bfloat16)[1],
        "d": torch.tensor(7, dtype=torch.int32),
        "e": torch.nn.Parameter(torch.randn(2)),
    }
    torch.save({"state": tensors}, tmp_path / "x.pt")
    taken = state_dict(tmp_path / "x.pt", within="state")
    for name in ("a", "b", "c", "e"):
        assert torch.equal(taken.take(name, tensors[name].shape), tensors[name].detach().float())
    assert taken.number("d") == 7
    taken.finish()


def test_a_malicious_file_runs_nothing(tmp_path):
    """The canary sings when it is unpickled in earnest, and in no way that this project reads files."""
    canary = tmp_path / "canary"
    evil = pickle.dumps({"W_enc": Canary(canary)}, protocol=2)
    pickle.loads(evil)
    assert canary.is_dir()
    canary.rmdir()
    path = torch_file(tmp_path / "sae.pt", evil)
    with pytest.raises(SAEError, match=r"is refused: its pickle calls posix.mkdir, which tensors do not need"):
        read_checkpoint(path, choice=Choice(k=4))
    with pytest.raises(SAEError, match=r"cannot be read as plain tensors \(exit 1\)"):
        pickles._loaded(path)
    assert not canary.exists()


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_pickles_that_call_anything_are_refused_before_they_are_loaded(protocol, tmp_path, monkeypatch):
    monkeypatch.setattr(pickles, "_loaded", lambda path: pytest.fail("it was loaded"))
    for evil in (Canary(tmp_path / "x"), subprocess.Popen, sys.exit, Path("x")):
        path = torch_file(tmp_path / "evil.pt", pickle.dumps([evil], protocol=protocol))
        with pytest.raises(SAEError, match=r"is refused: its pickle (calls|uses)"):
            state_dict(path)


@pytest.mark.parametrize(
    "attack",
    [
        "open('gone', 'w')",
        "import socket; socket.socket()",
        "import subprocess; subprocess.Popen(['true'])",
        "import os; os.system('true')",
        "import os; os.fork()",
        "import os; os.open('gone', os.O_WRONLY | os.O_CREAT)",
        "import os; os.mkdir('gone')",
        "import ctypes; ctypes.CDLL(None)",
    ],
)
def test_the_audit_hook_ends_whatever_gets_through(attack, tmp_path):
    """As if ``weights_only`` had a hole: the attack runs after the hook is set."""
    source = (Path(pickles.__file__).with_name("unpickle.py")).read_text()
    body = source.replace("import safetensors.torch\nimport torch\n", "").partition("if __name__")[0]
    body = body.replace("torch.Tensor", "object")
    program = f"{body}\n_limit(5)\n_watch()\n{attack}\nprint('alive')\n"
    result = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (77, ""), result.stderr
    assert not list(tmp_path.iterdir())


def test_files_that_are_no_torch_files(tmp_path):
    path = tmp_path / "x.pt"
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(SAEError, match=r"is no torch file \(a zip archive"):
        state_dict(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"\x80\x02N.")
    with pytest.raises(SAEError, match=r"is no torch file: it holds 1 pickles and 1 packed entries"):
        state_dict(path)
    torch_file(path, b"\x80\x02]")
    with pytest.raises(SAEError, match="holds a malformed pickle"):
        state_dict(path)
    path.unlink()
    with pytest.raises(SAEError, match="cannot be read: No such file"):
        state_dict(path)


def test_a_tensor_larger_than_its_storage_is_refused(tmp_path):
    """A few bytes would become any number of them."""
    torch.save({"a": torch.zeros(1).expand(10**6)}, tmp_path / "x.pt")
    with pytest.raises(SAEError, match="a is no plain tensor"):
        state_dict(tmp_path / "x.pt")


def test_a_bare_tensor_is_no_state_dict(tmp_path, in_process):
    torch.save(torch.zeros(3), tmp_path / "x.pt")
    with pytest.raises(SAEError, match="holds '', expected only named tensors"):
        state_dict(tmp_path / "x.pt")


# Into a store and out of it


@pytest.fixture
def store(tmp_path):
    return make_store(tmp_path / "store", d_in=D_IN)


def test_an_imported_sae_is_one_of_the_store(store, tmp_path):
    from sae.encode import encode

    directory = tmp_path / HOOK
    reference = formats.sparsify(directory, input_unit_norm=True)
    record = import_sae(store, str(directory), "theirs")
    sae = load_sae((store, "theirs"))
    check_same(sae, reference)
    assert record.made_by["imported"] == "sparsify"
    assert (sae.config.hook, sae.config.io, sae.config.height, sae.config.width) == (HOOK, "output", 4, 4)
    assert import_sae(store, str(directory), "theirs") == record
    encode(store, "theirs", progress=False, device="cpu")
    row = next(store.activations(HOOK)).row(0).astype(np.float32)
    z, _ = reference(torch.from_numpy(row))
    assert store.read("codes/theirs")["features"][0].as_py() == [np.flatnonzero(p).tolist() for p in z]
    assert "stats.theirs" in (store.root / "README.md").read_text()
    formats.sparsify(directory, input_unit_norm=False)
    with pytest.raises(SAEError, match="has another SAE 'theirs': use another --name"):
        import_sae(store, str(directory), "theirs")


def test_an_import_with_thresholds_is_encoded(store, tmp_path):
    from sae.encode import encode

    reference = formats.saelens(tmp_path / "s", "jumprelu", hook=HOOK)
    import_sae(store, str(tmp_path / "s"), "jump")
    encode(store, "jump", progress=False, device="cpu")
    row = next(store.activations(HOOK)).row(0).astype(np.float32)
    z, _ = reference(torch.from_numpy(row))
    found = store.read("codes/jump")["features"][0].as_py()
    assert found == [np.flatnonzero(p).tolist() for p in z]
    assert len({len(position) for position in found}) > 1


def test_where_an_sae_belongs_is_checked(store, tmp_path, in_process):
    directory = tmp_path / "sae"
    formats.sparsify(directory)
    with pytest.raises(UsageError, match=f"does not say which: give the SAE's hook with --hook. The store has {HOOK}"):
        import_sae(store, str(directory), "a")
    other = make_store(tmp_path / "other", d_in=16)
    with pytest.raises(SAEError, match=rf"takes 12 channels, hook '{HOOK}' of .*other has 16"):
        import_sae(other, str(directory), "a", hook=HOOK)
    with pytest.raises(
        SAEError, match=r"was trained on the input of its module, .* holds the output of .*--io input\."
    ):
        import_sae(store, str(directory), "a", hook=HOOK, io="input")
    formats.sdxl_unbox(tmp_path / "unbox")
    with pytest.raises(SAEError, match=r"trained on the difference .*or give --io output if that is wrong"):
        import_sae(store, str(tmp_path / "unbox"), "a", hook=HOOK)
    import_sae(store, str(tmp_path / "unbox"), "a", hook=HOOK, io="output")
    with pytest.raises(UsageError, match=r"names 'h.9', of which the store has no activations: give"):
        formats.saelens(tmp_path / "lens", hook="h.9")
        import_sae(store, str(tmp_path / "lens"), "b")


def test_an_sae_of_differences_goes_with_differences(tmp_path, in_process):
    formats.sdxl_unbox(tmp_path / "unbox")
    formats.sdxl_unbox(tmp_path / "steerers", steerers=True)
    differences = make_store(tmp_path / "store", d_in=D_IN, io="difference")
    for source in ("unbox", "steerers"):
        import_sae(differences, str(tmp_path / source), source, hook=HOOK)
        assert load_sae((differences, source)).config.io == "difference"
    empty = Store.create(tmp_path / "empty", {"model": "m"})
    import_sae(empty, str(tmp_path / "unbox"), "unbox", hook="unet.mid_block.attentions.0")
    import_sae(empty, str(tmp_path / "steerers"), "steerers", hook="unet.mid_block.attentions.0")
    assert [load_sae((empty, name)).config.io for name in ("unbox", "steerers")] == ["difference", "output"]


def put(store, sae, name):
    """Commit an SAE as if it had been trained."""
    from sae.attach import attach, attachable
    from sae.checkpoint import save_sae

    save_sae(sae, store.root.parent / name)
    attach(store, attachable(store, str(store.root.parent / name), torch.device("cpu")))


@pytest.mark.parametrize("format", ["sparsify", "saelens"])
def test_what_is_exported_and_imported_is_the_same_function(format, store, tmp_path):
    sae = random_sae(D_IN, 40, 4, hook=HOOK)
    put(store, sae, "ours")
    out = tmp_path / "out"
    assert [path.parent for path in export_sae(store, "ours", format, out)] == [out, out]
    back = loaded(out)
    x = formats.inputs()
    assert torch.equal(back.encode_dense(x), sae.encode_dense(x))
    assert torch.equal(back(x), sae(x))
    with pytest.raises(UsageError, match="out exists: name a new directory"):
        export_sae(store, "ours", format, out)


@pytest.mark.parametrize("architecture", ["jumprelu", "batchtopk", "matryoshka_batchtopk"])
def test_thresholds_are_exported_to_saelens_as_jumprelu(architecture, store, tmp_path):
    groups = {"group_sizes": (10, 30)} if architecture.startswith("matryoshka") else {}
    options = {"normalize_activations": "constant_norm_rescale", "apply_b_dec_to_input": False, "io": "difference"}
    sae = random_sae(D_IN, 40, 4, hook=HOOK, architecture=architecture, **groups, **options)
    with torch.no_grad():
        sae.threshold.uniform_(0, 1)
    put(store, sae, "ours")
    export_sae(store, "ours", "saelens", tmp_path / "out")
    assert json.loads((tmp_path / "out/cfg.json").read_text())["architecture"] == "jumprelu"
    found = read_checkpoint(tmp_path / "out")
    assert (found.hook, found.io) == (HOOK, "difference")
    x = formats.inputs()
    assert torch.equal(loaded(tmp_path / "out")(x), sae(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "jumprelu"}, "cannot express architecture = 'jumprelu', only 'topk'"),
        ({"normalize_activations": "layer_norm"}, "cannot express normalize_activations = 'layer_norm', only 'none'"),
        ({"apply_b_dec_to_input": False}, "cannot express apply_b_dec_to_input = False, only True"),
        ({"io": "difference"}, "cannot say that an SAE was trained on the difference"),
    ],
)
def test_what_sparsify_cannot_express_is_refused(options, message, store, tmp_path):
    put(store, random_sae(D_IN, 40, 4, hook=HOOK, **options), "ours")
    with pytest.raises(SAEError, match=message):
        export_sae(store, "ours", "sparsify", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# The hub


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A repository on a hub that is a directory here; what was asked for is kept."""
    import huggingface_hub

    root, asked = tmp_path / "repository", []
    formats.sparsify(root / HOOK)
    formats.sparsify(root / "unet.mid_block.attentions.0")
    formats.overcomplete(root / "more/sae.pt")
    files = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda self, repo, revision=None: sorted(files))

    def snapshot_download(repo, revision=None, allow_patterns=None):
        asked.append((repo, revision, sorted(allow_patterns)))
        return str(root)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


def test_a_checkpoint_on_a_hub_is_downloaded_alone(hub, store, tmp_path):
    import_sae(store, f"someone/saes/{HOOK}@v1", "theirs")
    assert hub == [("someone/saes", "v1", [f"{HOOK}/cfg.json", f"{HOOK}/sae.safetensors"])]
    assert load_sae((store, "theirs")).config.hook == HOOK
    assert local_path("someone/saes/more/sae.pt").name == "sae.pt"
    assert hub[-1] == ("someone/saes", None, ["more/sae.pt"])
    with pytest.raises(
        SAEError, match=f"someone/saes/ holds no checkpoint .*: someone/saes/unet.mid.*, someone/saes/{HOOK}"
    ):
        local_path("someone/saes")


def test_what_is_neither_here_nor_on_a_hub(monkeypatch):
    import huggingface_hub
    from huggingface_hub import errors

    def missing(self, repo, revision=None):
        raise errors.LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", missing)
    with pytest.raises(SAEError, match=r"there is no some/where here, and the hub cannot be asked \(offline\)"):
        local_path("some/where")
    assert local_path("./some/where") == Path("some/where")
    assert local_path("where") == Path("where")


def test_nothing_is_unpickled_here():
    """In the package, ``torch.load`` occurs in the separate program only, and ``pickle`` nowhere."""
    root = Path(pickles.__file__).parents[1]
    for path in root.rglob("*.py"):
        text = path.read_text()
        assert "import pickle\n" not in text and "pickle.load" not in text, path
        assert (" torch.load(" in text) == (path.name == "unpickle.py"), path
