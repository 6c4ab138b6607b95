"""Train everything that ships: `python -m minicanvas.train --out DIR`."""

import time
from pathlib import Path

import click

from minicanvas.train.stages import STAGES, Plan


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Working directory.",
)
@click.option(
    "--stage", type=click.Choice(list(STAGES)), multiple=True, help="Run only these [default: all]."
)
@click.option(
    "--processes",
    default=Plan().n_processes,
    show_default=True,
    help="Processes to use on the CPU.",
)
def main(out: Path, stage: tuple[str, ...], processes: int) -> None:
    """Train the autoencoder, the classifiers, the text encoder and the UNet, and export them.

    Takes about an hour on 2 CPU cores; a GPU is used if there is one. Interrupted, it goes on where
    it stopped.

    Example: python -m minicanvas.train --out build/minicanvas
    """
    out.mkdir(parents=True, exist_ok=True)
    plan = Plan(n_processes=processes)
    for name in stage or STAGES:
        start = time.perf_counter()
        click.echo(f"stage {name}")
        STAGES[name](out, plan)
        click.echo(f"stage {name} took {(time.perf_counter() - start) / 60:.1f} min")


if __name__ == "__main__":
    main()
