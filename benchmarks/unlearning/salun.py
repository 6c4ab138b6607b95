"""SalUn: fine-tune only the weights that matter most for the concept (Fan et al. 2023, arXiv
2310.12508, sections 4 and B.2)."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.unlearning.diffusion import embed, noised, predicted, training_target


class Examples(NamedTuple):
    """Latents of pictures with their prompts."""

    latents: Tensor
    """``[n, C, H, W]``, scaled as the UNet takes them"""
    prompts: Sequence[str]


@dataclass(frozen=True)
class SalUnSettings:
    """As published; the number of iterations is five passes over 800 pictures."""

    iterations: Sequence[int] = (500,)
    """after which the weights are kept, in this order; the last is the end"""
    batch_size: int = 8
    learning_rate: float = 1e-5
    alpha: float = 0.5
    """weight of the retained pictures' loss"""
    kept: float = 0.5
    """share of the weights that the mask lets change"""
    mask_guidance: float = 7.5
    """w of the mask's loss"""
    mask_batches: int = 50
    seed: int = 0


def saliency_mask(pipe: Any, forget: Examples, settings: SalUnSettings) -> dict[str, Tensor]:
    """Return the weights that may change: the top half of ``|Σ ∇(−‖ε − [(1+w) ε(c) − w ε(∅)]‖²)|``
    over all weights.

    The gradients are of the untouched model, summed over batches of the pictures to be forgotten.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    unet = copy.deepcopy(pipe.unet).requires_grad_(True)
    w = settings.mask_guidance
    with torch.no_grad():
        embeddings, empty = embed(pipe, forget.prompts), embed(pipe, [""])
    for _ in range(settings.mask_batches):
        rows, x, t, goal = _batch(pipe, forget, settings.batch_size, generator)
        c = embeddings[rows]
        both = predicted(
            unet, torch.cat([x, x]), torch.cat([t, t]), torch.cat([c, empty.expand_as(c)])
        )
        wanted, without = both.chunk(2)
        (-(goal - ((1 + w) * wanted - w * without)).square().mean()).backward()
    sums = {name: p.grad.abs() for name, p in unet.named_parameters() if p.grad is not None}
    everything = torch.cat([s.flatten() for s in sums.values()])
    n = max(1, int(settings.kept * len(everything)))
    least = everything.kthvalue(len(everything) - n + 1).values
    return {name: s >= least for name, s in sums.items()}


def train_salun(
    pipe: Any,
    forget: Examples,
    pseudo_prompts: Sequence[str],
    retain: Examples,
    settings: SalUnSettings = SalUnSettings(),
) -> dict[int, dict[str, Tensor]]:
    """Return iterations → the UNet's weights after the concept's pictures were tied to
    ``pseudo_prompts``, one for each.

    ``L = ‖ε_θ(x_f, c_f) − sg ε_θ(x_f, c_pseudo)‖² + α ‖ε − ε_θ(x_r, c_r)‖²``; gradients outside of
    the mask are dropped.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    mask = saliency_mask(pipe, forget, settings)
    student = copy.deepcopy(pipe.unet).requires_grad_(True)
    optimiser = torch.optim.Adam(student.parameters(), lr=settings.learning_rate)
    with torch.no_grad():
        c_forget, c_pseudo, c_retain = (
            embed(pipe, texts) for texts in (forget.prompts, pseudo_prompts, retain.prompts)
        )
    kept: dict[int, dict[str, Tensor]] = {}
    for iteration in range(1, settings.iterations[-1] + 1):
        rows, x, t, _ = _batch(pipe, forget, settings.batch_size, generator)
        loss = forget_loss(student, x, t, c_forget[rows], c_pseudo[rows])
        rows, x, t, goal = _batch(pipe, retain, settings.batch_size, generator)
        kept_as = predicted(student, x, t, c_retain[rows])
        loss = loss + settings.alpha * (goal - kept_as).square().mean()
        optimiser.zero_grad()
        loss.backward()
        apply_mask(student, mask)
        optimiser.step()
        if iteration in settings.iterations:
            kept[iteration] = {
                name: parameter.detach().clone() for name, parameter in student.named_parameters()
            }
    return kept


def forget_loss(
    unet: nn.Module, x: Tensor, t: Tensor, c_forget: Tensor, c_pseudo: Tensor
) -> Tensor:
    """Return ``‖ε_θ(x, c_f) − sg ε_θ(x, c_pseudo)‖²``, averaged."""
    with torch.no_grad():
        target = predicted(unet, x, t, c_pseudo)
    return (predicted(unet, x, t, c_forget) - target).square().mean()


def apply_mask(unet: nn.Module, mask: dict[str, Tensor]) -> None:
    """Drop the gradients outside of the mask: Adam leaves a weight that never had one as it is."""
    for name, parameter in unet.named_parameters():
        if parameter.grad is not None:
            parameter.grad.mul_(mask.get(name, torch.zeros((), dtype=torch.bool)))


def _batch(
    pipe: Any, examples: Examples, size: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return drawn rows, their noised latents, the timesteps and what is to be predicted."""
    rows = torch.randint(len(examples.latents), (size,), generator=generator)
    x0 = examples.latents[rows]
    t = torch.randint(pipe.scheduler.config.num_train_timesteps, (size,), generator=generator).to(
        x0.device
    )
    epsilon = torch.randn(x0.shape, generator=generator).to(x0)
    return rows, noised(pipe, x0, epsilon, t), t, training_target(pipe, x0, epsilon, t)
