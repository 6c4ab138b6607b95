"""``featurestore demo``: the whole way, on the included model."""

from pathlib import Path

import click


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("demo"),
    show_default=True,
    help="Directory; a second run goes on in it.",
)
@click.option(
    "--quick",
    is_flag=True,
    help="A tenth of the pictures and of the training: for trying, not for results.",
)
def demo(out: Path, quick: bool) -> None:
    """Collect, train, encode, score, export, ablate and judge on the included model; write a
    report.

    Takes minutes on two CPU cores and no network. Prints the commands that do the same by hand.

    \b
    Example:
      featurestore demo --out demo
    """
    from featurestore.cli.demo.stages import run_demo

    run_demo(out, quick)
