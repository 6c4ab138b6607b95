"""What is searched, by which loss, and how a picture is drawn with what was found
(docs/evaluation.md, "Attacks")."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sae.diffusion.pipelines import generate
from sae.diffusion.reading.architectures import architecture
from sae.evaluation.attack.denoise import (
    Conditions,
    conditions,
    denoised,
    last_levels,
    levels,
    parts,
    predicted,
    training_loss,
)
from sae.evaluation.attack.prefix import (
    SampledOneHot,
    encoders,
    prefixed,
    prefixed_embeddings,
    project,
    text_of,
    typed_ids,
)
from sae.evaluation.attack.settings import AttackSettings, Defended
from sae.evaluation.attack.victims import Victim, number_of


class Method(Protocol):
    """An attack on several pictures at once, each by itself; the defence is attached by the
    caller."""

    def start(self, victim: Victim) -> list[Tensor]:
        """Return what the search begins with."""

    def round(self, victims: Sequence[Victim], number: int) -> None:
        """Search on for one round, the same for all."""

    def draw(self, victims: Sequence[Victim]) -> list[Any]:
        """Return the picture of each, with what was found so far."""

    def found(self, victim: Victim) -> dict[str, Any]:
        """Return what was found, as JSON."""


def method_of(defended: Defended, settings: AttackSettings) -> Method:
    """Return the method that settings name."""
    if settings.method == "latents":
        return LatentsAttack(defended, settings)
    made = RandomTokens if settings.method == "random" else TextAttack
    return made(defended, settings)


class TextAttack:
    """UnlearnDiffAtk, or concept inversion: tokens, words or embeddings before the prompt, by the
    loss that models are trained with.

    ``min_d E ‖ε − ε_θ*(√ᾱ x_tgt + √(1−ᾱ) ε | [d; c])‖²`` (Zhang et al. 2023, arXiv 2310.11868, eq.
    5; Pham et al. 2023, arXiv 2308.01508, eq. 4), in what the model predicts. Tokens are points of
    the simplex, from which a token is drawn; each round has its timestep, from the least noisy on.
    Words are tokens that anybody can type. Embeddings have a timestep drawn anew for each
    iteration.
    """

    def __init__(self, defended: Defended, settings: AttackSettings) -> None:
        self.defended, self.settings = defended, settings
        self.model, self.pipe = defended.model, defended.model.pipe
        self.discrete = settings.method != "embedding"
        known, every = encoders(self.pipe), settings.method != "words"
        self.ids = [torch.arange(len(one.table)) if every else typed_ids(one) for one in known]
        """of the tokens that are searched, for each text encoder"""
        self.tables = [
            one.table if every else one.table[ids.to(one.table.device)]
            for one, ids in zip(known, self.ids, strict=True)
        ]

    def start(self, victim: Victim) -> list[Tensor]:
        """Return the middle of the simplex, or the embeddings of random tokens, for each text
        encoder."""
        k = self.settings.n_tokens
        if self.discrete:
            return [torch.full((k, len(t)), 1 / len(t), device=t.device) for t in self.tables]
        drawn = [torch.randint(len(t), (k,), generator=victim.generator) for t in self.tables]
        return [
            table[rows.to(table.device)].float()
            for table, rows in zip(self.tables, drawn, strict=True)
        ]

    def round(self, victims: Sequence[Victim], number: int) -> None:
        """Take the round's gradient steps."""
        for iteration in range(self.settings.n_iterations):
            variables = [
                [v.detach().requires_grad_() for v in victim.variables] for victim in victims
            ]
            embeddings = [
                self._embeddings(v, own) for v, own in zip(victims, variables, strict=True)
            ]
            noise = torch.stack(
                [torch.randn(v.target.shape, generator=v.generator) for v in victims]
            )
            losses = self.losses(
                victims, embeddings, noise.to(victims[0].target), self._timestep(number, iteration)
            )
            flat = [v for own in variables for v in own]
            gradients = iter(torch.autograd.grad(losses.sum(), flat))
            for victim, own, loss in zip(victims, variables, losses.tolist(), strict=True):
                self._step(victim, [next(gradients) for _ in own])
                victim.losses.append(loss)

    def losses(
        self,
        victims: Sequence[Victim],
        embeddings: Sequence[Sequence[Tensor]],
        noise: Tensor,
        timestep: float,
    ) -> Tensor:
        """Return each picture's loss with ``embeddings`` (for each picture and text encoder
        ``[k, width]``) before its prompt."""
        prompts = [v.case.prompt.prompt for v in victims]
        together = [torch.stack(rows) for rows in zip(*embeddings, strict=True)]
        with prefixed_embeddings(self.pipe, prompts, together):
            given = conditions(
                self.model,
                self.defended.run,
                prompts,
                guided=self.defended.guided,
                starts=[v.case.prompt.starts for v in victims],
            )
        return training_loss(
            self.model,
            given,
            torch.stack([v.target for v in victims]),
            noise=noise,
            timestep=timestep,
        )

    def draw(self, victims: Sequence[Victim]) -> list[Any]:
        """Draw the prompts with the likeliest tokens, or the embeddings, before them."""
        prompts, seeds = (
            [v.case.prompt.prompt for v in victims],
            [v.case.prompt.seed for v in victims],
        )
        found = [torch.stack(rows) for rows in zip(*(v.variables for v in victims), strict=True)]
        inserted = (
            prefixed(self.pipe, prompts, self._tokens(found))
            if self.discrete
            else prefixed_embeddings(self.pipe, prompts, found)
        )
        with inserted:
            starts = [v.case.prompt.starts for v in victims]
            return generate(self.model, self.defended.run, prompts, seeds, starts=starts)

    def found(self, victim: Victim) -> dict[str, Any]:
        """Return the tokens and the text that they are with the prompt, or how large the embeddings
        are."""
        if self.discrete:
            ids = [rows.tolist() for rows in self._tokens(victim.variables)]
            return {"tokens": ids, "text": text_of(self.pipe, victim.case.prompt.prompt, ids)}
        sizes = [
            float(v.std() / t.float().std())
            for v, t in zip(victim.variables, self.tables, strict=True)
        ]
        return {"std_ratio": sizes, "embeddings": [v.tolist() for v in victim.variables]}

    def _tokens(self, variables: Sequence[Tensor]) -> list[Tensor]:
        """Return the ids of the likeliest tokens of simplices ``[…, vocabulary]``."""
        return [ids[rows.argmax(-1).cpu()] for ids, rows in zip(self.ids, variables, strict=True)]

    def _embeddings(self, victim: Victim, variables: Sequence[Tensor]) -> list[Tensor]:
        if not self.discrete:
            return list(variables)
        drawn = [SampledOneHot.apply(rows, victim.generator) for rows in variables]
        return [one @ table.float() for one, table in zip(drawn, self.tables, strict=True)]

    def _step(self, victim: Victim, gradients: list[Tensor]) -> None:
        rate = self.settings.rate
        if self.discrete:
            victim.step(gradients, rate, self.settings.weight_decay)
            victim.variables = [project(rows) for rows in victim.variables]
        else:
            victim.step(gradients, rate * float(self.tables[0].float().std()))

    def _timestep(self, number: int, iteration: int) -> float:
        total = int(self.pipe.scheduler.config.num_train_timesteps)
        if self.discrete:
            return attacked_timesteps(total, self.settings.n_rounds)[number]
        return 1 + number_of([self.settings.seed, number, iteration]) % (total - 1)


