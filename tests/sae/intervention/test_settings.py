"""Interventions against the formulas of docs/ablation.md, written out densely."""

import types
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.errors import ModelError, SelectionError, UsageError
from featurestore.prompts import Prompt
from featurestore.saes import sae_files_hash
from sae.checkpoint import save_sae
from sae.diffusion import direct_calls
from sae.diffusion.hooks import Layout
from sae.diffusion.modules import find_module
from sae.diffusion.pipelines import RunSettings, generate, load_model
from sae.diffusion.weights import model_hash
from sae.intervention.ablate import ablate, attach
from sae.intervention.generate import generate_images
from sae.intervention.rules import Edit, Rule, Steer, edit_change, join
from sae.intervention.settings import Intervention, Window
from tests.builders.architectures import CASES
from tests.builders.selections import (
    D_IN,
    HOOK,
    N_LATENTS,
    RUN,
    captured_output,
    make_sae,
    make_selection,
    timesteps_of,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")
EVERY_THIRD = list(range(0, N_LATENTS, 3))


def strong(model, hook=HOOK, n_steps=3, features=EVERY_THIRD, **changes):
    """A selection of many features at every step."""
    timesteps = timesteps_of(model, n_steps)
    rows = [(step, f, 0.4, 0.05) for step in range(n_steps) for f in features]
    return make_selection(model, rows, timesteps, hook=hook, **changes)


def positions(tensor):
    """A map as ``[batch, positions, channels]``."""
    return tensor.permute(0, 2, 3, 1).flatten(1, 2)


def first_call(model, interventions, hook=HOOK, run=RUN, sae=None, **kwargs):
    """What the hooked module returns in the first call without and with the edit, ``[batch, positions, channels]``."""
    before, _ = captured_output(model, hook, run)
    with ablate(model.pipe, interventions, saes=sae or make_sae(3), **kwargs):
        after, _ = captured_output(model, hook, run)
    return positions(before[0]), positions(after[0])


def dense(sae, x, kind, strength, features, concept=0.4, everything=0.05):
    """The formula of a kind on ``[n, d_in]``: encode everything, edit, decode, keep the error."""
    if kind == "add":
        return x + strength * sae.W_dec[features].sum(0)
    z = sae.encode_dense(x)
    edited = z.clone()
    for f in features:
        paper = torch.where(z[:, f] > everything, strength * concept * z[:, f], z[:, f])
        clamp = torch.where(z[:, f] > 0, torch.tensor(float(strength)), z[:, f])
        edited[:, f] = {"paper": paper, "zero": torch.zeros_like(paper), "clamp": clamp}[kind]
    return edited @ sae.W_dec + x - z @ sae.W_dec


@pytest.mark.parametrize("kind", ["paper", "zero", "clamp", "add"])
@pytest.mark.parametrize("branch", ["", "uncond", "both"])
def test_each_kind_edits_its_halves_by_its_formula(model, kind, branch):
    sae = make_sae(3)
    x, found = first_call(model, Intervention(strong(model), kind, -2.5, branch), sae=sae)
    edited = {"": [1], "uncond": [0], "both": [0, 1]}[branch]
    for half in (0, 1):
        if half in edited:
            expected = dense(sae, x[half], kind, -2.5, EVERY_THIRD)
            torch.testing.assert_close(found[half], expected, atol=2e-5, rtol=1e-5)
            assert not torch.equal(found[half], x[half])
        else:
            assert torch.equal(found[half], x[half])


def nearest_undetected(detected, height, width):
    """For each detected position the nearest other one, the first in reading order among equals."""
    free = [p for p in range(height * width) if not detected[p]]
    distance = lambda p, q: (p // width - q // width) ** 2 + (p % width - q % width) ** 2  # noqa: E731
    return {p: min(free, key=lambda q: (distance(p, q), q)) for p in range(height * width) if detected[p] and free}


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), height=st.integers(1, 4), width=st.integers(1, 5), level=st.floats(0, 2))
def test_replacement_copies_the_nearest_undetected_position(seed, height, width, level):
    sae = make_sae(seed)
    rng = np.random.default_rng(seed)
    n = height * width
    x = torch.from_numpy(rng.standard_normal((2 * n, D_IN)).astype(np.float32))
    features = torch.from_numpy(rng.choice(N_LATENTS, 6, replace=False))
    rule = Rule(features, torch.zeros(6), torch.full((6,), level))
    rows, change = edit_change(sae, x, Layout(height, width, True), Edit(detectors=join([rule])))
    found = x.clone()
    found[rows] += change
    expected = x.clone()
    detected = (sae.encode_dense(x)[:, features] > level).any(1)
    for start in (0, n):
        for p, donor in nearest_undetected(detected[start : start + n].tolist(), height, width).items():
            expected[start + p] = x[start + donor]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    untouched = ~torch.isin(torch.arange(2 * n), rows)
    assert torch.equal(found[untouched], x[untouched])


