"""The option of commands that names a benchmark; it loads no torch."""

import click

from minicanvas.canvases import CANVASES, SMALL

canvas_option = click.option(
    "--canvas",
    "name",
    type=click.Choice(list(CANVASES)),
    default=SMALL.name,
    show_default=True,
    help="The benchmark.",
)
