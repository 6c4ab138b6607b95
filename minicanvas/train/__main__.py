"""Train everything that ships: `python -m minicanvas.train --out DIR`."""

import os
import time
from pathlib import Path

import click

from minicanvas.option import canvas_option
from minicanvas.train.plans import device_name, kept_plan
from minicanvas.train.stages import STAGES, Run, ship


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Working directory.",
)
@canvas_option
@click.option(
    "--stage", type=click.Choice(list(STAGES)), multiple=True, help="Run only these [default: all]."
)
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    help="Processes to use [default: 2; with a GPU, to render: one per core].",
)
@click.option(
    "--minutes",
    type=click.FloatRange(min=0, min_open=True),
    help="Train the denoiser for as many steps as fit, so that all is done in this time.",
)
@click.option("--ship", "ships", is_flag=True, help="Put the weights into the package at the end.")
def main(
    *,
    out: Path,
    name: str,
    stage: tuple[str, ...],
    processes: int | None,
    minutes: float | None,
    ships: bool,
) -> None:
    """Train the autoencoder, the classifiers, the text encoder and the UNet, export and measure
    them.

    Takes hours on 2 CPU cores (the small benchmark one); a GPU is used if there is one.
    Interrupted, it goes on where it stopped, also on another machine.

    Example: python -m minicanvas.train --canvas minicanvas:large --out build/large
    """
    began = time.monotonic()
    if processes is None:
        processes = (os.cpu_count() or 2) if device_name() == "cuda" else 2
    try:
        run = Run(
            out,
            kept_plan(out, name),
            processes,
            None if minutes is None else began + 60 * minutes,
        )
        for each in stage or STAGES:
            start = time.monotonic()
            click.echo(f"stage {each}")
            STAGES[each](run)
            click.echo(f"stage {each} took {(time.monotonic() - start) / 60:.1f} min")
        if ships:
            ship(run)
            click.echo(f"the weights are in {run.plan.canvas.folder}")
    except (FileNotFoundError, ValueError) as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
