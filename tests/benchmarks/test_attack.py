"""The attack's parts against their definitions; its gradient goes through the defence, at the right timestep."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.unlearning.attack import (
    Attack,
    AttackSettings,
    attack,
    attack_loss,
    attacked_timesteps,
    guided_prediction,
    prefixed_ids,
    prefixed_states,
    project,
    success_rates,
)
from benchmarks.unlearning.diffusion import embed, noise, tokens
from sae.diffusion import direct_calls
from sae.diffusion.modules import find_module
from sae.diffusion.pipelines import load_model
from sae.intervention.ablate import ablate
from tests.builders.selections import HOOK, N_LATENTS, make_sae, make_selection

TARGET = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def attacked(model_dir):
    """A model whose pictures depend on the text much more than a random one's do."""
    loaded = load_model(str(model_dir), "cpu")
    with torch.no_grad():
        for name, parameter in loaded.pipe.unet.named_parameters():
            if "attn2.to_out" in name or "attn2.to_v" in name:
                parameter.mul_(12)
    loaded.pipe.unet.requires_grad_(False)
    return loaded


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_prefix(pipe, k=3, seed=0):
    table = pipe.text_encoder.get_input_embeddings().weight.detach()
    return table[torch.randint(len(table), (k,), generator=generator(seed))].clone()


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(2, 12), scale=st.sampled_from([0.01, 1.0, 30.0]))
def test_projection_gives_the_nearest_point_of_the_simplex(seed, n, scale):
    rng = np.random.default_rng(seed)
    row = torch.from_numpy(rng.standard_normal((1, n)) * scale)
    found = project(row)
    assert found.min() >= 0 and float(found.sum()) == pytest.approx(1)
    others = torch.from_numpy(rng.dirichlet(np.full(n, 0.3), 300))
    corners = torch.eye(n, dtype=torch.float64)
    nearest = (found - row).square().sum()
    assert all(nearest <= (other - row).square().sum() + 1e-9 for other in (*others, *corners))


def test_a_prefix_of_embeddings_is_a_prefix_of_tokens(attacked):
    pipe = attacked.pipe
    ids, prefix = tokens(pipe, ["a cat"]), torch.tensor([7, 30, 90])
    table = pipe.text_encoder.get_input_embeddings().weight
    with torch.no_grad():
        states = prefixed_states(pipe, ids, table[prefix])
        longer = prefixed_ids(ids, prefix)
        torch.testing.assert_close(states, pipe.text_encoder(longer)[0])
        assert torch.equal(pipe.text_encoder(ids)[0], embed(pipe, ["a cat"]))  # the hook is gone
    assert longer.shape == ids.shape
    assert longer[0, :6].tolist() == [int(ids[0, 0]), 7, 30, 90, *ids[0, 1:3].tolist()]


def selection_at(model, timesteps, step):
    """Many features at one step only."""
    return make_selection(model, [(step, f, 0.9, 0.0) for f in range(N_LATENTS)], timesteps)


def test_the_gradient_flows_through_the_defence(attacked):
    """It is that of a dense formula in the hook's place, which is not the undefended model's."""
    pipe = attacked.pipe
    ids, prefix, sae = tokens(pipe, ["cat"]), random_prefix(pipe).requires_grad_(), make_sae(3)

    def gradient():
        (grad,) = torch.autograd.grad(attack_loss(pipe, ids, prefix, TARGET, 500, generator()), [prefix])
        return grad

    def formula(module, args, output):
        x = output[0].permute(0, 2, 3, 1)
        z = sae.encode_dense(x.reshape(-1, x.shape[-1]))
        change = (-2.0 * 0.9 * z - z) @ sae.W_dec
        return ((x + change.view(x.shape)).permute(0, 3, 1, 2),)

    plain = gradient()
    with ablate(pipe, selection_at(attacked, [500.0], 0), strength=-2.0, saes=sae):
        defended = gradient()
    handle = find_module(pipe, HOOK).register_forward_hook(formula)
    expected = gradient()
    handle.remove()
    torch.testing.assert_close(defended, expected, atol=1e-4 * float(expected.abs().max()), rtol=1e-3)
    assert (defended - plain).norm() > 0.1 * plain.norm() > 0


