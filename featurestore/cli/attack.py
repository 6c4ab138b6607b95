"""``featurestore attack``."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from featurestore.cli.options import (
    AttackOptions,
    DrawingOptions,
    InterventionOptions,
    attack_options,
    drawing_options,
    intervention_options,
    judge_option,
    mode_option,
    quiet_option,
    sae_directories_option,
)
from featurestore.cli.terminal.hints import say_next, say_progress
from featurestore.vocabulary import ATTACKS

if TYPE_CHECKING:
    from sae.evaluation.attack.report import AttackReport, Rate


@click.command()
@drawing_options(out="Directory for outcomes; a second run goes on in it.")
@judge_option
@intervention_options
@mode_option
@sae_directories_option
@attack_options([*ATTACKS])
@quiet_option
def attack(
    *,
    drawing: DrawingOptions,
    judges: tuple[str, ...],
    edits: InterventionOptions,
    mode: str,
    saes: tuple[Path, ...],
    how: AttackOptions,
    quiet: bool,
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
          --ablate neon.json --multiplier -1 --method words --method embedding --method latents --out attacks
    """  # fmt: skip
    from sae.evaluation.attack import attack as search

    settings, interventions = how.settings, edits.interventions()
    judge, asked = drawing.judge(judges), drawing.asked()
    model, run = drawing.load(asked)
    reports = [
        search(
            model,
            interventions,
            prompts=asked,
            judge=judge,
            out=drawing.out,
            settings=one,
            run=run,
            saes=saes or None,
            mode=mode,
            pictures=how.pictures,
            batch_size=drawing.run.batch_size,
            progress=not quiet,
            say=say_progress,
        )
        for one in settings
    ]
    click.echo(attacks_table(reports, judge.name))
    for report in reports:
        click.echo(f"{drawing.out / report.method / 'report.html'}")
    ablated = [word for path in edits.selections for word in ("--ablate", path)]
    say_next("harden", "STORE", *drawing.words(judges), *ablated, "--out", "HARDENED")


def attacks_table(reports: "Sequence[AttackReport]", judge: str) -> str:
    """Return rates of several attacks as a table, in percent with their intervals."""
    import pyarrow as pa

    from featurestore.cli.terminal.tables import as_text

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
