"""AdvUnlearn: ESD's erasing against prompts that an attack finds meanwhile, what is retained kept
(Zhang et al. 2024, arXiv 2405.15234, section 4; released code)."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.unlearning.diffusion import embed, latent_shape, predicted, sampled_until
from benchmarks.unlearning.esd import esd_target
from sae.evaluation.attack.prefix import prefixed_embeddings


@dataclass(frozen=True)
class AdvUnlearnSettings:
    """As the release's example runs it: what is retained is part of the loss, with a weight of 0.3,
    and an attack begins with a random word."""

    iterations: Sequence[int] = (1000,)
    """after which the weights are kept, in this order; the last is the end"""
    learning_rate: float = 1e-5
    eta: float = 1.0
    """strength of the guidance away from the concept"""
    guidance: float = 3.0
    """of the sampling that makes x_t"""
    n_steps: int = 50
    warm_up: int = 200
    """iterations without an attack"""
    attack_every: int = 1
    """iterations between attacks; until the next one the prompt is the one that was attacked"""
    attack_steps: int = 30
    attack_learning_rate: float = 1e-3
    n_tokens: int = 1
    """of the attack, before the prompt"""
    retained: int = 5
    """prompts of each step whose answers are kept"""
    retain_weight: float = 0.3
    """of their loss"""
    seed: int = 0


class _Training:
    """A text encoder in training, the untouched one and the draws of both."""

    def __init__(self, pipe: Any, settings: AdvUnlearnSettings) -> None:
        self.pipe, self.settings = pipe, settings
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.student = copy.deepcopy(pipe.text_encoder).requires_grad_(False)
        self.reader = SimpleNamespace(
            tokenizer=pipe.tokenizer, text_encoder=self.student, device=pipe.device
        )
        with torch.no_grad():
            self.empty = embed(pipe, [""])

    def drawn(self, c: Tensor) -> tuple[Tensor, Tensor]:
        """Return x_t of a random step, sampled from the untouched model as ``c`` asks, and t."""
        stop = self.draw(self.settings.n_steps)
        start = torch.randn((len(c), *latent_shape(self.pipe)), generator=self.generator).to(c)
        how = self.settings.guidance, self.settings.n_steps, stop, start
        return sampled_until(self.pipe, self.pipe.unet, c, self.empty, *how)

    def draw(self, n: int) -> int:
        """Return a number below ``n``."""
        return int(torch.randint(n, (1,), generator=self.generator))

    def predicted(self, x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        """Return what the UNet, which is not trained, predicts."""
        return predicted(self.pipe.unet, x, t.expand(len(x)), c.expand(len(x), -1, -1))

    def asked(self, text: str, prefix: Tensor | None) -> Tensor:
        """Return the trained encoder's states of a text after a prefix ``[1, k, width]``."""
        if prefix is None:
            return embed(self.reader, [text])
        with prefixed_embeddings(self.reader, [text], [prefix]):
            return embed(self.reader, [text])

    def erasing_loss(self, text: str, c: Tensor, prefix: Tensor | None) -> Tensor:
        """Return ESD's loss of what is asked for after the prefix."""
        x, t = self.drawn(c)
        with torch.no_grad():
            target = esd_target(
                self.predicted(x, t, c), self.predicted(x, t, self.empty), self.settings.eta
            )
        return (self.predicted(x, t, self.asked(text, prefix)) - target).square().mean()

    def distance(self, states: Tensor, c: Tensor) -> Tensor:
        """Return how far the answers to ``states`` are from the untouched model's to ``c``: what an
        attack makes small, and what keeps the retained prompts."""
        x, t = self.drawn(c)
        with torch.no_grad():
            target = self.predicted(x, t, c)
        return (self.predicted(x, t, states) - target).square().mean()

    def words(self) -> Tensor:
        """Return the embeddings of random words, ``[1, k, width]``."""
        table = self.student.get_input_embeddings().weight
        ids = torch.randint(len(table), (1, self.settings.n_tokens), generator=self.generator)
        return table[ids.to(table.device)]

    def attacked(self, text: str, c: Tensor, prefix: Tensor) -> Tensor:
        """Return the prefix that an attack finds, from a given one on."""
        found = prefix.detach().clone().requires_grad_()
        optimiser = torch.optim.Adam([found], lr=self.settings.attack_learning_rate)
        for _ in range(self.settings.attack_steps):
            optimiser.zero_grad()
            self.distance(self.asked(text, found), c).backward()
            optimiser.step()
        return found.detach()


def trained_parameters(text_encoder: Any) -> dict[str, nn.Parameter]:
    """Return what AdvUnlearn trains: a text encoder's layers and its last norm, no embeddings."""
    return {
        name: p
        for name, p in text_encoder.named_parameters()
        if "embeddings" not in name.split(".")
    }


def train_adv_unlearn(
    pipe: Any,
    concept_prompts: Sequence[str],
    retained_prompts: Sequence[str],
    settings: AdvUnlearnSettings = AdvUnlearnSettings(),
) -> dict[int, dict[str, Tensor]]:
    """Return iterations → the text encoder's weights after erasing what the prompts ask for; the
    pipeline stays as it is.

    Each iteration takes a step of ESD's loss on one of the prompts, after the warm-up behind the
    prefix that ``min_d ‖ε_θ(x_t, [d; c]) − ε₀(x_t, c)‖²`` found, and of
    ``γ ‖ε_θ(x_t, c_r) − ε₀(x_t, c_r)‖²`` on retained prompts.
    """
    training = _Training(pipe, settings)
    parameters = trained_parameters(training.student)
    optimiser = torch.optim.Adam(parameters.values(), lr=settings.learning_rate)
    with torch.no_grad():
        erased, retained = embed(pipe, concept_prompts), embed(pipe, retained_prompts)
    prefix, kept = None, {}
    for iteration in range(settings.iterations[-1]):
        if iteration % settings.attack_every == 0:
            one = training.draw(len(concept_prompts))
            text, c = concept_prompts[one], erased[one : one + 1]
            if iteration >= settings.warm_up:
                prefix = training.attacked(text, c, training.words())
        rows = torch.randint(len(retained), (settings.retained,), generator=training.generator)
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        optimiser.zero_grad()
        asked = embed(training.reader, [retained_prompts[i] for i in rows])
        loss = training.erasing_loss(text, c, prefix)
        loss = loss + settings.retain_weight * training.distance(asked, retained[rows])
        loss.backward()
        optimiser.step()
        for parameter in parameters.values():
            parameter.requires_grad_(False)
        if iteration + 1 in settings.iterations:
            kept[iteration + 1] = {n: p.detach().clone() for n, p in parameters.items()}
    return kept
