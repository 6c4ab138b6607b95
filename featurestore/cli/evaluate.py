"""``featurestore evaluate``."""

from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import click

from featurestore.cli.options import (
    DrawingOptions,
    Numbers,
    SearchOptions,
    TargetOptions,
    drawing_options,
    judge_option,
    mode_option,
    search_options,
    target_options,
)
from featurestore.cli.options.gathering import given_options
from featurestore.cli.terminal.hints import say_next, say_progress
from featurestore.cli.terminal.scores import scores_table, sequential_table
from featurestore.vocabulary import DEFAULT_STRENGTH, INTERVENTIONS, PROTOCOLS

T = TypeVar("T")


@click.command()
@drawing_options(out="Directory for the outcomes; a second run goes on in it.")
@judge_option
@target_options
@click.option(
    "--multiplier",
    "multipliers",
    type=Numbers(float),
    default=f"{DEFAULT_STRENGTH:g}",
    show_default=True,
    help="Strength; several are searched.",
)
@click.option(
    "--threshold",
    "thresholds",
    type=Numbers(float),
    default="1",
    show_default=True,
    help="Activations above this many times their feature's mean are edited, 0: all; several are "
    "searched.",
)
@click.option(
    "--intervention",
    type=click.Choice(list(INTERVENTIONS)),
    default="paper",
    show_default=True,
)
@mode_option
@click.option(
    "--protocol",
    type=click.Choice(PROTOCOLS),
    default="each",
    show_default=True,
    help="Remove one concept at a time, one after another without putting any back, or all at "
    "once.",
)
@search_options
@click.option(
    "--hold",
    is_flag=True,
    help="Search for what withstands attack: --top 8,32 --multiplier=-0.5,-0.7,-1 --threshold 0,1 "
    "--search-attack 2, and of one concept at a time --pull 0.5,1, each unless you give it.",
)
@click.option(
    "--reference",
    type=click.Path(path_type=Path),
    help="Pictures to measure the distance from.  [default: the untouched model's]",
)
def evaluate(
    *,
    drawing: DrawingOptions,
    judges: tuple[str, ...],
    targets: TargetOptions,
    multipliers: list[float],
    thresholds: list[float],
    intervention: str,
    mode: str,
    protocol: str,
    search: SearchOptions,
    hold: bool,
    reference: Path | None,
) -> None:
    """Measure unlearning as UnlearnCanvas does: remove concepts, generate every prompt with every
    seed, judge.

    UA: pictures asked for a removed concept that do not show it. IRA: other concepts of its family
    kept. CRA: other families
    kept, on the same pictures, and, as SAeUron's released scorer has it, on prompts that name no
    concept of the family. In brackets: 95 % intervals over seeds and pictures. Everything is kept
    in evaluation.json.

    \b
    Example:
      featurestore evaluate --model minicanvas --prompts prompts.jsonl --seeds 100-104 --judge minicanvas \\
          --ablate neon.json --ablate sketch.json --multiplier -1 --out styles
      featurestore evaluate --model minicanvas --prompts prompts.jsonl --seeds 100-104 --judge minicanvas \\
          --store demo/store --sae styles --by style --top 2,4 --multiplier=-1,-5 \\
          --search-judge minicanvas:selection --search-seeds 50-52 --out searched
    """  # fmt: skip
    from sae.evaluation import evaluate as measure
    from sae.evaluation.judge import check_labels
    from sae.evaluation.measures.accuracy import targets_text
    from sae.evaluation.removals import requests
    from sae.evaluation.search import HOLDING

    if hold:
        multipliers = _given("multipliers", multipliers, [*HOLDING.strengths])
        thresholds = _given("thresholds", thresholds, [*HOLDING.thresholds])
        targets = replace(targets, top=_given("top", targets.top, [*HOLDING.tops]))
        pictures = _given("search_attack", search.search_attack, HOLDING.pictures)
        search = replace(search, search_attack=pictures)
    searched = search.load(drawing.prompts, drawing.judge_device)
    wanted = requests(
        targets.read(), kind=intervention, strengths=multipliers, thresholds=thresholds
    )
    judge, asked = drawing.judge(judges), drawing.asked()
    check_labels(judge, [*(p.labels for p in asked), *({r.family: r.concept} for r in wanted)])
    model, run = drawing.load(asked)
    body = measure(
        model,
        wanted,
        prompts=asked,
        judge=judge,
        out=drawing.out,
        run=run,
        protocol=protocol,
        search=searched,
        search_attack=search.attack(),
        search_pictures=search.search_attack or 0,
        toward=targets.toward(
            wanted,
            protocol,
            searched=searched is not None,
            otherwise=HOLDING.pulls if hold else (),
        ),
        reference=reference,
        mode=mode,
        batch_size=drawing.run.batch_size,
        say=say_progress,
    )
    named = [(targets_text(row["targets"]), row) for row in body["removals"]]
    average = [("average", body["average"])] if body["average"] and len(named) > 1 else []
    click.echo(scores_table([*named, *average], judge.name))
    if protocol == "sequential":
        click.echo(sequential_table(body["removals"]))
    selections = targets.selections[:1] or ("SELECTION.json",)
    say_next("attack", *drawing.words(judges), "--ablate", *selections, "--out", "ATTACKS")


def _given(name: str, value: T, otherwise: T) -> T:
    """Return an option's value if it was given, or else another."""
    return value if given_options(name) else otherwise
