"""The competitors against their formulas, on a tiny model."""

import copy
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from benchmarks.unlearning import adv_unlearn, esd, salun
from benchmarks.unlearning.diffusion import (
    embed,
    noised,
    predicted,
    sampled_until,
    training_target,
    with_weights,
)
from benchmarks.unlearning.mean_direction import Directions, mean_directions, steered_away
from benchmarks.unlearning.methods.random_features import random_selection
from featurestore.format.activations import read_shard
from featurestore.format.schemas import SCORES
from sae.diffusion.modules import find_module
from sae.diffusion.pipelines import RunSettings, generate, load_model
from tests.builders.pipelines import tiny_sd2
from tests.builders.saes import HOOK, make_store
from tests.builders.selections import make_selection, timesteps_of

RUN = RunSettings(3, 3.0)


@pytest.fixture(scope="module")
def pipe(model_dir):
    return load_model(str(model_dir), "cpu").pipe


def latents(n, seed=0):
    return torch.randn(n, 4, 16, 16, generator=torch.Generator().manual_seed(seed))


def test_what_a_model_is_trained_to_predict(tmp_path):
    """Noise, or the velocity of diffusers' scheduler."""
    x0, epsilon, t = latents(2), latents(2, 1), torch.tensor([100, 900])
    pipe = tiny_sd2(tmp_path)
    x = noised(pipe, x0, epsilon, t)
    torch.testing.assert_close(x, pipe.scheduler.add_noise(x0, epsilon, t))
    velocity = pipe.scheduler.get_velocity(x0, epsilon, t)
    torch.testing.assert_close(training_target(pipe, x0, epsilon, t), velocity)
    pipe.scheduler.register_to_config(prediction_type="epsilon")
    assert training_target(pipe, x0, epsilon, t) is epsilon


def test_a_prediction_is_the_unets_own(pipe):
    x, t = latents(2), torch.tensor([100, 900])
    with torch.no_grad():
        c = embed(pipe, ["a", "b"])
        own = pipe.unet(x, t, c, return_dict=False)[0]
        assert torch.equal(predicted(pipe.unet, x, t, c), own)
        alike = predicted(pipe.unet, x, t[:1].expand(2), c)
        torch.testing.assert_close(alike[0], own[0])


def test_sampling_until_the_end_is_the_pipelines_own(pipe):
    start = latents(1, 3)
    own = pipe(
        "ab", latents=start, num_inference_steps=4, guidance_scale=3.0, output_type="latent"
    ).images
    with torch.no_grad():
        c, empty = embed(pipe, ["ab"]), embed(pipe, [""])
    found, _ = sampled_until(pipe, pipe.unet, c, empty, 3.0, 4, 4, start)
    torch.testing.assert_close(found, own, atol=1e-4, rtol=1e-4)
    at_start, timestep = sampled_until(pipe, pipe.unet, c, empty, 3.0, 4, 0, start)
    pipe.scheduler.set_timesteps(4)
    assert torch.equal(at_start, start) and timestep.tolist() == [int(pipe.scheduler.timesteps[0])]


def test_the_loss_of_esd_is_its_formula(pipe):
    x, t = latents(1), torch.tensor([500])
    student = load_model_like(pipe)
    with torch.no_grad():
        c, empty = embed(pipe, ["cat"]), embed(pipe, [""])
        e_c, e_0 = (pipe.unet(x, t, e, return_dict=False)[0] for e in (c, empty))
        mine = student(x, t, c, return_dict=False)[0]
        expected = ((mine - (e_0 - 1.5 * (e_c - e_0))) ** 2).mean()
        found = esd.esd_loss(pipe, student, x, t, c, empty, 1.5)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def load_model_like(pipe):

    student = copy.deepcopy(pipe.unet)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(
                0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
            )
    return student


