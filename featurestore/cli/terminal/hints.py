"""What a command says beside its answer: what the answer lacks, and what comes next."""

import contextlib
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from featurestore.store import Store


def warn_unencoded(store: "Store", sae: str) -> None:
    """Say on stderr how many of the samples an SAE has not encoded, and what encodes them."""
    from featurestore.cli.terminal.values import visible
    from featurestore.saes import encoded_share, sae_record

    share, made_by = encoded_share(store, sae), sae_record(store, sae).made_by
    if 0 < share.n_encoded < share.n_samples and (words := made_by.get("mask_from")):
        click.echo(
            f"Note: {sae!r} has codes of {share.n_encoded:,} of {share.n_samples:,} samples, those "
            f"whose prompt has {visible(' or '.join(words))}; the answer is about these alone.",
            err=True,
        )
    elif 0 < share.n_encoded < share.n_samples:
        way = (
            f"featurestore encode --store {store.root} --sae {sae}"
            if share.n_waiting
            else f"featurestore collect --store {store.root} --sae {sae} …"
        )
        click.echo(
            f"Warning: {share.n_encoded:,} of {share.n_samples:,} samples are encoded with SAE "
            f"{sae!r}, and the answer is about these alone: '{way}' encodes the others.",
            err=True,
        )


@contextlib.contextmanager
def compared_anew_is_said() -> Iterator[None]:
    """Say on stderr at the end of a command, however it ends, why every command compares a store's
    files with their records: once per store, and only of what was read meanwhile."""
    _take_compared_anew()  # what a Python program read before it called the command
    try:
        yield
    finally:
        for root, which in _take_compared_anew().items():
            click.echo(
                f"Note: {root}: every command compares {which}. --verify says when it does "
                f"so (docs/reliability.md).",
                err=True,
            )


def _take_compared_anew() -> dict[Path, str]:
    """Take the notes of the module that compares files, which a command without a store loads not
    at all."""
    checksums = sys.modules.get("featurestore.format.checksums")
    return checksums.take_compared_anew() if checksums else {}


def say_progress(line: str) -> None:
    """Say on stderr what a long command is doing."""
    click.echo(f"— {line}", err=True)


def say_next(*words: object) -> None:
    """Say at a terminal which command usually comes next; what the user has to choose is in
    capitals.

    A script, which reads the output, and a log are told nothing.
    """
    if sys.stderr.isatty():
        from featurestore.cli.terminal.values import visible

        # Names in a store may be a stranger's.
        click.echo(f"Next: featurestore {visible(shlex.join(map(str, words)))}", err=True)


def after_collecting(store: "Store") -> None:
    """Say what comes next where activations, or codes, are in a store."""
    hooks, saes = store.names("activations"), store.names("codes")
    if saes:
        after_encoding(store, saes[0])
    elif hooks:
        say_next("train", "--store", store.root, "--hook", hooks[0], "--name", "NAME")


def after_encoding(store: "Store", sae: str) -> None:
    """Say what comes next where codes are in a store."""
    families = store.families() if store.records("samples") else []
    if families:
        say_next("score", store.root, "--sae", sae, "--by", families[0])
    else:
        say_next("relabel", store.root, "--prompts", "FILE")
