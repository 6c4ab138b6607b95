"""Every attack's gradient against finite differences, through the defence; and each succeeds where
there is no defence."""

import contextlib

import numpy as np
import pytest
import torch

from featurestore.errors import UsageError
from featurestore.prompts import Prompt
from sae.diffusion.modules import find_module
from sae.diffusion.pipelines import RunSettings, generate, load_model
from sae.evaluation.attack.denoise import conditions
from sae.evaluation.attack.methods import LatentsAttack, TextAttack, attacked_timesteps, method_of
from sae.evaluation.attack.settings import AttackSettings, Defended
from sae.evaluation.attack.victims import Case, Victim, generator_of
from sae.evaluation.judge import load_judge
from sae.intervention.ablate import ablate
from sae.model import SAE, SAEConfig
from tests.builders.selections import D_IN, HOOK, N_LATENTS, make_sae, make_selection, timesteps_of

RUN = RunSettings(n_steps=2, guidance=3.0)
CASES = [
    Case(Prompt(text, seed, {"style": "neon"}, 1), "style", "neon")
    for text, seed in (("cat", 0), ("a tree", 1))
]


@pytest.fixture(scope="module")
def attacked(model_dir):
    """A model whose pictures depend on the text much more than a random one's do; double precision
    for differences."""
    loaded = load_model(str(model_dir), "cpu")
    with torch.no_grad():
        for name, parameter in loaded.pipe.unet.named_parameters():
            if "attn2.to_out" in name or "attn2.to_v" in name:
                parameter.mul_(12)
    loaded.pipe.unet.requires_grad_(False)
    loaded.pipe.text_encoder.requires_grad_(False)
    return loaded


def defended(model, guided=False, run=RUN):
    return Defended(
        model=model, run=run, attached=contextlib.nullcontext, setting={}, guided=guided
    )


def victims(method, n=2):
    found = []
    for i, case in enumerate(CASES[:n]):
        target = torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(i))
        victim = Victim(case, target, generator_of(case, 0))
        victim.begin(method.start(victim))
        found.append(victim)
    return found


def everywhere(model, timesteps=None, smooth=False):
    """A defence of many features at every step; smooth: of an SAE whose latents are all kept, so
    that none changes places."""
    timesteps = timesteps or timesteps_of(model, 2)
    rows = [(step, f, 0.9, 0.0) for step in range(len(timesteps)) for f in range(N_LATENTS)]
    return ablate(
        model.pipe,
        make_selection(model, rows, timesteps),
        strength=-2.0,
        saes=without_topk() if smooth else make_sae(3),
    )


def without_topk():
    sae = SAE(SAEConfig(d_in=D_IN, n_latents=N_LATENTS, k=N_LATENTS))
    sae.load_state_dict(make_sae(3).state_dict())
    return sae


def check_gradient(loss, x, rtol):
    """Compare the derivative along a few directions with a central difference."""
    (gradient,) = torch.autograd.grad(loss(x), [x])
    for seed in range(3):
        direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
        direction = (
            direction / direction.norm() + gradient / gradient.norm()
        )  # Random ones alone are nearly orthogonal.
        h = 3e-4 * float(x.detach().norm() / direction.norm())
        with torch.no_grad():
            difference = float(loss(x + h * direction) - loss(x - h * direction)) / (2 * h)
        assert float((gradient * direction).sum()) == pytest.approx(difference, rel=rtol), seed


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("kind", ["tokens", "embedding"])
def test_the_gradient_of_texts_is_that_of_finite_differences_through_the_defence(
    attacked, kind, guided
):
    method = TextAttack(defended(attacked, guided), AttackSettings(method=kind, n_tokens=3))
    both = victims(method)
    noise = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(9))
    table = method.tables[0]
    start = table[torch.tensor([[5, 60, 7], [9, 80, 100]])].clone().requires_grad_()

    def loss(embeddings):
        return method.losses(both, [[rows] for rows in embeddings], noise, 500.0).double().sum()

    with everywhere(attacked, [500.0], smooth=True):
        check_gradient(loss, start, 0.02)
        defence = float(loss(start.detach()))
    assert defence != float(loss(start.detach()))