def test_esd_trains_the_cross_attention_only_and_moves_towards_its_target(pipe):
    before = {name: p.clone() for name, p in pipe.unet.state_dict().items()}
    settings = esd.ESDSettings(iterations=(5, 12), learning_rate=1e-3, n_steps=3)
    weights = esd.train_esd(pipe, ["cat"], settings)[12]
    assert weights and all(".attn2." in name for name in weights)
    assert all(
        not torch.equal(weights[name], before[name])
        for name in weights
        if name.endswith("to_v.weight")
    )
    assert all(torch.equal(p, before[name]) for name, p in pipe.unet.state_dict().items())
    with torch.no_grad():
        c, empty, x, t = embed(pipe, ["cat"]), embed(pipe, [""]), latents(8), torch.tensor([334])
        student = load_model_like(pipe)
        student.load_state_dict(before)
        far = [esd.esd_loss(pipe, student, y[None], t, c, empty, 1.0) for y in x]
        student.load_state_dict({**before, **weights})
        near = [esd.esd_loss(pipe, student, y[None], t, c, empty, 1.0) for y in x]
    assert sum(near) < sum(far)
    again = esd.train_esd(pipe, ["cat"], replace(settings, iterations=(5,)))
    earlier = esd.train_esd(pipe, ["cat"], settings)[5]
    assert all(torch.equal(earlier[name], again[5][name]) for name in weights)
    assert any(not torch.equal(earlier[name], weights[name]) for name in weights)


ADV = adv_unlearn.AdvUnlearnSettings(
    iterations=(2, 4), learning_rate=1e-3, n_steps=3, warm_up=1, attack_every=2, attack_steps=2, retained=2
)  # fmt: skip


def adv_training(pipe, **changed):
    return adv_unlearn._Training(pipe, replace(ADV, **changed))


def test_adv_unlearn_erases_what_a_prefix_asks_for_by_esds_formula(pipe):
    training = adv_training(pipe, eta=1.5)
    word = torch.randn(1, 2, pipe.text_encoder.config.hidden_size)
    with torch.no_grad():
        c, empty = embed(pipe, ["cat"]), embed(pipe, [""])
        for p in training.student.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    states = []
    handle = training.student.register_forward_hook(lambda m, a, out: states.append(out[0]))
    loss = training.erasing_loss("cat", c, word)
    handle.remove()
    ids = pipe.tokenizer("cat", padding="max_length", max_length=pipe.tokenizer.model_max_length, return_tensors="pt").input_ids  # fmt: skip
    table = training.student.get_input_embeddings()
    rows = torch.cat([table(ids)[:, :1], word, table(ids)[:, 1:-2]], 1)
    with torch.no_grad():
        given = table.register_forward_hook(lambda m, a, out: rows)
        expected_states = training.student(ids)[0]
        given.remove()
    torch.testing.assert_close(states[0], expected_states)
    again = adv_training(pipe)
    x, t = again.drawn(c)
    with torch.no_grad():
        e_c, e_0, mine = (
            pipe.unet(x, t, e, return_dict=False)[0] for e in (c, empty, expected_states)
        )
    expected = ((mine - (e_0 - 1.5 * (e_c - e_0))) ** 2).mean()
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-5)


def test_adv_unlearns_attack_brings_the_answers_nearer_to_the_untouched_ones(pipe):
    training = adv_training(pipe, attack_steps=40, attack_learning_rate=0.05, n_tokens=2)
    with torch.no_grad():
        c = embed(pipe, ["cat"])
        for p in training.student.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    start = torch.zeros(1, 2, pipe.text_encoder.config.hidden_size)
    found = training.attacked("cat", c, start)

    def far(prefix):
        training.generator.manual_seed(7)
        return sum(float(training.distance(training.asked("cat", prefix), c)) for _ in range(8))

    with torch.no_grad():
        assert far(found) < far(start)


def test_adv_unlearn_erases_behind_a_prefix_what_it_was_found_for(pipe, monkeypatch):
    found, erased, erasing_loss = {}, [], adv_unlearn._Training.erasing_loss

    def attacked(self, text, c, prefix):
        found[id(prefix)] = text
        return prefix

    def recorded(self, text, c, prefix):
        erased.append((text, prefix))
        return erasing_loss(self, text, c, prefix)

    monkeypatch.setattr(adv_unlearn._Training, "attacked", attacked)
    monkeypatch.setattr(adv_unlearn._Training, "erasing_loss", recorded)
    settings = replace(ADV, iterations=(12,), warm_up=3, seed=1)
    adv_unlearn.train_adv_unlearn(pipe, ["cat", "a cat", "cats"], ["tree"], settings)
    assert [prefix is None for _, prefix in erased] == [True] * 4 + [False] * 8
    assert all(found[id(prefix)] == text for text, prefix in erased[4:])
    assert len({text for text, _ in erased}) > 1 and len(found) == 4