def test_replaced_positions_are_edited_by_nothing_else_and_the_rest_adds_up():
    sae, x = make_sae(), torch.randn(12, D_IN)
    z = sae.encode_dense(x)
    feature = int(z.count_nonzero(0).argmax())
    some, others = torch.tensor([feature]), torch.tensor([f for f in range(N_LATENTS) if f != feature][:20])
    detector = Rule(some, torch.zeros(1), torch.zeros(1))
    rule = Rule(others, torch.full((20,), -3.0), torch.zeros(20))
    edit = Edit(join([rule]), join([detector]), (Steer(torch.ones(D_IN)),))
    rows, change = edit_change(sae, x, Layout(3, 4, True), edit)
    found = x.clone()
    found[rows] += change
    detected = z[:, feature] > 0
    donors = nearest_undetected(detected.tolist(), 3, 4)
    assert 0 < len(donors) < 12
    for p in range(12):
        one = x[p : p + 1]
        expected = x[donors[p]] if p in donors else dense(sae, one, "paper", -3.0, others.tolist(), 1.0, 0.0)[0] + 1
        torch.testing.assert_close(found[p], expected, atol=1e-5, rtol=1e-5)


def test_of_two_clamps_the_larger_edit_holds_and_steering_adds_up(model):
    sae, selection = make_sae(3), strong(model, features=[0, 3, 6])
    one = first_call(model, [Intervention(selection, "clamp", -4.0)], sae=sae)[1]
    both = first_call(model, [Intervention(selection, "zero"), Intervention(selection, "clamp", -4.0)], sae=sae)[1]
    torch.testing.assert_close(both, one)
    x, twice = first_call(model, [Intervention(selection, "add", 1.0), Intervention(selection, "add", 2.0)], sae=sae)
    torch.testing.assert_close(twice[1], dense(sae, x[1], "add", 3.0, [0, 3, 6]), atol=1e-5, rtol=1e-5)


def edited_calls(model, interventions, run=RUN, hook=HOOK, sae=None, call=None, **kwargs):
    """The indices of the calls whose output the edit changed."""
    own, left = [], []
    module = find_module(model.pipe, hook)
    first = module.register_forward_hook(lambda m, a, out: own.append(out[0].clone()))
    try:
        with ablate(model.pipe, interventions, saes=sae or make_sae(3), **kwargs):
            last = module.register_forward_hook(lambda m, a, out: left.append(out[0].clone()))
            call() if call else generate(model, run, ["a b"], [0], "latent")
            last.remove()
    finally:
        first.remove()
    return {i for i, (a, b) in enumerate(zip(own, left, strict=True)) if not torch.equal(a, b)}


@pytest.mark.parametrize(
    ("window", "inside"),
    [
        (Window(), {0, 1, 2}),
        (Window.parse("700:300"), {0, 1}),
        (Window.parse("334:334"), {1}),
        (Window.parse("0%:50%"), {0, 1}),
        (Window.parse("90%:100%"), {2}),
        (Window.parse("0%:0%"), {0}),
    ],
)
def test_a_window_limits_the_steps(model, window, inside):
    assert timesteps_of(model) == [667, 334, 1]
    assert edited_calls(model, Intervention(strong(model), window=window)) == inside


