"""Which timesteps and positions an intervention covers, and the settings that it refuses."""

import pytest
import torch

from featurestore.errors import UsageError
from sae.diffusion.modules import find_module
from sae.diffusion.pipelines import RunSettings, generate
from sae.intervention.ablate import ablate, attach
from sae.intervention.settings import Intervention, Window
from tests.builders.architectures import CASES
from tests.builders.edits import EVERY_THIRD, dense, edited_calls, first_call, strong
from tests.builders.selections import (
    HOOK,
    RUN,
    captured_output,
    make_sae,
    make_selection,
    timesteps_of,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")


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
        (
            "2000:1500",
            "window 2000:1500: none of the 3 steps is in it, their timesteps are 667 to 1",
        ),
        ("10%:40%", "window 10%:40%: none of the 3 steps is in it, their timesteps are 667 to 1"),
    ],
)
def test_a_window_without_a_step_is_an_error(window, message, model):
    """Fault C6: it did nothing, without a word."""
    with pytest.raises(UsageError, match=message):
        edited_calls(model, Intervention(strong(model), window=Window.parse(window)))


@pytest.mark.filterwarnings("ignore:the selection style=neon has no timestep near")
def test_parts_of_a_schedule_of_continuous_timesteps(model, monkeypatch):
    """Fault C6: EDM's timesteps are ln(σ) / 4, at most 1.1: as parts of num_train_timesteps they
    were all at 100 %."""
    from diffusers import EDMEulerScheduler

    monkeypatch.setattr(model.pipe, "scheduler", EDMEulerScheduler(prediction_type="epsilon"))
    run, selection = RunSettings(5, 3.0), strong(model)
    assert edited_calls(
        model, Intervention(selection, "zero", window=Window.parse("0%:50%")), run
    ) == {0, 1, 2}
    assert edited_calls(
        model, Intervention(selection, "zero", window=Window.parse("75%:100%")), run
    ) == {3, 4}


@pytest.mark.parametrize("threshold", [0, 1, 2])
def test_a_threshold_is_a_multiple_of_the_features_means(model, threshold):
    """0: wherever a feature fires; 1: above its mean, as published; 2: above twice its mean."""
    rows = [(step, f, 0.4, 0.8) for step in range(3) for f in EVERY_THIRD]
    selection = make_selection(model, rows, timesteps_of(model))
    x, found = first_call(model, Intervention(selection, strength=-2.0, threshold=threshold))
    expected = dense(make_sae(3), x[1], "paper", -2.0, EVERY_THIRD, everything=threshold * 0.8)
    torch.testing.assert_close(found[1], expected, atol=1e-4, rtol=1e-4)
    edited = int((found[1] != x[1]).any(1).sum())
    others = [
        dense(make_sae(3), x[1], "paper", -2.0, EVERY_THIRD, everything=t * 0.8)
        for t in (0, 1, 2)
        if t != threshold
    ]
    assert edited and all((expected - other).abs().max() > 0.01 for other in others)


