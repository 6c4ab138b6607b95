"""What passes a hook is edited by the formulas of docs/ablation.md, at the timesteps of the
calls."""

import types
import warnings

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, StableDiffusionImg2ImgPipeline

from featurestore import Selection
from featurestore.errors import ModelError
from sae.diffusion.pipelines import RunSettings, generate
from sae.intervention.ablate import ablate
from sae.intervention.rules import paper_rule
from sae.intervention.settings import Intervention
from tests.builders.edits import (
    EVERY_THIRD,
    dense,
    edited_calls,
    first_call,
    positions,
    reconstruction,
    strong,
)
from tests.builders.selections import (
    D_IN,
    HOOK,
    N_LATENTS,
    RUN,
    K,
    captured_output,
    make_sae,
    make_selection,
    timesteps_of,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")


@pytest.mark.parametrize("branch", ["cond", "uncond"])
def test_a_generation_is_edited_by_the_rule_in_its_half_only(model, branch):
    timesteps = timesteps_of(model)
    sae = make_sae(3)
    rows = [
        (step, feature, 0.2 + 0.1 * step, 0.01)
        for step in range(3)
        for feature in range(0, N_LATENTS, 3)
    ]
    selection = make_selection(model, rows, timesteps, branch=branch)
    before, _ = captured_output(model, HOOK, RUN)
    with ablate(model.pipe, selection, strength=-5.0, saes=sae):
        after, _ = captured_output(model, HOOK, RUN)
    half = {"uncond": 0, "cond": 1}[branch]
    x, found = before[0], after[0]  # The first call: the same input with and without the edit.
    flat = x[half].permute(1, 2, 0).reshape(-1, D_IN)
    means = {"mean_concept": torch.tensor(0.2), "mean_all": torch.tensor(0.01)}
    expected = paper_rule(sae, flat, torch.arange(0, N_LATENTS, 3), strength=-5.0, **means)
    torch.testing.assert_close(
        found[half].permute(1, 2, 0).reshape(-1, D_IN), expected, atol=1e-5, rtol=1e-5
    )
    assert torch.equal(found[1 - half], x[1 - half])
    assert not torch.equal(found[half], x[half])


def used_timesteps(model, selection, run, monkeypatch, generations=1):
    """The recorded timesteps that were looked up, in the order of first use within each
    generation."""
    used = []
    original = Selection.at
    monkeypatch.setattr(
        Selection,
        "at",
        lambda self, t, n=0: (
            used.append((t, original(self, t, n).timestep)) or original(self, t, n)
        ),
    )
    with ablate(model.pipe, selection, strength=-5.0, saes=make_sae()):
        results = [
            generate(model, run, ["a"], [0], output_type="latent")[0] for _ in range(generations)
        ]
    return used, results


def test_the_timestep_is_known_without_reading_the_tensor(model, monkeypatch):
    """Reading it would wait for a GPU at every step; its value must be the same."""
    timesteps = timesteps_of(model)
    selection = make_selection(model, [(s, 5 * s + 1, 1.0, 0.0) for s in range(3)], timesteps)
    monkeypatch.setattr(
        "sae.diffusion.reading.steps.scalar", lambda timestep: pytest.fail("the timestep was read")
    )
    used, _ = used_timesteps(model, selection, RUN, monkeypatch)
    assert used == [(t, t) for t in timesteps]


def test_a_second_generation_in_the_same_context_is_the_same(model, monkeypatch):
    timesteps = timesteps_of(model)
    selection = make_selection(model, [(s, 5 * s + 1, 1.0, 0.0) for s in range(3)], timesteps)
    used, (first, second) = used_timesteps(model, selection, RUN, monkeypatch, generations=2)
    assert torch.equal(first, second)
    assert used == [(t, t) for t in timesteps]


@pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")
@pytest.mark.parametrize("scheduler", [DDIMScheduler, EulerDiscreteScheduler])
@pytest.mark.parametrize("n_steps", [3, 5])
def test_other_step_counts_and_schedulers_use_the_nearest_timesteps(
    model, monkeypatch, scheduler, n_steps
):
    recorded = timesteps_of(model)
    selection = make_selection(model, [(s, s, 1.0, 0.0) for s in range(3)], recorded)
    own = model.pipe.scheduler
    monkeypatch.setattr(model.pipe, "scheduler", scheduler.from_config(own.config))
    used, _ = used_timesteps(model, selection, RunSettings(n_steps, 3.0), monkeypatch)
    called = [float(t) for t in model.pipe.scheduler.timesteps]
    assert [t for t, _ in used] == pytest.approx(called)
    assert [nearest for _, nearest in used] == [
        min(recorded, key=lambda r: (abs(r - t), -r)) for t in called
    ]


@pytest.mark.parametrize("io", ["input", "difference"])
def test_input_and_difference_hooks_edit_what_they_saw(model, io):
    timesteps = timesteps_of(model)
    rows = [(s, f, 0.5, 0.0) for s in range(3) for f in range(N_LATENTS)]
    before, _ = captured_output(model, HOOK, RUN)
    with ablate(
        model.pipe, make_selection(model, rows, timesteps, io=io), strength=-5.0, saes=make_sae()
    ):
        after, _ = captured_output(model, HOOK, RUN)
    assert not torch.equal(before[0][1], after[0][1])
    assert torch.equal(before[0][0], after[0][0])


def test_a_timestep_far_from_all_recorded_ones_is_warned_about(model):
    selection = make_selection(model, [(0, 1, 1.0, 0.0)], [981.0])
    with (
        pytest.warns(UserWarning, match=r"has no timestep near 667; the nearest, 981"),
        ablate(model.pipe, selection, strength=-5.0, saes=make_sae()),
    ):
        generate(model, RUN, ["a"], [0], output_type="latent")
    with (
        warnings.catch_warnings(),
        ablate(
            model.pipe,
            make_selection(model, [], timesteps_of(model)),
            strength=-5.0,
            saes=make_sae(),
        ),
    ):
        warnings.simplefilter("error")
        generate(model, RUN, ["a"], [0], output_type="latent")


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


def test_of_two_clamps_the_larger_edit_holds_and_steering_adds_up(model):
    sae, selection = make_sae(3), strong(model, features=[0, 3, 6])
    one = first_call(model, [Intervention(selection, "clamp", -4.0)], sae=sae)[1]
    both = first_call(
        model, [Intervention(selection, "zero"), Intervention(selection, "clamp", -4.0)], sae=sae
    )[1]
    torch.testing.assert_close(both, one)
    x, twice = first_call(
        model, [Intervention(selection, "add", 1.0), Intervention(selection, "add", 2.0)], sae=sae
    )
    torch.testing.assert_close(
        twice[1], dense(sae, x[1], "add", 3.0, [0, 3, 6]), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("mode", ["paper", "saeuron"])
def test_a_repeated_timestep_has_the_features_of_its_own_step(model, mode, monkeypatch):
    """Issue 17, item 6: PNDM asks twice at its second timestep; what was recorded there first was
    used both times."""
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
        assert [torch.equal(a, b) for a, b in zip(edited, nothing, strict=True)] == [
            True,
            True,
            False,
            False,
        ]


def test_the_released_arithmetic_writes_one_concept_over_another(model):
    """Issue 17, item 6: where concepts share a feature the last one's value holds, not the larger
    edit."""
    sae, shared = make_sae(3), [0, 3, 6]
    large, small = (Intervention(strong(model, features=shared), strength=s) for s in (-9.0, -2.0))
    for several, holds in (([large, small], -2.0), ([small, large], -9.0)):
        x, found = first_call(model, several, sae=sae, mode="saeuron")
        edited = dense(sae, x[1], "paper", holds, shared) - x[1]
        expected = edited + 2 * reconstruction(sae, x[1]) - x[1]
        torch.testing.assert_close(found[1], expected, atol=5e-5, rtol=1e-5)


def test_beyond_k_a_feature_counts_that_others_crowd_out(model):
    sae = make_sae(3)
    x, found = first_call(
        model, Intervention(strong(model), strength=-3.0), sae=sae, mode="beyond-k"
    )
    f = (x[1] - sae.b_dec) @ sae.W_enc[EVERY_THIRD].T + sae.b_enc[EVERY_THIRD]
    growth = torch.where(f > 0.05, -3.0 * 0.4 - 1, 0.0)
    expected = x[1] + (growth * f) @ sae.W_dec[EVERY_THIRD]
    torch.testing.assert_close(found[1], expected, atol=2e-5, rtol=1e-5)
    among_k = dense(sae, x[1], "paper", -3.0, EVERY_THIRD)
    assert not torch.allclose(found[1], among_k, atol=1e-2)  # Some were crowded out.
    assert sae.config.k == K and torch.equal(found[0], x[0])


def test_without_the_error_the_reconstruction_takes_the_tensors_place(model):
    sae = make_sae(3)
    x, found = first_call(
        model, Intervention(strong(model), strength=-3.0), sae=sae, mode="no-error"
    )
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
        torch.testing.assert_close(
            found[half], 2 * reconstruction(sae, x[half]) - x[half], atol=2e-5, rtol=1e-5
        )
    x, found = first_call(
        model, Intervention(strong(model), strength=-3.0), sae=sae, mode="saeuron"
    )
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
        with pytest.raises(
            ModelError, match="mode saeuron counts calls and has statistics of 5 steps"
        ):
            generate(model, RUN, ["a"], [0], output_type="latent")
    x = positions(plain[0])
    torch.testing.assert_close(
        positions(counted[0]), 2 * reconstruction(sae, x) - x, atol=2e-5, rtol=1e-5
    )


def test_a_generation_that_starts_from_a_picture_uses_its_own_timesteps(model):
    """Half of the schedule is skipped: the rows of the timesteps that are left are used, not the
    first ones."""
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