def test_the_defence_is_looked_up_at_the_timestep_of_the_loss(attacked):
    pipe, ids, prefix = attacked.pipe, tokens(attacked.pipe, ["cat"]), random_prefix(attacked.pipe)
    timesteps = [900.0, 500.0, 100.0]

    def losses():
        with torch.no_grad():
            return [float(attack_loss(pipe, ids, prefix, TARGET, t, generator())) for t in (110, 490, 905)]

    plain = losses()
    for step, changed in ((0, 2), (1, 1), (2, 0)):
        with ablate(pipe, selection_at(attacked, timesteps, step), strength=-2.0, saes=make_sae(3)):
            found = losses()
        assert [a != b for a, b in zip(plain, found, strict=True)] == [i == changed for i in range(3)]


def mean_loss(pipe, ids, prefix, timestep):
    with torch.no_grad():
        return np.mean([float(attack_loss(pipe, ids, prefix, TARGET, timestep, generator(s))) for s in range(8)])


def test_the_attack_improves_its_loss_against_a_defence(attacked):
    pipe, settings = attacked.pipe, AttackSettings(2, 40, 1, 0.05, 0.0)
    table = pipe.text_encoder.get_input_embeddings().weight.detach()
    (timestep,) = attacked_timesteps(pipe, 1)
    with ablate(pipe, selection_at(attacked, [float(timestep)], 0), strength=-2.0, saes=make_sae(3)):
        result = attack(pipe, "cat", TARGET, lambda states: False, settings)
        ids = tokens(pipe, ["cat"])
        found = mean_loss(pipe, ids, table[torch.tensor(result.prefix)], timestep)
        random = [mean_loss(pipe, ids, random_prefix(pipe, 2, seed), timestep) for seed in range(20)]
    assert (result.shown_before, result.succeeded, len(result.losses)) == (False, False, 40)
    assert found < np.quantile(random, 0.25)


def test_it_stops_at_the_first_success_and_asks_before_and_after_every_timestep(attacked):
    pipe, settings = attacked.pipe, AttackSettings(2, 3, 5)
    asked = []

    def shown(states):
        asked.append(states)
        return len(asked) == 3

    result = attack(pipe, "cat", TARGET, shown, settings)
    assert (result.succeeded, len(result.losses), len(asked)) == (True, 6, 3)
    assert torch.equal(asked[0], embed(pipe, ["cat"]))
    with torch.no_grad():
        expected = pipe.text_encoder(prefixed_ids(tokens(pipe, ["cat"]), torch.tensor(result.prefix)))[0]
    assert torch.equal(asked[-1], expected)
    assert attack(pipe, "cat", TARGET, lambda states: True, settings) == Attack(True, False, [], [])
    assert success_rates([Attack(True, False, [], []), result, Attack(False, False, [], []), result]) == (0.25, 0.75)


def test_a_negative_prompts_defence_is_its_guidance(attacked):
    pipe, t = attacked.pipe, torch.tensor([300])
    c, negative = embed(pipe, ["cat"]).detach(), embed(pipe, ["tree"]).detach()
    with torch.no_grad(), direct_calls(pipe):
        wanted, without = (noise(pipe, pipe.unet, TARGET, t, e) for e in (c, negative))
        found = guided_prediction(pipe, "tree", 3.0)(TARGET, t, c)
    torch.testing.assert_close(found, without + 3 * (wanted - without))


def test_timesteps_are_the_middles_of_equal_parts(attacked):
    assert attacked_timesteps(attacked.pipe, 50)[:3] == [10, 30, 50]
    assert attacked_timesteps(attacked.pipe, 50)[-1] == 990
