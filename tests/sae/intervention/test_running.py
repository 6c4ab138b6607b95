"""Edits in other precisions, under autocast, with gradients, compiled, offloaded and sliced."""

import types
from dataclasses import replace

import pytest
import torch

from featurestore.errors import ModelError
from sae.diffusion import direct_calls
from sae.diffusion.loading.weights import model_hash
from sae.diffusion.modules import find_module
from sae.diffusion.pipelines import RunSettings, generate, load_model
from sae.intervention.ablate import ablate, attach
from sae.intervention.settings import Intervention
from tests.builders.edits import (
    EVERY_THIRD,
    dense,
    first_call,
    nearest_undetected,
    positions,
    strong,
)
from tests.builders.selections import (
    HOOK,
    N_LATENTS,
    RUN,
    make_sae,
    make_selection,
    timesteps_of,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models_are_edited_in_their_precision(model_dir, dtype):
    from sae.diffusion.pipelines import load_model

    half = load_model(str(model_dir), "cpu", str(dtype).removeprefix("torch."))
    rows = [(s, f, 0.3, 0.0) for s in range(3) for f in range(N_LATENTS)]
    selection = make_selection(half, rows, timesteps_of(half))
    plain = generate(half, RUN, ["a"], [0], output_type="latent")[0]
    with ablate(half.pipe, selection, strength=-5.0, saes=make_sae()):
        edited = generate(half, RUN, ["a"], [0], output_type="latent")[0]
    assert edited.dtype == plain.dtype == dtype
    assert edited.isfinite().all()
    assert not torch.equal(edited, plain)


def test_under_autocast_the_sae_is_still_computed_in_float32(model, monkeypatch):
    sae, halves = make_sae(3), replace(model, autocast=torch.bfloat16)
    seen, pre_acts = [], sae.pre_acts
    monkeypatch.setattr(sae, "pre_acts", lambda *args: seen.append(pre_acts(*args)) or seen[-1])
    x, found = first_call(halves, Intervention(strong(model), strength=-3.0), sae=sae)
    assert seen and {values.dtype for values in seen} == {torch.float32}
    assert x.dtype == found.dtype == torch.bfloat16 and torch.equal(found[0], x[0])
    torch.testing.assert_close(
        found[1], dense(sae, x[1].float(), "paper", -3.0, EVERY_THIRD).bfloat16()
    )


@pytest.mark.parametrize("kind", ["paper", "zero", "clamp", "add", "replace"])
def test_gradients_flow_through_the_edit_as_through_the_dense_formula(model, kind):
    """The gradient of a weighted sum of the edited tensor, with respect to what the hooked module
    returned."""
    sae, selection, weight = make_sae(3), strong(model), None
    grads = {}
    module = find_module(model.pipe, HOOK)

    def leaf(m, args, out):
        x = out[0].detach().requires_grad_()
        grads["x"] = x
        return (x,)

    def weigh(m, args, out):
        nonlocal weight
        weight = torch.randn(out[0].shape, generator=torch.Generator().manual_seed(1))
        (out[0] * weight).sum().backward()

    first = module.register_forward_hook(leaf)
    handle = attach(model.pipe, Intervention(selection, kind, -2.5), saes=sae)
    last = module.register_forward_hook(weigh)
    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    try:
        with torch.enable_grad(), direct_calls(model.pipe, ("uncond", "cond")):
            model.pipe.unet(latents, torch.tensor(334), torch.randn(2, 8, 16), return_dict=False)
    finally:
        for hook in (first, last):
            hook.remove()
        handle.detach()
    x = grads["x"]
    assert x.grad is not None
    y = x.detach().clone().requires_grad_()
    half = positions(y)[1]
    if kind == "replace":
        detected = (sae.encode_dense(half)[:, EVERY_THIRD] > 0.05).any(1)
        donors = nearest_undetected(detected.tolist(), 16, 16)
        edited = half[torch.tensor([donors.get(p, p) for p in range(256)])]
    else:
        edited = dense(sae, half, kind, -2.5, EVERY_THIRD)
    (torch.stack([positions(y)[0], edited]) * positions(weight)).sum().backward()
    torch.testing.assert_close(x.grad, y.grad, atol=1e-4, rtol=1e-4)
    assert not torch.equal(x.grad, weight) or kind == "add"


@pytest.mark.parametrize("part", ["block", pytest.param("denoiser", marks=pytest.mark.slow)])
def test_what_is_compiled_is_edited_and_is_plain_again_afterwards(model_dir, part):
    compiled = load_model(str(model_dir), "cpu")
    eager = load_model(str(model_dir), "cpu")
    run = RunSettings(2, 3.0)
    plain = generate(eager, run, ["a"], [0], output_type="latent")[0]
    selection = strong(eager, n_steps=2)
    with ablate(eager.pipe, selection, saes=make_sae(3)):
        edited = generate(eager, run, ["a"], [0], output_type="latent")[0]
    if part == "block":
        compiled.pipe.unet.up_blocks[1].compile(backend="eager")
    else:
        compiled.pipe.unet = torch.compile(compiled.pipe.unet, backend="eager")
    torch.testing.assert_close(generate(compiled, run, ["a"], [0], output_type="latent")[0], plain)
    with ablate(compiled.pipe, selection, saes=make_sae(3)):
        torch.testing.assert_close(
            generate(compiled, run, ["a"], [0], output_type="latent")[0],
            edited,
            atol=1e-4,
            rtol=1e-4,
        )
    torch.testing.assert_close(generate(compiled, run, ["a"], [0], output_type="latent")[0], plain)
    assert (edited - plain).abs().max() > 1e-2


def test_weights_that_are_elsewhere_between_calls(model_dir):
    """Offloading, as accelerate does it: ``forward`` is wrapped, and the weights are only there
    while it runs."""
    model = load_model(str(model_dir), "cpu")
    selection = strong(model)
    with ablate(model.pipe, selection, saes=make_sae(3)):
        edited = generate(model, RUN, ["a"], [0], output_type="latent")[0]
    unet = model.pipe.unet
    weights = {name: parameter.data for name, parameter in unet.named_parameters()}
    forward = type(unet).forward

    def offload():
        for name, _ in list(unet.named_parameters()):
            owner, _, last = name.rpartition(".")
            setattr(unet.get_submodule(owner), last, torch.nn.Parameter(weights[name].to("meta")))

    def wrapped(self, *args, **kwargs):
        for name, data in weights.items():
            owner, _, last = name.rpartition(".")
            setattr(self.get_submodule(owner), last, torch.nn.Parameter(data))
        try:
            return forward(self, *args, **kwargs)
        finally:
            offload()

    unet.forward = types.MethodType(wrapped, unet)
    offload()
    with ablate(model.pipe, selection, saes=make_sae(3)):
        assert torch.equal(generate(model, RUN, ["a"], [0], output_type="latent")[0], edited)
    fresh = load_model(str(model_dir), "cpu").pipe.unet.to("meta")
    with pytest.raises(
        ModelError, match="is kept where it cannot be read: use enable_model_cpu_offload"
    ):
        model_hash(fresh)


@pytest.mark.gpu
@pytest.mark.parametrize("offload", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_offloaded_models_are_edited_as_resident_ones(model_dir, offload):
    model = load_model(str(model_dir), "cuda", "float32")
    selection = strong(model)  # Its hash is taken before the weights leave.
    plain = generate(model, RUN, ["a"], [0], output_type="latent")[0]
    with ablate(model.pipe, selection, saes=make_sae(3)):
        edited = generate(model, RUN, ["a"], [0], output_type="latent")[0]
    getattr(model.pipe, offload)()
    with ablate(model.pipe, selection, saes=make_sae(3)):
        found = generate(model, RUN, ["a"], [0], output_type="latent")[0]
    torch.testing.assert_close(found.cpu(), edited.cpu(), atol=1e-4, rtol=1e-4)
    assert (edited - plain).abs().max() > 1e-2


@pytest.mark.gpu
@pytest.mark.parametrize(("kind", "dtype"), [("paper", "float32"), ("add", "float16")])
def test_what_is_compiled_for_cuda_is_edited(model_dir, kind, dtype):
    model = load_model(str(model_dir), "cuda", dtype)
    edit = Intervention(strong(model), kind=kind, strength=-1.0)
    plain = generate(model, RUN, ["a"], [0], output_type="latent")[0].float()
    with ablate(model.pipe, edit, saes=make_sae(3)):
        edited = generate(model, RUN, ["a"], [0], output_type="latent")[0].float()
    model.pipe.unet.up_blocks[1].compile()
    with ablate(model.pipe, edit, saes=make_sae(3)):
        found = generate(model, RUN, ["a"], [0], output_type="latent")[0].float()
    size = (edited - plain).norm()
    assert size > 1e-2
    # Another rounding moves a latent over its threshold here and there, which the rule turns into a
    # step.
    assert (found - edited).norm() < (0.3 if kind == "paper" else 0.02) * size
    assert (
        generate(model, RUN, ["a"], [0], output_type="latent")[0].float() - plain
    ).norm() < 0.02 * size


def test_attention_slicing_changes_nothing_about_the_edit(model_dir):
    model = load_model(str(model_dir), "cpu")
    x, found = first_call(model, strong(model))
    model.pipe.enable_attention_slicing()
    sliced_x, sliced = first_call(model, strong(model))
    torch.testing.assert_close(sliced_x, x, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sliced, found, atol=1e-4, rtol=1e-4)
