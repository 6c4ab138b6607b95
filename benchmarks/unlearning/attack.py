"""UnlearnDiffAtk: a prefix of tokens that brings a removed concept back (Zhang et al. 2023, arXiv 2310.11868).

The defence is in the gradient's path: hooks are attached while the loss is taken, and look their features up by the timestep
that the loss is taken at.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.unlearning.diffusion import embed, noise, noised, tokens
from sae.diffusion import direct_calls

Predict = Callable[[Tensor, Tensor, Tensor], Tensor]
"""x_t, timesteps and the text's states → the noise that the defended model predicts"""


@dataclass(frozen=True)
class AttackSettings:
    """As published; 3 tokens for styles."""

    n_tokens: int = 5
    iterations: int = 40
    """at each timestep"""
    n_timesteps: int = 50
    learning_rate: float = 1e-2
    weight_decay: float = 0.1
    seed: int = 0


class Attack(NamedTuple):
    """How an attack went."""

    shown_before: bool
    """whether the defended model showed the concept without an attack"""
    succeeded: bool
    """whether it did with a prefix"""
    prefix: list[int]
    """the last prefix's token ids"""
    losses: list[float]
    """of every iteration"""


class _SampledOneHot(torch.autograd.Function):
    """A one-hot row drawn from each row of the simplex; its gradient is passed on, clipped to [−1, 1]."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, generator: torch.Generator) -> Tensor:
        drawn = torch.multinomial(rows.cpu(), 1, generator=generator).flatten()
        return F.one_hot(drawn, rows.shape[1]).to(rows)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        return F.hardtanh(grads[0]), None


def project(rows: Tensor) -> Tensor:
    """Return the nearest point of the simplex for each row (Duchi et al. 2008, figure 1)."""
    ordered = rows.sort(dim=1, descending=True).values
    excess = ordered.cumsum(1) - 1
    places = torch.arange(1, rows.shape[1] + 1, device=rows.device)
    n_positive = (ordered - excess / places > 0).sum(1, keepdim=True)
    return (rows - excess.gather(1, n_positive - 1) / n_positive).clamp_min(0)


def prefixed_states(pipe: Any, ids: Tensor, prefix: Tensor) -> Tensor:
    """Return the text's states with ``prefix [k, width]`` as embeddings after the first token; the last k tokens fall off."""
    embedding = pipe.text_encoder.get_input_embeddings()
    k = len(prefix)

    def put_in(module: Any, args: Any, output: Tensor) -> Tensor:
        return torch.cat([output[:, :1], prefix[None].to(output), output[:, 1 : output.shape[1] - k]], 1)

    handle = embedding.register_forward_hook(put_in)
    try:
        return pipe.text_encoder(ids)[0]
    finally:
        handle.remove()


def prefixed_ids(ids: Tensor, prefix: Tensor) -> Tensor:
    """Return token ids with a prefix after the first token, as long as before."""
    return torch.cat([ids[:, :1], prefix[None].to(ids), ids[:, 1 : ids.shape[1] - len(prefix)]], 1)


def attack(
    pipe: Any,
    prompt: str,
    target: Tensor,
    shown: Callable[[Tensor], bool],
    settings: AttackSettings = AttackSettings(),
    predict: Predict | None = None,
) -> Attack:
    """Search a prefix with which the defended ``pipe`` shows a concept; its defence is attached by the caller.

    ``min_d E ‖ε − ε_θ*(√ᾱ x_tgt + √(1−ᾱ) ε | [d; c])‖²`` over tokens d. ``target`` ``[1, C, H, W]`` are the latents of a
    picture that shows it. ``shown`` draws a picture of text states ``[1, tokens, width]`` and says whether the concept is in
    it: it is asked without an attack, and after every timestep; the first yes ends it.
    """
    ids = tokens(pipe, [prompt])
    if shown(embed(pipe, [prompt]).detach()):
        return Attack(True, False, [], [])
    generator = torch.Generator().manual_seed(settings.seed)
    table = pipe.text_encoder.get_input_embeddings().weight.detach()
    rows = torch.full((settings.n_tokens, len(table)), 1 / len(table), device=table.device, requires_grad=True)
    optimiser = torch.optim.Adam([rows], lr=settings.learning_rate, weight_decay=settings.weight_decay)
    losses: list[float] = []
    best = rows.detach().argmax(1)
    for timestep in attacked_timesteps(pipe, settings.n_timesteps):
        for _ in range(settings.iterations):
            prefix = _SampledOneHot.apply(rows, generator) @ table
            loss = attack_loss(pipe, ids, prefix, target, timestep, generator, predict)
            (rows.grad,) = torch.autograd.grad(loss, [rows])
            optimiser.step()
            rows.data = project(rows.data)
            losses.append(float(loss.detach()))
        best = rows.detach().argmax(1)
        with torch.no_grad():
            if shown(pipe.text_encoder(prefixed_ids(ids, best))[0]):
                return Attack(False, True, best.tolist(), losses)
    return Attack(False, False, best.tolist(), losses)


def attack_loss(
    pipe: Any,
    ids: Tensor,
    prefix: Tensor,
    target: Tensor,
    timestep: int,
    generator: torch.Generator,
    predict: Predict | None = None,
) -> Tensor:
    """Return ``‖ε − ε_θ*(x_t | [d; c])‖²``, averaged, with noise drawn from ``generator``; differentiable in ``prefix``."""
    epsilon = torch.randn(target.shape, generator=generator).to(target)
    t = torch.full((len(target),), timestep, device=target.device)
    x = noised(pipe, target, epsilon, t)
    states = prefixed_states(pipe, ids, prefix)
    if predict is not None:
        return (epsilon - predict(x, t, states)).square().mean()
    with direct_calls(pipe):
        return (epsilon - noise(pipe, pipe.unet, x, t, states)).square().mean()


def attacked_timesteps(pipe: Any, n: int) -> list[int]:
    """Return n timesteps from the least noisy on, in the middles of n equal parts of the schedule."""
    total = pipe.scheduler.config.num_train_timesteps
    return list(range(total // n // 2, total, total // n))[:n]


def guided_prediction(pipe: Any, negative: str, guidance: float) -> Predict:
    """Return what a model with a negative prompt predicts, guidance included: its defence is nowhere else."""
    states = embed(pipe, [negative]).detach()

    def predict(x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        with direct_calls(pipe):
            without = noise(pipe, pipe.unet, x, t, states.expand_as(c))
            return without + guidance * (noise(pipe, pipe.unet, x, t, c) - without)

    return predict


def success_rates(attacks: Sequence[Attack]) -> tuple[float, float]:
    """Return the share of pictures that showed the concept without an attack, and that with one (ASR)."""
    before = sum(a.shown_before for a in attacks)
    return before / len(attacks), (before + sum(a.succeeded for a in attacks)) / len(attacks)
