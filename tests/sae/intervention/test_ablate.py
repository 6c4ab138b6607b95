import warnings

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore import Selection
from featurestore.errors import HookError, SelectionError, UsageError
from sae.diffusion.pipelines import RunSettings, generate
from sae.intervention.ablate import ablate
from sae.intervention.rules import Rule, join, paper_rule, rules_change
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


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(0, 6), strength=st.sampled_from([-30.0, -5.0, -1.0, 0.0, 2.0]))
def test_the_shortcut_equals_the_formula_applied_densely(seed, n, strength):
    sae = make_sae(seed)
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.standard_normal((50, D_IN)).astype(np.float32))
    features = rng.choice(N_LATENTS, n, replace=False)
    concept, everything = rng.random(n).astype(np.float32), (rng.random(n) * 0.5).astype(np.float32)
    features, concept, everything = (torch.from_numpy(part) for part in (features, concept, everything))
    rule = Rule(features, strength * concept, everything)
    changed = x.clone()
    if n:
        rows, change = rules_change(sae, x, join([rule]))
        changed[rows] += change
    expected = paper_rule(sae, x, features, strength=strength, mean_concept=concept, mean_all=everything)
    torch.testing.assert_close(changed, expected, atol=1e-5, rtol=1e-5)


def test_of_two_edits_of_one_feature_the_larger_holds():
    sae, x = make_sae(), torch.randn(200, D_IN)
    weak, strong = (Rule(torch.tensor([3, 9]), torch.full((2,), factor), torch.zeros(2)) for factor in (-1.0, -4.0))
    for rules in ([weak, strong], [strong, weak]):
        both, alone = rules_change(sae, x, join(rules)), rules_change(sae, x, join([strong]))
        assert torch.equal(both[0], alone[0])
        torch.testing.assert_close(both[1], alone[1])


def test_an_empty_selection_changes_nothing_bit_for_bit(model):
    timesteps = timesteps_of(model)
    plain = generate(model, RUN, ["a", "b"], [0, 1], "latent")
    for rows in ([], [(0, 5, 0.3, 1e9)]):
        with ablate(model.pipe, make_selection(model, rows, timesteps), strength=-5.0, saes=make_sae()):
            edited = generate(model, RUN, ["a", "b"], [0, 1], "latent")
        assert all(torch.equal(a, b) for a, b in zip(plain, edited, strict=True))