def test_the_gradient_of_latents_is_that_of_finite_differences_through_the_defence_and_all_steps(
    attacked,
):
    method = LatentsAttack(defended(attacked), AttackSettings(method="latents"))
    both = victims(method)
    start = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(9)).requires_grad_()
    given = conditions(attacked, method.run, ["", ""])
    with everywhere(attacked, smooth=True):
        check_gradient(lambda x: method.losses(both, given, x).double().sum(), start, 0.02)
        defence = float(method.losses(both, given, start.detach()).sum())
    assert defence != float(method.losses(both, given, start.detach()).sum())


def test_the_gradient_is_that_of_a_dense_formula_in_the_defences_place(attacked):
    method, sae = (
        TextAttack(defended(attacked), AttackSettings(method="embedding", n_tokens=2)),
        make_sae(3),
    )
    (victim,) = victims(method, 1)
    rows, noise = victim.variables[0].clone().requires_grad_(), torch.ones(1, 4, 16, 16)

    def gradient():
        return torch.autograd.grad(method.losses([victim], [[rows]], noise, 500.0).sum(), [rows])[0]

    def formula(module, args, output):
        x = output[0].permute(0, 2, 3, 1)
        z = sae.encode_dense(x.reshape(-1, x.shape[-1]))
        change = (-2.0 * 0.9 * z - z) @ sae.W_dec
        return ((x + change.view(x.shape)).permute(0, 3, 1, 2),)

    plain = gradient()
    with everywhere(attacked, [500.0]):
        found = gradient()
    handle = find_module(attacked.pipe, HOOK).register_forward_hook(formula)
    expected = gradient()
    handle.remove()
    torch.testing.assert_close(found, expected, atol=1e-4 * float(expected.abs().max()), rtol=1e-3)
    assert (found - plain).norm() > 0.1 * plain.norm() > 0


def test_the_defence_is_looked_up_at_the_timestep_of_the_loss(attacked):
    method = TextAttack(defended(attacked), AttackSettings(n_tokens=2))
    (victim,) = victims(method, 1)
    rows, noise = method.tables[0][:2], torch.ones(1, 4, 16, 16)

    def losses():
        with torch.no_grad():
            return [
                float(method.losses([victim], [[rows]], noise, t)) for t in (110.0, 490.0, 905.0)
            ]

    plain, timesteps = losses(), [900.0, 500.0, 100.0]
    for step, changed in ((0, 2), (1, 1), (2, 0)):
        selection = make_selection(
            attacked, [(step, f, 0.9, 0.0) for f in range(N_LATENTS)], timesteps
        )
        with ablate(attacked.pipe, selection, strength=-2.0, saes=make_sae(3)):
            found = losses()
        assert [a != b for a, b in zip(plain, found, strict=True)] == [
            i == changed for i in range(3)
        ]


@pytest.mark.parametrize("kind", ["tokens", "words", "embedding", "latents"])
def test_a_picture_is_attacked_in_a_batch_as_it_is_alone(attacked, kind):
    settings = AttackSettings(method=kind, n_tokens=2, rounds=2, iterations=2)
    method = method_of(defended(attacked), settings)
    together, alone = victims(method), victims(method)
    for number in range(2):
        with everywhere(attacked):
            method.round(together, number)
            for victim in alone:
                method.round([victim], number)
    for a, b in zip(together, alone, strict=True):
        assert (
            float((a.variables[0] - b.variables[0]).norm() / b.variables[0].norm()) < 1e-2
        )  # Adam scales rounding up.
        assert a.losses == pytest.approx(b.losses, rel=1e-2)
    assert len(method.draw(together)) == 2


