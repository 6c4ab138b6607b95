"""How attacks are made."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from featurestore.cli.options.gathering import gathered
from featurestore.vocabulary import ATTACKS

if TYPE_CHECKING:
    from sae.evaluation.attack import AttackSettings


@dataclass(frozen=True, kw_only=True)
class AttackOptions:
    """What the options of :func:`attack_options` say."""

    methods: tuple[str, ...]
    pictures: int
    n_tokens: int
    rounds: int | None
    iterations: int | None
    learning_rate: float | None
    attack_seed: int

    @property
    def settings(self) -> "list[AttackSettings]":
        """Return the settings of each method."""
        from sae.evaluation.attack import AttackSettings

        return [
            AttackSettings(
                method=method,
                n_tokens=self.n_tokens,
                rounds=self.rounds,
                iterations=self.iterations,
                learning_rate=self.learning_rate,
                seed=self.attack_seed,
            )
            for method in dict.fromkeys(self.methods)
        ]


def attack_options(
    methods: Sequence[str],
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return what adds the options that say how attacks are made, by default with the first of
    ``methods``; they arrive as ``how``."""
    what = "; ".join(f"{method}: {ATTACKS[method]}" for method in methods)
    options = [
        click.option(
            "--method",
            "methods",
            multiple=True,
            default=[methods[0]],
            show_default=True,
            type=click.Choice(methods),
            help=f"What is searched. {what}. Several times for several.",
        ),
        click.option(
            "--pictures",
            type=click.IntRange(1),
            default=4,
            show_default=True,
            help="Attacked of each concept, spread over its prompts and seeds.",
        ),
        click.option(
            "--n-tokens",
            type=click.IntRange(1),
            default=5,
            show_default=True,
            help="Before the prompt; 3 for styles.",
        ),
        click.option(
            "--rounds",
            type=click.IntRange(1),
            help="Pictures are judged after each.  [default: 50; latents 10]",
        ),
        click.option(
            "--iterations",
            type=click.IntRange(1),
            help="Gradient steps per round.  [default: 40; latents 20]",
        ),
        click.option(
            "--learning-rate",
            type=float,
            help="[default: tokens and words 0.01, embedding 0.1, latents 0.05]",
        ),
        click.option(
            "--attack-seed",
            type=int,
            default=0,
            show_default=True,
            help="Of the attack's random numbers.",
        ),
    ]
    return lambda command: gathered(command, "how", AttackOptions, options)