def test_adv_unlearn_trains_the_text_encoder_without_its_embeddings(pipe):
    before = {name: p.clone() for name, p in pipe.text_encoder.state_dict().items()}
    weights = adv_unlearn.train_adv_unlearn(pipe, ["cat"], ["tree", "fish", "house"], ADV)
    assert list(weights) == [2, 4]
    names = {n for n, _ in pipe.text_encoder.named_parameters() if "embedding" not in n}
    assert set(weights[4]) == names
    assert any(not torch.equal(weights[4][name], before[name]) for name in names)
    assert any(not torch.equal(weights[4][name], weights[2][name]) for name in names)
    assert all(torch.equal(p, before[name]) for name, p in pipe.text_encoder.state_dict().items())
    again = adv_unlearn.train_adv_unlearn(pipe, ["cat"], ["tree", "fish", "house"], ADV)
    assert all(torch.equal(weights[4][name], again[4][name]) for name in names)


def examples(pipe, prompts, seed):
    return salun.Examples(latents(len(prompts), seed), prompts)


def test_the_saliency_mask_is_the_larger_half_of_the_summed_gradients(pipe):
    settings = salun.SalUnSettings(mask_batches=2, batch_size=3, seed=4)
    forget = examples(pipe, ["a", "b"], 0)
    mask = salun.saliency_mask(pipe, forget, settings)
    unet = load_model_like(pipe)
    unet.load_state_dict(pipe.unet.state_dict())
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        states, empty = embed(pipe, forget.prompts), embed(pipe, [""])
    for _ in range(2):
        rows = torch.randint(2, (3,), generator=generator)
        t = torch.randint(1000, (3,), generator=generator)
        epsilon = torch.randn(3, 4, 16, 16, generator=generator)
        x = pipe.scheduler.add_noise(forget.latents[rows], epsilon, t)
        wanted = unet(x, t, states[rows], return_dict=False)[0]
        without = unet(x, t, empty.expand(3, -1, -1), return_dict=False)[0]
        (-((epsilon - (8.5 * wanted - 7.5 * without)) ** 2).mean()).backward()
    sums = {name: p.grad.abs() for name, p in unet.named_parameters() if p.grad is not None}
    flat = torch.cat([s.flatten() for s in sums.values()]).sort().values
    median = flat[len(flat) // 2]
    n_kept = sum(int(m.sum()) for m in mask.values())
    assert abs(n_kept / len(flat) - 0.5) < 0.01
    clear = {name: (s > 1.01 * median, s < 0.99 * median) for name, s in sums.items()}
    assert all(
        mask[name][above].all() and not mask[name][below].any()
        for name, (above, below) in clear.items()
    )


def test_salun_changes_nothing_outside_of_its_mask(pipe):
    before = {name: p.clone() for name, p in pipe.unet.named_parameters()}
    settings = salun.SalUnSettings(
        iterations=(4,), batch_size=2, learning_rate=1e-3, mask_batches=2
    )
    forget, retain = examples(pipe, ["cat", "cat x"], 0), examples(pipe, ["tree", "fish"], 1)
    weights = salun.train_salun(pipe, forget, ["tree", "tree x"], retain, settings)[4]
    mask = salun.saliency_mask(pipe, forget, settings)
    assert all(torch.equal(p, before[name]) for name, p in pipe.unet.named_parameters())
    inside, outside = [], []
    for name, own in before.items():
        moved = weights[name] != own
        allowed = mask.get(name, torch.zeros_like(own, dtype=torch.bool))
        outside.append(int((moved & ~allowed).sum()))
        inside.append((int((moved & allowed).sum()), int(allowed.sum())))
    assert sum(outside) == 0
    assert sum(m for m, _ in inside) > 0.95 * sum(n for _, n in inside)


def test_the_loss_of_salun_is_its_formula_and_its_target_has_no_gradient(pipe):
    student = load_model_like(pipe)
    x, t = latents(2), torch.tensor([100, 700])
    with torch.no_grad():
        c, pseudo = embed(pipe, ["cat", "cat"]), embed(pipe, ["tree", "fish"])
    loss = salun.forget_loss(student, x, t, c, pseudo)
    loss.backward()
    got = next(
        p for n, p in student.named_parameters() if n.endswith("attn2.to_v.weight")
    ).grad.clone()
    student.zero_grad()
    target = student(x, t, pseudo, return_dict=False)[0].detach()
    expected = ((student(x, t, c, return_dict=False)[0] - target) ** 2).mean()
    expected.backward()
    torch.testing.assert_close(loss, expected)
    own = next(p for n, p in student.named_parameters() if n.endswith("attn2.to_v.weight")).grad
    torch.testing.assert_close(got, own)


def test_weights_are_put_back_whatever_happens(pipe):
    name = next(n for n, _ in pipe.unet.named_parameters())
    own = pipe.unet.state_dict()[name].clone()
    with pytest.raises(KeyError), with_weights(pipe.unet, {name: torch.zeros_like(own)}):
        assert not pipe.unet.state_dict()[name].any()
        raise KeyError
    assert torch.equal(pipe.unet.state_dict()[name], own)


def test_mean_directions_are_the_means_of_the_stored_activations(tmp_path):
    store = make_store(tmp_path / "store", n_shards=2)
    shards = [read_shard(store.root, r) for r in store.records(f"activations/{HOOK}")]
    ids = sorted({int(i) for s in shards for i in s.sample_id})
    labels = {i: "neon" if n % 2 else "sketch" for n, i in enumerate(ids)}
    rows = pa.table({"sample_id": ids, "style": [labels[i] for i in ids]})
    store.arrow = lambda table, columns: rows
    found = mean_directions(store, HOOK, "style", "neon")
    assert found.timesteps == (981.0, 961.0, 941.0)
    for step, timestep in enumerate(found.timesteps):
        sides = {True: [], False: []}
        for s in shards:
            for i in range(s.n_rows):
                if s.timestep[i] == timestep:
                    sides[labels[int(s.sample_id[i])] == "neon"].append(s.row(i).astype(np.float64))
        of, rest = (np.concatenate(sides[side]).mean(0) for side in (True, False))
        np.testing.assert_allclose(found.difference[step], of - rest, atol=1e-5)
        np.testing.assert_allclose(found.others[step], rest, atol=1e-5)


@pytest.mark.parametrize("project", [False, True])
def test_a_direction_is_taken_out_of_the_conditional_half(model, project):
    timesteps = tuple(timesteps_of(model))
    rng = torch.Generator().manual_seed(0)
    directions = Directions(
        HOOK, timesteps, torch.randn(3, 16, generator=rng), torch.randn(3, 16, generator=rng)
    )
    module = find_module(model.pipe, HOOK)
    own, left = [], []
    first = module.register_forward_hook(lambda m, a, out: own.append(out[0].clone()))
    with steered_away(model.pipe, directions, 1.5, project):
        last = module.register_forward_hook(lambda m, a, out: left.append(out[0].clone()))
        generate(model, RUN, ["a"], [0], output_type="latent")
        last.remove()
    first.remove()
    for step in range(3):
        x, y = own[step].permute(0, 2, 3, 1), left[step].permute(0, 2, 3, 1)
        assert torch.equal(x[0], y[0])
        d, m = directions.difference[step], directions.others[step]
        unit = d / d.norm()
        expected = x[1] - (
            1.5 * ((x[1] - m) @ unit).clamp_min(0)[..., None] * unit if project else 1.5 * d
        )
        torch.testing.assert_close(y[1], expected, atol=1e-4, rtol=1e-4)


def test_the_control_has_as_many_other_features_that_fire_at_the_same_steps(model):

    timesteps = timesteps_of(model)
    selection = make_selection(
        model, [(0, 5, 0.3, 0.1), (0, 6, 0.3, 0.1), (2, 7, 0.3, 0.1)], timesteps
    )
    rows = [
        {"family": "style", "concept": concept, "branch": "cond", "step": step, "timestep": timesteps[step], "feature": f,
         "score": f / 100, "mean_concept": f / 10, "mean_other": 0.0, "mean_all": f / 20}
        for concept in ("neon", "sketch") for step in range(3) for f in range(3, 12)
    ]  # fmt: skip
    scores = pa.Table.from_pylist(rows, schema=SCORES)
    found = [random_selection(selection, scores, seed) for seed in range(20)]
    for one in found:
        assert [r["step"] for r in one.rows.to_pylist()] == [0, 0, 2]
        assert not {5, 6} & {r["feature"] for r in one.rows.to_pylist() if r["step"] == 0}
        assert all(r["mean_all"] == r["feature"] / 20 for r in one.rows.to_pylist())
    assert len({tuple(one.rows["feature"].to_pylist()) for one in found}) > 10
    assert found[0].rows == random_selection(selection, scores, 0).rows
