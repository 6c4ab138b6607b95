"""``featurestore harden``."""

import functools
import json
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
    quiet_option,
)
from featurestore.cli.options.kinds import Finite
from featurestore.cli.terminal.hints import say_next, say_progress

if TYPE_CHECKING:
    from sae.intervention.settings import Intervention


@click.command()
@click.argument("store", type=click.Path(path_type=Path))
@drawing_options(out="Directory for selections and outcomes; goes on in it.")
@judge_option
@intervention_options
@attack_options(["words", "tokens"])
@click.option(
    "--top",
    type=click.IntRange(1),
    default=8,
    show_default=True,
    help="Features per step of what came back.",
)
@click.option(
    "--hardenings",
    type=click.IntRange(1),
    default=4,
    show_default=True,
    help="Attack and learn so often.",
)
@click.option(
    "--budget",
    type=Finite(0, 1),
    default=0.02,
    show_default=True,
    help="By how much the mean of IRA and CRA may fall.",
)
@click.option(
    "--others",
    type=click.IntRange(1),
    default=40,
    show_default=True,
    help="Pictures that do not ask for a removed concept, for IRA and CRA.",
)
@quiet_option
def harden(
    *,
    store: Path,
    drawing: DrawingOptions,
    judges: tuple[str, ...],
    edits: InterventionOptions,
    how: AttackOptions,
    top: int,
    hardenings: int,
    budget: float,
    others: int,
    quiet: bool,
) -> None:
    """Make selections withstand attack: learn the features that attacks use, and take them too.
    Nothing is trained.

    Attacks with words (tokens often cannot be typed, and little is learnt of them); collects what
    comes back, under the defence, into STORE as samples with a label of their own ("neon
    (attacked)"), encodes and scores them; takes their features beside the others; and again, until
    attacks fail or IRA and CRA have lost --budget. Use search prompts, seeds and judge, and report
    on others with evaluate and attack. Prints the options that ablate the result.

    \b
    Example:
      featurestore harden demo/store --model minicanvas --prompts prompts.jsonl --seeds 50-52 --judge minicanvas:selection \\
          --ablate neon.json --multiplier -1 --n-tokens 3 --out hardened
    """  # fmt: skip
    from collectors.learner import learner
    from featurestore.errors import UsageError
    from featurestore.format import durable
    from featurestore.store import Store
    from queries import select
    from sae.evaluation.attack.hardening import HardenSettings
    from sae.evaluation.attack.hardening import harden as make_hold

    opened = Store.open(store)
    if len(how.settings) != 1:
        raise UsageError("hardening attacks by one method: give one --method, words or tokens.")
    settings = HardenSettings(
        attack=how.settings[0],
        rounds=hardenings,
        budget=budget,
        pictures=how.pictures,
        n_others=others,
    )
    given = edits.interventions()
    judging, asked = drawing.judge(judges), drawing.asked()
    loaded, run = drawing.load(asked)
    result = make_hold(
        loaded,
        given,
        prompts=asked,
        judge=judging,
        learn=learner(
            opened,
            loaded,
            run,
            select=functools.partial(select, top=top),
            batch_size=drawing.run.batch_size,
            progress=not quiet,
        ),
        out=drawing.out,
        settings=settings,
        run=run,
        batch_size=drawing.run.batch_size,
        progress=not quiet,
        say=say_progress,
    )
    files = list(edits.selections)
    for number, one in enumerate(result.interventions[len(given) :], 1):
        path = drawing.out / f"added{number}.json"
        one.selection.save(path)
        files.append(path)
    options = [
        f"--ablate {path} --multiplier {one.strength:g} --threshold {one.threshold:g}"
        + _toward(one, drawing.out)
        for path, one in zip(files, result.interventions, strict=True)
    ]
    durable.write_bytes(
        drawing.out / "options.json", (json.dumps(options, indent=1) + "\n").encode()
    )
    click.echo(f"{result.reason}, after {len(result.rounds)} rounds. Ablate with:")
    click.echo(" \\\n".join(f"    {option}" for option in options))
    ablated = [word for path in files for word in ("--ablate", path)]
    say_next("attack", *drawing.words(judges), *ablated, "--out", "ATTACKS")


def _toward(one: "Intervention", out: Path) -> str:
    """Return the options of what an edit goes towards, whose selection is kept in ``out``."""
    from queries.selections import file_name

    if one.toward is None:
        return ""
    path = out / f"toward-{file_name(one.toward)}.json"
    one.toward.save(path)
    return f" --toward {path} --pull {one.pull:g}"