def test_a_window_is_of_the_schedule_whatever_the_number_of_steps(model):
    intervention = Intervention(strong(model), "zero", window=Window.parse("0%:50%"))
    assert timesteps_of(model, 6) == [831, 665, 499, 333, 167, 1]
    assert edited_calls(model, intervention, RunSettings(6, 3.0)) == {0, 1, 2}


@pytest.mark.parametrize(
    ("window", "message"),
    [
        ("2000:1500", "window 2000:1500: none of the 3 steps is in it, their timesteps are 667 to 1"),
        ("10%:40%", "window 10%:40%: none of the 3 steps is in it, their timesteps are 667 to 1"),
    ],
)
def test_a_window_without_a_step_is_an_error(window, message, model):
    """Fault C6: it did nothing, without a word."""
    with pytest.raises(UsageError, match=message):
        edited_calls(model, Intervention(strong(model), window=Window.parse(window)))


@pytest.mark.filterwarnings("ignore:the selection style=neon has no timestep near")
def test_parts_of_a_schedule_of_continuous_timesteps(model, monkeypatch):
    """Fault C6: EDM's timesteps are ln(σ) / 4, at most 1.1: as parts of num_train_timesteps they were all at 100 %."""
    from diffusers import EDMEulerScheduler

    monkeypatch.setattr(model.pipe, "scheduler", EDMEulerScheduler(prediction_type="epsilon"))
    run, selection = RunSettings(5, 3.0), strong(model)
    assert edited_calls(model, Intervention(selection, "zero", window=Window.parse("0%:50%")), run) == {0, 1, 2}
    assert edited_calls(model, Intervention(selection, "zero", window=Window.parse("75%:100%")), run) == {3, 4}


@pytest.mark.parametrize("mode", ["paper", "saeuron"])
def test_a_repeated_timestep_has_the_features_of_its_own_step(model, mode, monkeypatch):
    """Issue 17, item 6: PNDM asks twice at its second timestep; what was recorded there first was used both times."""
    from diffusers import PNDMScheduler

    monkeypatch.setattr(model.pipe, "scheduler", PNDMScheduler(skip_prk_steps=True, steps_offset=1))
    recorded = timesteps_of(model, 3)
    assert len(recorded) == 4 and recorded[1] == recorded[2]
    rows = [(2, f, 0.4, 0.0) for f in EVERY_THIRD]
    selection, sae = make_selection(model, rows, recorded), make_sae(3)
    plain, _ = captured_output(model, HOOK, RUN)
    with ablate(model.pipe, selection, saes=sae, mode=mode):
        edited, _ = captured_output(model, HOOK, RUN)
    if mode == "paper":
        assert torch.equal(edited[0], plain[0]) and torch.equal(edited[1], plain[1])
        assert not torch.equal(edited[2], plain[2])
    else:  # Every call has the error's term; the edit itself is in the third.
        with ablate(model.pipe, make_selection(model, [], recorded), saes=sae, mode=mode):
            nothing, _ = captured_output(model, HOOK, RUN)
        assert [torch.equal(a, b) for a, b in zip(edited, nothing, strict=True)] == [True, True, False, False]


def test_the_released_arithmetic_writes_one_concept_over_another(model):
    """Issue 17, item 6: where concepts share a feature the last one's value holds, not the larger edit."""
    sae, shared = make_sae(3), [0, 3, 6]
    large, small = (Intervention(strong(model, features=shared), strength=s) for s in (-9.0, -2.0))
    for several, holds in (([large, small], -2.0), ([small, large], -9.0)):
        x, found = first_call(model, several, sae=sae, mode="saeuron")
        edited = dense(sae, x[1], "paper", holds, shared) - x[1]
        expected = edited + 2 * reconstruction(sae, x[1]) - x[1]
        torch.testing.assert_close(found[1], expected, atol=5e-5, rtol=1e-5)


