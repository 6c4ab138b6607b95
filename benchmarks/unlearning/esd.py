"""ESD-x: erase a concept by fine-tuning the cross-attention (Gandikota et al. 2023, arXiv
2303.07345, section 4)."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.unlearning.diffusion import embed, latent_shape, predicted, sampled_until


@dataclass(frozen=True)
class ESDSettings:
    """As published."""

    iterations: Sequence[int] = (1000,)
    """after which the weights are kept, in this order; the last is the end"""
    learning_rate: float = 1e-5
    eta: float = 1.0
    """strength of the guidance away from the concept"""
    guidance: float = 3.0
    """of the sampling that makes x_t"""
    n_steps: int = 50
    seed: int = 0


def esd_target(original_concept: Tensor, original_empty: Tensor, eta: float) -> Tensor:
    """Return ``ε₀(x_t, ∅) − η (ε₀(x_t, c) − ε₀(x_t, ∅))``, or the same of velocities."""
    return original_empty - eta * (original_concept - original_empty)


def trained_weights(unet: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that ESD-x trains: those of ``attn2``."""
    return {name: p for name, p in unet.named_parameters() if ".attn2." in name}


def train_esd(
    pipe: Any, concept_prompts: Sequence[str], settings: ESDSettings = ESDSettings()
) -> dict[int, dict[str, Tensor]]:
    """Return iterations → the cross-attention's weights after erasing what the prompts ask for; the
    pipeline stays as it is.

    ``L = ‖ε_θ(x_t, c) − target‖²`` with batch 1; x_t is sampled from the model being trained,
    guided, to a random step. Of several prompts each iteration takes one.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    student = copy.deepcopy(pipe.unet).requires_grad_(False)
    parameters = trained_weights(student)
    for parameter in parameters.values():
        parameter.requires_grad_()
    optimiser = torch.optim.Adam(parameters.values(), lr=settings.learning_rate)
    with torch.no_grad():
        embeddings, empty = embed(pipe, concept_prompts), embed(pipe, [""])
    kept: dict[int, dict[str, Tensor]] = {}
    for iteration in range(1, settings.iterations[-1] + 1):
        chosen = int(torch.randint(len(embeddings), (1,), generator=generator))
        c = embeddings[chosen : chosen + 1]
        stop = int(torch.randint(settings.n_steps, (1,), generator=generator))
        start = torch.randn((1, *latent_shape(pipe)), generator=generator).to(c)
        x, t = sampled_until(
            pipe, student, c, empty, settings.guidance, settings.n_steps, stop, start
        )
        loss = esd_loss(pipe, student, x, t, c, empty, settings.eta)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if iteration in settings.iterations:
            kept[iteration] = {
                name: parameter.detach().clone() for name, parameter in parameters.items()
            }
    return kept


def esd_loss(
    pipe: Any, student: nn.Module, x: Tensor, t: Tensor, c: Tensor, empty: Tensor, eta: float
) -> Tensor:
    """Return the mean square of ``ε_θ(x_t, c) − target``, the target from the untouched model."""
    with torch.no_grad():
        original = predicted(pipe.unet, torch.cat([x, x]), t.expand(2), torch.cat([c, empty]))
        target = esd_target(*original.chunk(2), eta)  # type: ignore[call-arg]  # two parts
    return (predicted(student, x, t, c) - target).square().mean()
