"""What a command says beside its answer: what the answer lacks, and what comes next."""

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from featurestore.store import Store


def warn_unencoded(store: "Store", sae: str) -> None:
    """Say on stderr how many of the samples an SAE has not encoded, and what encodes them."""
    from featurestore.saes import encoded_share

    share = encoded_share(store, sae)
    if 0 < share.n_encoded < share.n_samples:
        way = (
            f"featurestore encode --store {store.root} --sae {sae}"
            if share.n_waiting
            else f"featurestore collect --store {store.root} --sae {sae} …"
        )
        click.echo(
            f"Warning: {share.n_encoded:,} of {share.n_samples:,} samples are encoded with SAE {sae!r}, and the answer is of "
            f"these alone: '{way}' encodes the others.",
            err=True,
        )


def say_next(*commands: str) -> None:
    """Say which command usually comes next."""
    click.echo("Next: " + "\n      ".join(commands))