def test_a_mask_limits_the_positions(model):
    height = find_map(model)
    mask = torch.zeros(height, height, dtype=torch.bool)
    mask[2:5, 1] = True
    pixels = mask.repeat_interleave(4, 0).repeat_interleave(4, 1)
    one_pixel_each = pixels & (torch.arange(4 * height) % 4 == 3)[:, None] & (torch.arange(4 * height) % 4 == 0)
    results = []
    for mine in (mask, pixels, one_pixel_each):
        x, found = first_call(model, Intervention(strong(model), "zero", mask=mine))
        results.append(found)
        expected = dense(make_sae(3), x[1], "zero", 0, EVERY_THIRD)
        inside = mask.flatten()
        torch.testing.assert_close(found[1][inside], expected[inside], atol=1e-5, rtol=1e-5)
        assert torch.equal(found[1][~inside], x[1][~inside])
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def find_map(model):
    before, _ = captured_output(model, HOOK, RUN)
    return before[0].shape[-1]


def test_masks_and_every_kind_on_token_streams(architectures):
    hook = "transformer.transformer_blocks.0"
    for name, guidance in (("SD3", "batched"), ("FLUX", "none")):
        model, run = architectures(name), CASES[name].guidance[guidance]
        generate(model, run, ["a"], [0], "latent")
        timesteps = [float(t) for t in model.pipe.scheduler.timesteps]
        rows = [(s, f, 0.4, 0.05) for s in range(run.n_steps) for f in EVERY_THIRD]
        selection = make_selection(model, rows, timesteps, hook=hook)
        mask = torch.zeros(run.height, run.width, dtype=torch.bool)
        mask[:16] = True
        streams = []
        for kind in ("add", "replace", "zero"):
            streams.append(stream(model, hook, run, Intervention(selection, kind, 1.5, mask=mask)))
        plain = stream(model, hook, run, None)
        inside = slice(0, plain.shape[0] // 2)
        expected = dense(make_sae(3), plain[inside], "add", 1.5, EVERY_THIRD)
        torch.testing.assert_close(streams[0][inside], expected, atol=1e-5, rtol=1e-5)
        for found in streams:
            assert torch.equal(found[plain.shape[0] // 2 :], plain[plain.shape[0] // 2 :])
            assert not torch.equal(found[inside], plain[inside])
        encoder = make_selection(model, rows, timesteps, hook=f"{hook}-encoder")
        with pytest.raises(UsageError, match=r"a mask is spatial: the tokens of .* are words"):
            attach(model.pipe, Intervention(encoder, mask=mask), saes=make_sae(3))


def stream(model, hook, run, intervention):
    """The image stream that a joint block returns in the first call for the conditional half, ``[tokens, channels]``."""
    seen = []
    keep = lambda: find_module(model.pipe, hook).register_forward_hook(lambda m, a, out: seen.append(out[1].clone()))  # noqa: E731
    handle = attach(model.pipe, intervention, saes=make_sae(3)) if intervention else None
    last = keep()
    try:
        generate(model, run, ["a"], [0], "latent")
    finally:
        last.remove()
        if handle:
            handle.detach()
    return seen[0][-1]


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((7, 7), r"the mask is 7 × 7, 'unet\.up_blocks\.1\.attentions\.1' has a map of 16 × 16: expected that size"),
        ((8, 32), "the mask is 8 × 32"),
        ((16, 32), "the mask is 16 × 32"),
        ((8, 8), "the mask is 8 × 8"),
    ],
)
def test_a_mask_of_the_wrong_size_is_one_line(model, shape, message):
    intervention = Intervention(strong(model), mask=torch.ones(shape, dtype=torch.bool))
    with pytest.raises(UsageError, match=message) as caught, ablate(model.pipe, intervention, saes=make_sae(3)):
        generate(model, RUN, ["a"], [0], "latent")
    assert "\n" not in str(caught.value)


def test_wrong_settings_are_one_line(model):
    selection = strong(model)
    cases = [
        (lambda: Intervention(selection, "delete"), "intervention 'delete': expected one of paper, zero"),
        (lambda: Intervention(selection, strength=float("nan")), "strength nan: expected a finite"),
        (lambda: Intervention(selection, branch="left"), "branch 'left': expected cond"),
        (lambda: Intervention(selection, mask=torch.ones(4, 4)), r"a mask is float32 \[4, 4\]: expected bool"),
        (lambda: Window.parse("50%:200"), "window '50%:200': expected timesteps such as 800:200"),
        (lambda: Window.parse("80%:20%"), "window 80%:20%: expected two parts"),
        (lambda: Window.parse("200:800"), "window 200:800: expected the noisier"),
        (lambda: attach(model.pipe, selection, saes=make_sae(), mode="exact"), "mode 'exact': expected one of paper"),
        (
            lambda: attach(model.pipe, Intervention(selection, "zero"), saes=make_sae(), mode="saeuron"),
            "mode saeuron has the paper's rule only, found 'zero'",
        ),
    ]
    for make, message in cases:
        with pytest.raises(UsageError, match=message) as caught:
            make()
        assert "\n" not in str(caught.value)


def test_several_concepts_saes_and_hooks_at_once_each_with_its_strength(model):
    saes = {"s": make_sae(3), "t": make_sae(5)}
    one = strong(model, features=[0, 3, 6, 9])
    other = strong(model, features=[30, 33, 36], concept="sketch")
    elsewhere = strong(model, hook="unet.up_blocks.1.attentions.0", sae="t", sae_hash="2", concept="mosaic")
    together = [Intervention(one, strength=-2.0), Intervention(other, strength=-9.0), Intervention(elsewhere, "zero")]
    x, found = first_call(model, together[:2], sae=saes)
    expected = dense(saes["s"], x[1], "paper", -2.0, [0, 3, 6, 9])
    expected = expected + dense(saes["s"], x[1], "paper", -9.0, [30, 33, 36]) - x[1]
    torch.testing.assert_close(found[1], expected, atol=2e-5, rtol=1e-5)
    x, found = first_call(model, together, hook="unet.up_blocks.1.attentions.0", sae=saes)
    torch.testing.assert_close(found[1], dense(saes["t"], x[1], "zero", 0, EVERY_THIRD), atol=2e-5, rtol=1e-5)
    assert edited_calls(model, together, sae=saes) == {0, 1, 2}


def test_attach_stays_until_detached_and_detaching_twice_is_harmless(model):
    plain = generate(model, RUN, ["a"], [0], "latent")[0]
    handle = attach(model.pipe, strong(model), saes=make_sae(3))
    edited = [generate(model, RUN, ["a"], [0], "latent")[0] for _ in range(2)]
    handle.detach()
    handle.detach()
    assert not torch.equal(edited[0], plain) and torch.equal(*edited)
    assert torch.equal(generate(model, RUN, ["a"], [0], "latent")[0], plain)


def test_under_autocast_the_sae_is_still_computed_in_float32(model, monkeypatch):
    sae, halves = make_sae(3), replace(model, autocast=torch.bfloat16)
    seen, pre_acts = [], sae.pre_acts
    monkeypatch.setattr(sae, "pre_acts", lambda *args: seen.append(pre_acts(*args)) or seen[-1])
    x, found = first_call(halves, Intervention(strong(model), strength=-3.0), sae=sae)
    assert seen and {values.dtype for values in seen} == {torch.float32}
    assert x.dtype == found.dtype == torch.bfloat16 and torch.equal(found[0], x[0])
    torch.testing.assert_close(found[1], dense(sae, x[1].float(), "paper", -3.0, EVERY_THIRD).bfloat16())


def reconstruction(sae, x):
    return sae.encode_dense(x) @ sae.W_dec + sae.b_dec


def test_without_the_error_the_reconstruction_takes_the_tensors_place(model):
    sae = make_sae(3)
    x, found = first_call(model, Intervention(strong(model), strength=-3.0), sae=sae, mode="no-error")
    expected = dense(sae, x[1], "paper", -3.0, EVERY_THIRD) - x[1] + reconstruction(sae, x[1])
    torch.testing.assert_close(found[1], expected, atol=2e-5, rtol=1e-5)
    nothing = strong(model, features=[])
    x, found = first_call(model, nothing, sae=sae, mode="no-error")
    torch.testing.assert_close(found[1], reconstruction(sae, x[1]), atol=2e-5, rtol=1e-5)
    assert torch.equal(found[0], x[0])
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[0] = True
    x, found = first_call(model, Intervention(nothing, mask=mask), sae=sae, mode="no-error")
    assert torch.equal(found[1][16:], x[1][16:])
    torch.testing.assert_close(found[1][:16], reconstruction(sae, x[1][:16]), atol=2e-5, rtol=1e-5)


def test_the_released_arithmetic_adds_the_error_with_the_wrong_sign_in_both_halves(model):
    sae = make_sae(3)
    x, found = first_call(model, strong(model, features=[]), sae=sae, mode="saeuron")
    for half in (0, 1):
        torch.testing.assert_close(found[half], 2 * reconstruction(sae, x[half]) - x[half], atol=2e-5, rtol=1e-5)
    x, found = first_call(model, Intervention(strong(model), strength=-3.0), sae=sae, mode="saeuron")
    for half in (0, 1):
        edited = dense(sae, x[half], "paper", -3.0, EVERY_THIRD) - x[half]
        expected = edited + 2 * reconstruction(sae, x[half]) - x[half]
        torch.testing.assert_close(found[half], expected, atol=3e-5, rtol=1e-5)


def test_the_released_arithmetic_counts_calls(model):
    """Five recorded steps, three called: the first three rows are used, not the nearest ones."""
    recorded = timesteps_of(model, 5)
    rows = [(2, f, 0.4, 0.0) for f in EVERY_THIRD]
    selection = make_selection(model, rows, recorded)
    ours = edited_calls(model, selection)
    assert ours == {1}  # 334 is nearest to the third recorded timestep
    sae = make_sae(3)
    plain, _ = captured_output(model, HOOK, RUN)
    with ablate(model.pipe, selection, saes=sae, mode="saeuron"):
        counted, _ = captured_output(model, HOOK, RUN)
        with pytest.raises(ModelError, match="mode saeuron counts calls and has statistics of 5 steps"):
            generate(model, RUN, ["a"], [0], "latent")
    x = positions(plain[0])
    torch.testing.assert_close(positions(counted[0]), 2 * reconstruction(sae, x) - x, atol=2e-5, rtol=1e-5)


def test_generate_attaches_the_released_arithmetic_anew_for_every_batch(model, tmp_path):
    sae, directory = make_sae(3), tmp_path / "s"
    save_sae(sae, directory)
    selection = strong(model, sae_hash=sae_files_hash(directory))
    prompts = [Prompt("a", seed, {}, 1) for seed in (0, 1, 0)]
    how = {"saes": [directory], "progress": None}
    images = list(generate_images(model, prompts, RUN, [Intervention(selection)], mode="saeuron", batch_size=1, **how))
    assert images[0].tobytes() == images[2].tobytes() != images[1].tobytes()
    other = strong(model, sae_hash="f" * 64)
    with pytest.raises(SelectionError, match=r"was made with SAE 's' \(ffffffffffff…\), .* is another"):
        list(generate_images(model, prompts, RUN, [Intervention(other)], **how))


@pytest.mark.parametrize("kind", ["paper", "zero", "clamp", "add", "replace"])
def test_gradients_flow_through_the_edit_as_through_the_dense_formula(model, kind):
    """The gradient of a weighted sum of the edited tensor, with respect to what the hooked module returned."""
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
    plain = generate(eager, run, ["a"], [0], "latent")[0]
    selection = strong(eager, n_steps=2)
    with ablate(eager.pipe, selection, saes=make_sae(3)):
        edited = generate(eager, run, ["a"], [0], "latent")[0]
    if part == "block":
        compiled.pipe.unet.up_blocks[1].compile(backend="eager")
    else:
        compiled.pipe.unet = torch.compile(compiled.pipe.unet, backend="eager")
    torch.testing.assert_close(generate(compiled, run, ["a"], [0], "latent")[0], plain)
    with ablate(compiled.pipe, selection, saes=make_sae(3)):
        torch.testing.assert_close(generate(compiled, run, ["a"], [0], "latent")[0], edited, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(generate(compiled, run, ["a"], [0], "latent")[0], plain)
    assert (edited - plain).abs().max() > 1e-2


def test_weights_that_are_elsewhere_between_calls(model_dir):
    """Offloading, as accelerate does it: ``forward`` is wrapped, and the weights are only there while it runs."""
    model = load_model(str(model_dir), "cpu")
    selection = strong(model)
    with ablate(model.pipe, selection, saes=make_sae(3)):
        edited = generate(model, RUN, ["a"], [0], "latent")[0]
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
        assert torch.equal(generate(model, RUN, ["a"], [0], "latent")[0], edited)
    fresh = load_model(str(model_dir), "cpu").pipe.unet.to("meta")
    with pytest.raises(ModelError, match="is kept where it cannot be read: use enable_model_cpu_offload"):
        model_hash(fresh)


@pytest.mark.gpu
@pytest.mark.parametrize("offload", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_offloaded_models_are_edited_as_resident_ones(model_dir, offload):
    model = load_model(str(model_dir), "cuda", "float32")
    selection = strong(model)  # Its hash is taken before the weights leave.
    plain = generate(model, RUN, ["a"], [0], "latent")[0]
    with ablate(model.pipe, selection, saes=make_sae(3)):
        edited = generate(model, RUN, ["a"], [0], "latent")[0]
    getattr(model.pipe, offload)()
    with ablate(model.pipe, selection, saes=make_sae(3)):
        found = generate(model, RUN, ["a"], [0], "latent")[0]
    torch.testing.assert_close(found.cpu(), edited.cpu(), atol=1e-4, rtol=1e-4)
    assert (edited - plain).abs().max() > 1e-2


@pytest.mark.gpu
@pytest.mark.parametrize(("kind", "dtype"), [("paper", "float32"), ("add", "float16")])
def test_what_is_compiled_for_cuda_is_edited(model_dir, kind, dtype):
    model = load_model(str(model_dir), "cuda", dtype)
    edit = Intervention(strong(model), kind=kind, strength=-1.0)
    plain = generate(model, RUN, ["a"], [0], "latent")[0].float()
    with ablate(model.pipe, edit, saes=make_sae(3)):
        edited = generate(model, RUN, ["a"], [0], "latent")[0].float()
    model.pipe.unet.up_blocks[1].compile()
    with ablate(model.pipe, edit, saes=make_sae(3)):
        found = generate(model, RUN, ["a"], [0], "latent")[0].float()
    size = (edited - plain).norm()
    assert size > 1e-2
    # Another rounding moves a latent over its threshold here and there, which the rule turns into a step.
    assert (found - edited).norm() < (0.3 if kind == "paper" else 0.02) * size
    assert (generate(model, RUN, ["a"], [0], "latent")[0].float() - plain).norm() < 0.02 * size


def test_attention_slicing_changes_nothing_about_the_edit(model_dir):
    model = load_model(str(model_dir), "cpu")
    x, found = first_call(model, strong(model))
    model.pipe.enable_attention_slicing()
    sliced_x, sliced = first_call(model, strong(model))
    torch.testing.assert_close(sliced_x, x, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sliced, found, atol=1e-4, rtol=1e-4)


def test_a_generation_that_starts_from_a_picture_uses_its_own_timesteps(model):
    """Half of the schedule is skipped: the rows of the timesteps that are left are used, not the first ones."""
    pipe = StableDiffusionImg2ImgPipeline(**model.pipe.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    timesteps = timesteps_of(model, 4)
    rows = [(3, f, 0.4, 0.0) for f in EVERY_THIRD]
    started = types.SimpleNamespace(pipe=pipe)

    def call():
        picture = torch.zeros(1, 3, 64, 64)
        pipe("a", image=picture, strength=0.5, num_inference_steps=4, output_type="latent",
             generator=torch.Generator().manual_seed(0))  # fmt: skip

    assert edited_calls(started, make_selection(model, rows, timesteps), call=call) == {1}
