"""The other libraries themselves: what they save is the same function here, and what is exported
here is the same there.

``make peers`` installs the libraries beside the project and runs these. Two of them want other
versions of what the project needs (nnsight before 0.4; torchvision, timm) for things that are no
SAEs: they are installed without their dependencies, and the ``__init__`` of their packages, which
imports all that, is left out.
"""

import importlib
import importlib.util
import json
import sys
import types

import numpy as np
import pytest
import torch

from sae.formats.exchange import foreign_sae
from sae.formats.libraries.foreign import Choice
from sae.formats.registry import WRITERS, read_checkpoint
from tests.builders.saes import random_sae

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]

D_IN, N_LATENTS, K = 12, 30, 4
X = 1.5 * torch.randn(80, D_IN, generator=torch.Generator().manual_seed(3)) + 0.3


def randomise(module, skip=()):
    """Give every floating-point parameter random values; thresholds positive ones."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name not in skip:
                parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
            if name == "threshold":
                parameter.abs_().mul_(3)
    return module


def loaded(path, choice=Choice()):  # noqa: B008
    return foreign_sae(path, read_checkpoint(path, choice=choice))


def check_same(sae, codes, reconstruction):
    assert codes.count_nonzero() > 20
    torch.testing.assert_close(sae.encode_dense(X), codes.detach(), atol=1e-5, rtol=0)
    torch.testing.assert_close(sae(X), reconstruction.detach(), atol=1e-5, rtol=0)


@pytest.fixture
def without_init(monkeypatch):
    """Import a module of a package whose ``__init__`` is left out."""

    def import_(name):
        package = name.partition(".")[0]
        spec = importlib.util.find_spec(package)
        if spec is None:
            pytest.skip(f"{package} is not installed")
        module = types.ModuleType(package)
        module.__path__ = list(spec.submodule_search_locations)
        monkeypatch.setitem(sys.modules, package, module)
        return importlib.import_module(name)

    return import_


@pytest.fixture
def sparsify():
    return pytest.importorskip("sparsify.sparse_coder")


def sparsify_output(coder):
    values, indices, _ = coder.encode(X)
    codes = X.new_zeros(len(X), N_LATENTS).scatter_(1, indices, values)
    return codes, coder.decode(values, indices)


def test_sparsify(sparsify, tmp_path):
    cfg = sparsify.SparseCoderConfig(num_latents=N_LATENTS, k=K)
    coder = randomise(sparsify.SparseCoder(D_IN, cfg))
    coder.save_to_disk(tmp_path / "hook")
    check_same(loaded(tmp_path / "hook"), *sparsify_output(coder))


def test_sparsify_by_expansion_factor(sparsify, tmp_path):
    coder = randomise(
        sparsify.SparseCoder(D_IN, sparsify.SparseCoderConfig(expansion_factor=3, k=K))
    )
    coder.save_to_disk(tmp_path)
    assert loaded(tmp_path).config.n_latents == 36


def test_exported_to_sparsify(sparsify, tmp_path):
    sae = random_sae(D_IN, N_LATENTS, K)
    write(tmp_path, "sparsify", sae)
    check_same(sae, *sparsify_output(sparsify.SparseCoder.load_from_disk(tmp_path)))


def write(directory, format, sae):
    for name, data in WRITERS[format](sae.requires_grad_(False)).items():
        (directory / name).write_bytes(data)


@pytest.fixture
def saelens():
    return pytest.importorskip("sae_lens")


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("normalize", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("apply_b_dec", [True, False])
def test_saelens_topk(saelens, rescale, normalize, apply_b_dec, tmp_path):
    cfg = saelens.TopKSAEConfig(
        D_IN, N_LATENTS, apply_b_dec_to_input=apply_b_dec, normalize_activations=normalize, k=K,
        rescale_acts_by_decoder_norm=rescale,
    )  # fmt: skip
    theirs = randomise(saelens.TopKSAE(cfg))
    theirs.save_model(tmp_path)
    codes = theirs.encode(X)
    check_same(loaded(tmp_path), codes, theirs.decode(codes))


@pytest.mark.parametrize("kind", ["JumpReLUSAE", "StandardSAE"])
@pytest.mark.parametrize("normalize", ["none", "layer_norm"])
@pytest.mark.parametrize("apply_b_dec", [True, False])
def test_saelens_with_thresholds(saelens, kind, normalize, apply_b_dec, tmp_path):
    config = getattr(saelens, f"{kind}Config")
    cfg = config(D_IN, N_LATENTS, apply_b_dec_to_input=apply_b_dec, normalize_activations=normalize)
    theirs = randomise(getattr(saelens, kind)(cfg))
    theirs.save_model(tmp_path)
    codes = theirs.encode(X)
    check_same(loaded(tmp_path), codes, theirs.decode(codes))


@pytest.mark.parametrize("rescale", [False, True])
def test_saelens_batchtopk_as_it_is_exported(saelens, rescale, tmp_path):
    cfg = saelens.BatchTopKTrainingSAEConfig(
        D_IN, N_LATENTS, k=K, rescale_acts_by_decoder_norm=rescale
    )
    theirs = randomise(saelens.BatchTopKTrainingSAE(cfg))
    theirs.topk_threshold.fill_(1.2)
    theirs.save_inference_model(tmp_path)
    served = saelens.SAE.load_from_disk(tmp_path)
    codes = served.encode(X)
    check_same(loaded(tmp_path), codes, served.decode(codes))


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "jumprelu", "matryoshka_batchtopk"])
@pytest.mark.parametrize("normalize", ["none", "layer_norm", "constant_norm_rescale"])
def test_exported_to_saelens(saelens, architecture, normalize, tmp_path):
    groups = {"group_sizes": (10, 20)} if architecture.startswith("matryoshka") else {}
    sae = random_sae(
        D_IN, N_LATENTS, K, architecture=architecture, normalize_activations=normalize, **groups
    )
    with torch.no_grad():
        if architecture != "topk":
            sae.threshold.uniform_(0, 2)
    write(tmp_path, "saelens", sae)
    theirs = saelens.SAE.load_from_disk(tmp_path)
    assert theirs.cfg.architecture() == ("topk" if architecture == "topk" else "jumprelu")
    codes = theirs.encode(X)
    check_same(sae, codes, theirs.decode(codes))


DICTIONARIES = {
    "AutoEncoderTopK": ("trainers.top_k", {"k": K}),
    "BatchTopKSAE": ("trainers.batch_top_k", {"k": K}),
    "MatryoshkaBatchTopKSAE": (
        "trainers.matryoshka_batch_top_k",
        {"k": K, "group_sizes": [5, 10, 15]},
    ),
    "JumpReluAutoEncoder": ("dictionary", {}),
    "AutoEncoder": ("dictionary", {}),
}


@pytest.mark.parametrize("kind", DICTIONARIES)
def test_dictionary_learning(without_init, kind, tmp_path):
    module, arguments = DICTIONARIES[kind]
    theirs = randomise(
        getattr(without_init(f"dictionary_learning.{module}"), kind)(D_IN, N_LATENTS, **arguments)
    )
    if "BatchTopK" in kind:
        theirs.threshold.fill_(1.2)
    trainer = {"dict_class": kind, "activation_dim": D_IN, "dict_size": N_LATENTS, **arguments}
    (tmp_path / "config.json").write_text(json.dumps({"trainer": trainer}))
    torch.save(theirs.state_dict(), tmp_path / "ae.pt")
    check_same(loaded(tmp_path), theirs.encode(X.clone()), theirs(X.clone()))


@pytest.mark.parametrize("kind", ["TopKSAE", "BatchTopKSAE", "JumpSAE"])
@pytest.mark.parametrize("multiplier", [False, True])
@pytest.mark.parametrize("untied", [False, True])
def test_overcomplete(without_init, kind, multiplier, untied, tmp_path):
    arguments = {} if kind == "JumpSAE" else {"top_k": K if kind == "TopKSAE" else K * len(X)}
    theirs = getattr(without_init("overcomplete.sae"), kind)(
        D_IN, N_LATENTS, dictionary_params={"use_multiplier": multiplier}, **arguments
    )
    if untied:
        theirs.untied(bias=True)
    randomise(theirs)
    if kind == "BatchTopKSAE":
        theirs.running_threshold = torch.tensor(1.1)
    theirs.eval()
    torch.save(theirs.state_dict(), tmp_path / "sae.pt")
    _, codes, reconstruction = theirs(X)
    choice = {"TopKSAE": Choice(k=K), "BatchTopKSAE": Choice(threshold=float(np.float32(1.1)))}.get(
        kind, Choice()
    )
    check_same(loaded(tmp_path / "sae.pt", choice), codes, reconstruction)