def test_what_is_taken_out_becomes_what_is_kept_where_it_is_taken_out(model):
    timesteps, own, kept = timesteps_of(model), EVERY_THIRD[:4], EVERY_THIRD[10:14]
    removed = make_selection(model, [(s, f, 0.4, 0.05) for s in range(3) for f in own], timesteps)
    means = [(s, f, 0.8, 0.1) for s in range(3) for f in kept]
    toward = make_selection(model, means, timesteps, concept="sketch")
    edit = Intervention(removed, "zero", toward=toward, pull=2.0)
    x, found = first_call(model, edit)
    f = make_sae(3).encode_dense(x[1])
    edited, changed = f.clone(), (f[:, own] > 0).any(1)
    edited[:, own] = 0
    assert 0 < int(changed.sum()) < len(x[1])
    for latent in kept:
        edited[changed, latent] = f[changed, latent].clamp_min(2.0 * 0.8)
    expected = x[1] + (edited - f) @ make_sae(3).W_dec
    torch.testing.assert_close(found[1], expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(found[1][~changed], x[1][~changed])
    told = edit.described()
    assert (told["toward"]["concept"], told["pull"]) == ("sketch", 2.0)
    assert "toward" not in Intervention(removed).described()


def test_wrong_towards_are_one_line(model):
    timesteps = timesteps_of(model)
    own = make_selection(model, [(0, 1, 0.4, 0.1)], timesteps)
    kept = make_selection(model, [(0, 2, 0.4, 0.1)], timesteps, concept="sketch")
    other = make_selection(model, [(0, 2, 0.4, 0.1)], timesteps, sae="b", sae_hash="2" * 20)
    cases = [
        ({"kind": "add", "toward": kept}, r"'add' changes no activation .* paper, zero, clamp"),
        ({"toward": kept, "pull": -1.0}, r"^pull -1.0: expected 0 or more"),
        ({"toward": other}, r"towards style=neon: its features are of SAE 'b' \(222222222222…\)"),
    ]
    for given, message in cases:
        with pytest.raises(UsageError, match=message):
            Intervention(own, **given)
    with (
        pytest.raises(UsageError, match="the paper's rule only: nothing is edited towards"),
        ablate(model.pipe, Intervention(own, toward=kept), saes=make_sae(3), mode="saeuron"),
    ):
        pass


def test_a_mask_limits_the_positions(model):
    height = find_map(model)
    mask = torch.zeros(height, height, dtype=torch.bool)
    mask[2:5, 1] = True
    pixels = mask.repeat_interleave(4, 0).repeat_interleave(4, 1)
    one_pixel_each = (
        pixels & (torch.arange(4 * height) % 4 == 3)[:, None] & (torch.arange(4 * height) % 4 == 0)
    )
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
    for name, guidance in (("SD3", "one call"), ("FLUX", "none")):
        model, run = architectures(name), CASES[name].guidance[guidance]
        generate(model, run, ["a"], [0], output_type="latent")
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
    """The image stream that a joint block returns in the first call for the conditional half,
    ``[tokens, channels]``."""
    seen = []
    keep = lambda: find_module(model.pipe, hook).register_forward_hook(  # noqa: E731
        lambda m, a, out: seen.append(out[1].clone())
    )
    handle = attach(model.pipe, intervention, saes=make_sae(3)) if intervention else None
    last = keep()
    try:
        generate(model, run, ["a"], [0], output_type="latent")
    finally:
        last.remove()
        if handle:
            handle.detach()
    return seen[0][-1]


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (
            (7, 7),
            r"the mask is 7 × 7, 'unet\.up_blocks\.1\.attentions\.1' has a map of 16 × 16: "
            r"expected that size",
        ),
        ((8, 32), "the mask is 8 × 32"),
        ((16, 32), "the mask is 16 × 32"),
        ((8, 8), "the mask is 8 × 8"),
    ],
)
def test_a_mask_of_the_wrong_size_is_one_line(model, shape, message):
    intervention = Intervention(strong(model), mask=torch.ones(shape, dtype=torch.bool))
    with (
        pytest.raises(UsageError, match=message) as caught,
        ablate(model.pipe, intervention, saes=make_sae(3)),
    ):
        generate(model, RUN, ["a"], [0], output_type="latent")
    assert "\n" not in str(caught.value)


def test_wrong_settings_are_one_line(model):
    selection = strong(model)
    cases = [
        (
            lambda: Intervention(selection, "delete"),
            "intervention 'delete': expected one of paper, zero",
        ),
        (lambda: Intervention(selection, strength=float("nan")), "strength nan: expected a finite"),
        (
            lambda: Intervention(selection, threshold=-1),
            "threshold -1: expected 0 or more, in multiples of the features'",
        ),
        (lambda: Intervention(selection, branch="left"), "branch 'left': expected one of cond"),
        (
            lambda: Intervention(selection, mask=torch.ones(4, 4)),
            r"a mask is float32 \[4, 4\]: expected bool",
        ),
        (lambda: Window.parse("50%:200"), "window '50%:200': expected timesteps such as 800:200"),
        (lambda: Window.parse("80%:20%"), "window 80%:20%: expected two parts"),
        (lambda: Window.parse("200:800"), "window 200:800: expected the noisier"),
        (
            lambda: attach(model.pipe, selection, saes=make_sae(), mode="exact"),
            "mode 'exact': expected one of paper",
        ),
        (
            lambda: attach(
                model.pipe, Intervention(selection, "zero"), saes=make_sae(), mode="saeuron"
            ),
            "mode saeuron has the paper's rule only, found 'zero'",
        ),
    ]
    for make, message in cases:
        with pytest.raises(UsageError, match=message) as caught:
            make()
        assert "\n" not in str(caught.value)
