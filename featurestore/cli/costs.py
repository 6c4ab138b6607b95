"""``featurestore costs``."""

import json

import click

from featurestore.cli.options import (
    DrawingOptions,
    InterventionOptions,
    drawing_options,
    intervention_options,
    judge_option,
    mode_option,
)
from featurestore.cli.terminal.hints import say_progress

FILE = "costs.json"


@click.command()
@drawing_options(out="Directory for costs.json.")
@judge_option
@intervention_options
@mode_option
@click.option(
    "--most",
    type=click.IntRange(1),
    default=4,
    show_default=True,
    help="Features that are spared, of each concept that is lost.",
)
def costs(
    *,
    drawing: DrawingOptions,
    judges: tuple[str, ...],
    edits: InterventionOptions,
    mode: str,
    most: int,
) -> None:
    """Say which features of a removal cost what is kept (CRA), and on which concepts.

    Draws the prompts with everything removed. Of each concept of another family that some picture
    lost, the removed features that belong to it most, by the scores of the selections' store, are
    spared one at a time, and the lost pictures drawn again: what comes back was lost to that
    feature.

    \b
    Example:
      featurestore costs --model minicanvas --prompts prompts.jsonl --seeds 50 --judge minicanvas:selection \\
          --ablate neon.json --multiplier -20 --out costs
    """  # fmt: skip
    import pyarrow as pa

    from featurestore.cli.terminal.tables import as_text
    from featurestore.format import durable
    from queries.scores import suspects
    from sae.evaluation.costs import costs as measure

    interventions = edits.interventions()
    judge, asked = drawing.judge(judges), drawing.asked()
    model, run = drawing.load(asked)
    found = measure(
        model,
        interventions,
        prompts=asked,
        judge=judge,
        suspects=suspects,
        run=run,
        mode=mode,
        most=most,
        batch_size=drawing.run.batch_size,
        say=say_progress,
    )
    rows = [one._asdict() for one in found]
    durable.write_bytes(drawing.out / FILE, (json.dumps(rows, indent=1) + "\n").encode())
    if not rows:
        click.echo("No picture lost a concept of another family.")
        return
    shown = [{**row, **{k: f"{row[k]:.3f}" for k in ("p_removed", "p_spared")}} for row in rows]
    click.echo(as_text(pa.Table.from_pylist(shown), rows=None))
