"""``featurestore attack``."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featurestore.cli.generate import InterventionOptions, intervention_options
from featurestore.cli.options import (
    ModelOptions,
    PromptOptions,
    RunOptions,
    gathered,
    judge_option,
    mode_option,
    model_options,
    prompt_options,
    run_options,
)
from featurestore.vocabulary import ATTACKS

if TYPE_CHECKING:
    from sae.evaluation.attack import AttackSettings
    from sae.evaluation.attack.report import AttackReport, Rate


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


def attack_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say how attacks are made; they arrive as ``how``."""
    options = [
        click.option(
            "--method",
            "methods",
            multiple=True,
            default=["tokens"],
            show_default=True,
            type=click.Choice(list(ATTACKS)),
            help="What is searched: tokens before the prompt (UnlearnDiffAtk), embeddings before "
            "it (concept inversion), or "
            "starting latents with an empty prompt; several times for several.",
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
            help="[default: tokens 0.01, embedding 0.1, latents 0.05]",
        ),
        click.option(
            "--attack-seed",
            type=int,
            default=0,
            show_default=True,
            help="Of the attack's random numbers.",
        ),
    ]
    return gathered(command, "how", AttackOptions, options)


@click.command()
@model_options
@prompt_options()
@judge_option
@intervention_options
@mode_option
@click.option(
    "--sae",
    "saes",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Directory of the SAE, if the selection's store is elsewhere; of several, each has its "
    "SAE's name.",
)
@attack_options
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="Directory for outcomes; a second run goes on in it.",
)
@click.option("--quiet", is_flag=True, help="No progress bar.")
@run_options
def attack(
    model: ModelOptions,
    prompts: PromptOptions,
    judges: tuple[str, ...],
    edits: InterventionOptions,
    mode: str,
    saes: tuple[Path, ...],
    how: AttackOptions,
    out: Path,
    quiet: bool,
    run: RunOptions,
) -> None:
    """Search for what brings removed concepts back, and say how often it is found.

    Attacked are prompts that ask for a concept of the selections, --batch-size at once, with
    gradients through the defence; after every round the judge looks whether the concept is shown.
    OUT/METHOD/report.html shows each picture without a defence, defended and attacked. Needs
    float32 weights (--model-dtype).

    \b
    Example:
      featurestore attack --model minicanvas --prompts prompts.jsonl --seeds 100-104 --judge minicanvas \\
          --ablate neon.json --multiplier -1 --n-tokens 3 --out attacks
      featurestore attack --model minicanvas --prompts prompts.jsonl --seeds 100-104 --judge minicanvas \\
          --ablate neon.json --multiplier -1 --method embedding --method latents --out attacks
    """  # fmt: skip
    from sae.evaluation.attack import attack as search
    from sae.evaluation.judge import load_judge

    settings = how.settings
    interventions = edits.interventions()
    judging = load_judge(judges, "cpu" if model.device == "auto" else model.device)
    asked = prompts.read(run.seeds)
    loaded = model.load()
    reports = [
        search(
            loaded,
            interventions,
            prompts=asked,
            judge=judging,
            out=out,
            settings=one,
            run=run.settings(loaded),
            saes=saes or None,
            mode=mode,
            pictures=how.pictures,
            batch_size=run.batch_size,
            progress=not quiet,
            say=lambda line: click.echo(f"— {line}", err=True),
        )
        for one in settings
    ]
    click.echo(attacks_table(reports, judging.name))
    for report in reports:
        click.echo(f"{out / report.method / 'report.html'}")


def attacks_table(reports: "Sequence[AttackReport]", judge: str) -> str:
    """Return rates of several attacks as a table, in percent with their intervals."""
    import pyarrow as pa

    from featurestore.cli.tables import as_text

    rows = [
        {
            "attack": report.method,
            "shown before, %": _cell(report.before),
            "shown under attack, %": _cell(report.under_attack),
            "pictures": str(len(report.pictures)),
            "left out": str(report.not_shown),
            "judge": judge,
        }
        for report in reports
    ]
    return as_text(pa.Table.from_pylist(rows), rows=None)


def _cell(rate: "Rate") -> str:
    return f"{100 * rate.value:.1f} [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"