def test_steps_are_adams():
    """Against torch's, with L2 regularisation."""
    start = torch.randn(5, generator=torch.Generator().manual_seed(0))
    victim = Victim(CASES[0], start, torch.Generator())
    victim.begin([start])
    other = start.clone().requires_grad_()
    optimiser = torch.optim.Adam([other], lr=0.05, weight_decay=0.1)
    for i in range(10):
        victim.step([(victim.variables[0] - i).sin()], 0.05, 0.1)
        other.grad = (other.detach() - i).sin()
        optimiser.step()
    torch.testing.assert_close(victim.variables[0], other.detach())


def test_an_interrupted_victim_goes_on_bit_for_bit(attacked, tmp_path):
    method = method_of(defended(attacked), AttackSettings(n_tokens=2, rounds=3, iterations=2))
    (whole,), (first,), (second,) = victims(method, 1), victims(method, 1), victims(method, 1)
    for number in range(3):
        method.round([whole], number)
        if number < 2:
            method.round([first], number)
            first.round = number + 1
    first.save(tmp_path / "state.safetensors")
    second.load(tmp_path / "state.safetensors")
    assert second.round == 2
    method.round([second], 2)
    assert torch.equal(second.variables[0], whole.variables[0]) and second.losses == whole.losses


def test_random_tokens_are_drawn_anew_in_every_round_and_follow_no_gradient(attacked):
    settings = AttackSettings(method="random", n_tokens=2, rounds=3)
    method = method_of(defended(attacked), settings)
    pair, (alone,) = victims(method), victims(method, 1)
    seen = []
    for number in range(3):
        method.round(pair, number)
        method.round([alone], number)
        assert torch.equal(pair[0].variables[0], alone.variables[0])  # alone as beside another
        seen += [tuple(method.found(victim)["tokens"][0]) for victim in pair]
        assert all(float(row.sum()) == 1 == float(row.max()) for row in pair[0].variables[0])
    assert len(set(seen)) == 6 and alone.losses == []
    assert not torch.equal(*(torch.tensor(np.asarray(image)) for image in method.draw(pair)))
    with pytest.raises(UsageError, match=r"attack random: learning_rate = 0\.1, but it follows no"):
        AttackSettings(method="random", learning_rate=0.1)


def test_timesteps_are_the_middles_of_equal_parts():
    assert attacked_timesteps(1000, 50)[:3] == [10, 30, 50]
    assert attacked_timesteps(1000, 50)[-1] == 990
    assert attacked_timesteps(10, 4) == [1, 3, 6, 8]


@pytest.mark.parametrize(
    ("kind", "rounds", "iterations"),
    [("embedding", 3, 20), ("latents", 2, 4), ("tokens", 8, 20), ("words", 8, 20)],
)
def test_every_attack_succeeds_on_the_undefended_model(kind, rounds, iterations):
    """The included model draws a cat when asked for none, with what was found for one picture of a
    cat."""
    from minicanvas import prompt

    model = load_model("minicanvas", "cpu")
    for part in (model.pipe.unet, model.pipe.text_encoder):
        part.requires_grad_(False)
    run = RunSettings(n_steps=10, guidance=model.guidance)
    case = Case(Prompt("An image in neon style.", 3, {"object": "cat"}, 1), "object", "cat")
    (target,) = generate(model, run, [prompt("cat", "neon")], [3], output_type="latent")
    settings = AttackSettings(method=kind, rounds=rounds, iterations=iterations, n_tokens=3)
    method = method_of(defended(model, run=run), settings)
    victim = Victim(case, target.float(), generator_of(case, 0))
    victim.begin(method.start(victim))
    judge = load_judge(["minicanvas"])
    shown = [
        judge.answers([case.prompt], generate(model, run, [case.prompt.prompt], [3]))[0].seen[
            "object"
        ]
    ]
    while shown[-1] != "cat" and len(shown) <= rounds:
        method.round([victim], len(shown) - 1)
        shown.append(judge.answers([case.prompt], method.draw([victim]))[0].seen["object"])
    assert shown[0] != "cat" and shown[-1] == "cat"