@pytest.mark.parametrize("branch", ["cond", "uncond"])
def test_a_generation_is_edited_by_the_rule_in_its_half_only(model, branch):
    timesteps = timesteps_of(model)
    sae = make_sae(3)
    rows = [(step, feature, 0.2 + 0.1 * step, 0.01) for step in range(3) for feature in range(0, N_LATENTS, 3)]
    selection = make_selection(model, rows, timesteps, branch=branch)
    before, _ = captured_output(model, HOOK, RUN)
    with ablate(model.pipe, selection, strength=-5.0, saes=sae):
        after, _ = captured_output(model, HOOK, RUN)
    half = {"uncond": 0, "cond": 1}[branch]
    x, found = before[0], after[0]  # The first call: the same input with and without the edit.
    flat = x[half].permute(1, 2, 0).reshape(-1, D_IN)
    means = {"mean_concept": torch.tensor(0.2), "mean_all": torch.tensor(0.01)}
    expected = paper_rule(sae, flat, torch.arange(0, N_LATENTS, 3), strength=-5.0, **means)
    torch.testing.assert_close(found[half].permute(1, 2, 0).reshape(-1, D_IN), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(found[1 - half], x[1 - half])
    assert not torch.equal(found[half], x[half])


def used_timesteps(model, selection, run, monkeypatch, generations=1):
    """The recorded timesteps that were looked up, in the order of first use within each generation."""
    used = []
    original = Selection.at
    monkeypatch.setattr(
        Selection,
        "at",
        lambda self, t, n=0: used.append((t, original(self, t, n).timestep)) or original(self, t, n),
    )
    with ablate(model.pipe, selection, strength=-5.0, saes=make_sae()):
        results = [generate(model, run, ["a"], [0], "latent")[0] for _ in range(generations)]
    return used, results


def test_a_second_generation_in_the_same_context_is_the_same(model, monkeypatch):
    timesteps = timesteps_of(model)
    selection = make_selection(model, [(s, 5 * s + 1, 1.0, 0.0) for s in range(3)], timesteps)
    used, (first, second) = used_timesteps(model, selection, RUN, monkeypatch, generations=2)
    assert torch.equal(first, second)
    assert used == [(t, t) for t in timesteps]


@pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")
@pytest.mark.parametrize("scheduler", [DDIMScheduler, EulerDiscreteScheduler])
@pytest.mark.parametrize("n_steps", [3, 5])
def test_other_step_counts_and_schedulers_use_the_nearest_timesteps(model, monkeypatch, scheduler, n_steps):
    recorded = timesteps_of(model)
    selection = make_selection(model, [(s, s, 1.0, 0.0) for s in range(3)], recorded)
    own = model.pipe.scheduler
    monkeypatch.setattr(model.pipe, "scheduler", scheduler.from_config(own.config))
    used, _ = used_timesteps(model, selection, RunSettings(n_steps, 3.0), monkeypatch)
    called = [float(t) for t in model.pipe.scheduler.timesteps]
    assert [t for t, _ in used] == pytest.approx(called)
    assert [nearest for _, nearest in used] == [min(recorded, key=lambda r: (abs(r - t), -r)) for t in called]


def test_without_guidance_there_is_only_the_conditional_half(model):
    timesteps = timesteps_of(model)
    rows = [(s, f, 1.0, 0.0) for s in range(3) for f in range(N_LATENTS)]
    plain = generate(model, RunSettings(3, 1.0), ["a"], [0], "latent")[0]
    with ablate(model.pipe, make_selection(model, rows, timesteps), strength=-5.0, saes=make_sae()):
        assert not torch.equal(generate(model, RunSettings(3, 1.0), ["a"], [0], "latent")[0], plain)
    with ablate(model.pipe, make_selection(model, rows, timesteps, branch="uncond"), strength=-5.0, saes=make_sae()):
        assert torch.equal(generate(model, RunSettings(3, 1.0), ["a"], [0], "latent")[0], plain)


@pytest.mark.parametrize("io", ["input", "difference"])
def test_input_and_difference_hooks_edit_what_they_saw(model, io):
    timesteps = timesteps_of(model)
    rows = [(s, f, 0.5, 0.0) for s in range(3) for f in range(N_LATENTS)]
    before, _ = captured_output(model, HOOK, RUN)
    with ablate(model.pipe, make_selection(model, rows, timesteps, io=io), strength=-5.0, saes=make_sae()):
        after, _ = captured_output(model, HOOK, RUN)
    assert not torch.equal(before[0][1], after[0][1])
    assert torch.equal(before[0][0], after[0][0])


def test_hooks_are_removed_whatever_happens(model):
    plain = generate(model, RUN, ["a"], [0], "latent")[0]
    selection = make_selection(model, [(0, f, 1.0, 0.0) for f in range(N_LATENTS)], timesteps_of(model))
    with pytest.raises(KeyError), ablate(model.pipe, selection, strength=-5.0, saes=make_sae()):
        raise KeyError
    assert torch.equal(generate(model, RUN, ["a"], [0], "latent")[0], plain)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models_are_edited_in_their_precision(model_dir, dtype):
    from sae.diffusion.pipelines import load_model

    half = load_model(str(model_dir), "cpu", str(dtype).removeprefix("torch."))
    rows = [(s, f, 0.3, 0.0) for s in range(3) for f in range(N_LATENTS)]
    selection = make_selection(half, rows, timesteps_of(half))
    plain = generate(half, RUN, ["a"], [0], "latent")[0]
    with ablate(half.pipe, selection, strength=-5.0, saes=make_sae()):
        edited = generate(half, RUN, ["a"], [0], "latent")[0]
    assert edited.dtype == plain.dtype == dtype
    assert edited.isfinite().all()
    assert not torch.equal(edited, plain)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_ablation_on_cuda(model_dir, dtype):
    from sae.diffusion.pipelines import load_model

    cuda = load_model(str(model_dir), "cuda", dtype)
    selection = make_selection(cuda, [(s, f, 0.3, 0.0) for s in range(3) for f in range(N_LATENTS)], timesteps_of(cuda))
    plain = generate(cuda, RUN, ["a"], [0], "latent")[0]
    with ablate(cuda.pipe, make_selection(cuda, [], timesteps_of(cuda)), strength=-5.0, saes=make_sae()):
        assert torch.equal(generate(cuda, RUN, ["a"], [0], "latent")[0], plain)
    with ablate(cuda.pipe, selection, strength=-5.0, saes=make_sae()):
        assert not torch.equal(generate(cuda, RUN, ["a"], [0], "latent")[0], plain)


def test_a_model_in_another_precision_is_the_same_model(model, model_dir):
    from sae.diffusion.pipelines import load_model

    for dtype in ("float16", "bfloat16"):
        other = load_model(str(model_dir), "cpu", dtype)
        with ablate(other.pipe, make_selection(model, [], timesteps_of(model)), strength=-5.0, saes=make_sae()):
            pass


def test_selections_for_something_else_are_refused(model, tmp_path):
    timesteps = timesteps_of(model)
    cases = [
        ({"model_hash": "f16:123"}, SelectionError, "was made for the weights of model 'tiny'"),
        (
            {"hook": "unet.up_blocks.1.attentions.9"},
            HookError,
            r"no module 'unet\.up_blocks\.1\.attentions\.9'\. Did you mean",
        ),
        ({"d_in": 17}, SelectionError, "d_in 17 and 64 latents, this SAE has 16 and 64"),
    ]
    for changes, error, message in cases:
        with (
            pytest.raises(error, match=message) as caught,
            ablate(model.pipe, make_selection(model, [], timesteps, **changes), strength=-5.0, saes=make_sae()),
        ):
            pass
        assert "\n" not in str(caught.value)
    with (
        pytest.raises(SelectionError, match="where there is no store"),
        ablate(model.pipe, make_selection(model, [], timesteps)),
    ):
        pass
    with pytest.raises(UsageError, match="no selection"), ablate(model.pipe, []):
        pass


def test_a_timestep_far_from_all_recorded_ones_is_warned_about(model):
    selection = make_selection(model, [(0, 1, 1.0, 0.0)], [981.0])
    with (
        pytest.warns(UserWarning, match=r"has no timestep near 667; the nearest, 981"),
        ablate(model.pipe, selection, strength=-5.0, saes=make_sae()),
    ):
        generate(model, RUN, ["a"], [0], "latent")
    with (
        warnings.catch_warnings(),
        ablate(model.pipe, make_selection(model, [], timesteps_of(model)), strength=-5.0, saes=make_sae()),
    ):
        warnings.simplefilter("error")
        generate(model, RUN, ["a"], [0], "latent")