class RandomTokens(TextAttack):
    """Other tokens at random before the prompt in every round, without a gradient: as many looks as
    ``tokens`` has, and so what that has to beat."""

    def round(self, victims: Sequence[Victim], number: int) -> None:
        """Draw tokens for each."""
        for victim in victims:
            rows = [torch.full_like(variable, 1.0) for variable in victim.variables]
            victim.variables = [SampledOneHot.apply(one, victim.generator) for one in rows]


def attacked_timesteps(total: int, n: int) -> list[float]:
    """Return n timesteps of ``total`` from the least noisy on, in the middles of n equal parts."""
    return [float(int((i + 0.5) * total / n)) for i in range(n)]


class LatentsAttack:
    """Starting latents of which an empty prompt becomes the target, after TINA (arXiv 2603.17828);
    see docs/evaluation.md.

    The first round inverts the sampling step by step, from the target to the noise: of each step it
    optimises the input whose output is known. Later rounds optimise the starting latents through
    all steps at once.
    """

    def __init__(self, defended: Defended, settings: AttackSettings) -> None:
        self.settings, self.model, self.guided = settings, defended.model, defended.guided
        # Where guidance is two calls, the scale is the denoiser's to know, and no guidance.
        told = architecture(defended.model.pipe).two_pass
        scale = defended.run.guidance if told else 1.0
        alone = replace(defended.run, guidance=scale, negative_prompt="", true_cfg=1.0)
        self.run = defended.run if defended.guided else alone

    def start(self, victim: Victim) -> list[Tensor]:
        """Return the target: the first round goes backwards from it."""
        return [victim.target]

    def round(self, victims: Sequence[Victim], number: int) -> None:
        """Invert, or optimise through all steps."""
        given = conditions(self.model, self.run, [""] * len(victims), guided=self.guided)
        if number == 0:
            self._invert(victims, given)
            return
        for _ in range(self.settings.n_iterations):
            x = torch.stack([v.variables[0] for v in victims]).requires_grad_()
            losses = self.losses(victims, given, x)
            (gradient,) = torch.autograd.grad(losses.sum(), [x])
            for victim, own, loss in zip(victims, gradient, losses.tolist(), strict=True):
                victim.step([own], self.settings.rate / number)
                victim.losses.append(loss)

    def losses(self, victims: Sequence[Victim], given: Conditions, x: Tensor) -> Tensor:
        """Return the mean square between what the run makes of starting latents ``x`` and each
        target."""
        for step in range(len(given.timesteps)):
            x = checkpoint(denoised, self.model, given, x, step, use_reentrant=False)
        return (x - torch.stack([v.target for v in victims])).square().flatten(1).mean(1)

    def draw(self, victims: Sequence[Victim]) -> list[Any]:
        """Draw an empty prompt from the latents found."""
        latents = torch.stack([v.variables[0] for v in victims]).to(self.model.pipe.dtype)
        seeds = [v.case.prompt.seed for v in victims]
        return generate(self.model, self.run, [""] * len(victims), seeds, latents=latents)

    def found(self, victim: Victim) -> dict[str, Any]:
        """Return the latents' standard deviation, 1 of a pipeline's own."""
        return {"std": float(victim.variables[0].std())}

    def _invert(self, victims: Sequence[Victim], given: Conditions) -> None:
        goal = torch.stack([v.target for v in victims])
        for step in reversed(range(len(given.timesteps))):
            guess = self._guess(given, goal, step)
            for victim, own in zip(victims, guess, strict=True):
                victim.begin([own])
            for i in range(self.settings.n_iterations):
                x = torch.stack([v.variables[0] for v in victims]).requires_grad_()
                losses = (denoised(self.model, given, x, step) - goal).square().flatten(1).mean(1)
                (gradient,) = torch.autograd.grad(losses.sum(), [x])
                rate = self.settings.rate * (1 - i / self.settings.n_iterations)
                for victim, own, loss in zip(victims, gradient, losses.tolist(), strict=True):
                    victim.step([own], rate)
                    victim.losses.append(loss)
            goal = torch.stack([v.variables[0] for v in victims])
        for victim in victims:
            victim.begin(victim.variables)

    def _guess(self, given: Conditions, goal: Tensor, step: int) -> Tensor:
        """Return DDIM's inversion of a step: the noise predicted of its output stands for that of
        its input."""
        scheduler, timestep = self.model.pipe.scheduler, given.timesteps[step]
        after = given.timesteps[step + 1 : step + 2]
        low_a, low_b = levels(scheduler, after[0]) if after else last_levels(scheduler)
        a, b = levels(scheduler, timestep)
        with torch.no_grad():
            _, noise = parts(
                scheduler, goal, predicted(self.model, given, goal, timestep), timestep
            )
        return a * (goal - low_b * noise) / low_a + b * noise
