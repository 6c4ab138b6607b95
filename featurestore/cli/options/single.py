"""Options that stand for themselves in several commands."""

from pathlib import Path

import click

from featurestore.vocabulary import BRANCH_CHOICES, IO, MODES

io_option = click.option(
    "--io",
    type=click.Choice(IO),
    default="output",
    show_default=True,
    help="Which tensor of the module; difference is output - input.",
)
branch_option = click.option(
    "--branch",
    type=click.Choice(list(BRANCH_CHOICES)),
    default="cond",
    show_default=True,
    help="Which half of classifier-free guidance.",
)
mode_option = click.option(
    "--mode",
    type=click.Choice(list(MODES)),
    default="paper",
    show_default=True,
    help="Keep the SAE's error (paper); let features count, too, that are not among the k largest "
    "(beyond-k); drop the error (no-error); or do as SAeUron's released code, to compare with it "
    "(saeuron).",
)
judge_option = click.option(
    "--judge",
    "judges",
    multiple=True,
    required=True,
    help="minicanvas, minicanvas:selection, or the directory of a timm classifier; several for "
    "several families.",
)
quiet_option = click.option("--quiet", is_flag=True, help="No progress bar.")
sae_directories_option = click.option(
    "--sae",
    "saes",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Directory of the SAE, if the selection's store is elsewhere; of several, each has its "
    "SAE's name.",
)
ablate_option = click.option(
    "--ablate",
    "selections",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A selection file; may be repeated: those of one concept are removed together.",
)
