"""Edits of a small model, and their formulas written out densely."""

import torch

from sae.diffusion.modules import find_module
from sae.diffusion.pipelines import generate
from sae.intervention.ablate import ablate
from tests.builders.selections import (
    HOOK,
    N_LATENTS,
    RUN,
    captured_output,
    make_sae,
    make_selection,
    timesteps_of,
)

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
    """What the hooked module returns in the first call without and with the edit,
    ``[batch, positions, channels]``."""
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


def nearest_undetected(detected, height, width):
    """For each detected position the nearest other one, the first in reading order among equals."""
    free = [p for p in range(height * width) if not detected[p]]
    distance = lambda p, q: (p // width - q // width) ** 2 + (p % width - q % width) ** 2  # noqa: E731
    return {
        p: min(free, key=lambda q: (distance(p, q), q))
        for p in range(height * width)
        if detected[p] and free
    }


def edited_calls(model, interventions, run=RUN, hook=HOOK, sae=None, call=None, **kwargs):
    """The indices of the calls whose output the edit changed."""
    own, left = [], []
    module = find_module(model.pipe, hook)
    first = module.register_forward_hook(lambda m, a, out: own.append(out[0].clone()))
    try:
        with ablate(model.pipe, interventions, saes=sae or make_sae(3), **kwargs):
            last = module.register_forward_hook(lambda m, a, out: left.append(out[0].clone()))
            call() if call else generate(model, run, ["a b"], [0], output_type="latent")
            last.remove()
    finally:
        first.remove()
    return {i for i, (a, b) in enumerate(zip(own, left, strict=True)) if not torch.equal(a, b)}


def reconstruction(sae, x):
    return sae.encode_dense(x) @ sae.W_dec + sae.b_dec
