"""``featurestore train``, and what ``train-live`` shares with it."""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featurestore.vocabulary import ARCHITECTURES, BRANCH_CHOICES, LOGS, PRECISIONS

if TYPE_CHECKING:
    from featurestore.format.records import Record
    from featurestore.store import Store
    from sae.training.settings import TrainSettings


class Sizes(click.ParamType):
    """``32,96,384``."""

    name = "sizes"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Return the numbers in the order given."""
        if isinstance(value, tuple):
            return value
        parts = str(value).split(",")
        if not all(part.strip().isdecimal() for part in parts):
            self.fail(
                f"{value!r} is no list of sizes: expected something like 32,96,384.", param, ctx
            )
        return tuple(int(part) for part in parts)


def train_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say what an SAE is and how it learns; they arrive as those of
    ``TrainSettings``."""
    options = [
        click.option(
            "--architecture",
            type=click.Choice(ARCHITECTURES),
            default="topk",
            show_default=True,
            help="How the active latents are chosen; k is an average but for topk.",
        ),
        click.option(
            "--k",
            type=click.IntRange(1),
            default=32,
            show_default=True,
            help="Latents active per position.",
        ),
        click.option(
            "--expansion",
            type=float,
            default=16,
            show_default=True,
            help="Latents = expansion · channels.",
        ),
        click.option(
            "--group-sizes",
            type=Sizes(),
            default=(),
            help="Of matryoshka_batchtopk.  [default: 1/32, 1/16, … of the latents]",
        ),
        click.option(
            "--scale-inputs",
            is_flag=True,
            default=None,
            help="Train on inputs of unit size, as jumprelu always does.",
        ),
        click.option(
            "--precision",
            type=click.Choice(PRECISIONS),
            default="float32",
            show_default=True,
            help="Of the encoder's matrix product; bfloat16 is several times faster where the "
            "processor has it.",
        ),
        click.option(
            "--lr",
            type=float,
            help="Peak learning rate.  [default: 16e-4 · √(20480 / latents), up to twice that in a "
            "short training]",
        ),
        click.option(
            "--seed",
            type=click.IntRange(0),
            default=0,
            show_default=True,
            help="Of weights and data order.",
        ),
        click.option(
            "--branch",
            type=click.Choice(list(BRANCH_CHOICES)),
            default="cond",
            show_default=True,
            help="Which half of classifier-free guidance to learn from.",
        ),
        click.option(
            "--log", type=click.Choice(LOGS), help="Also report there, if it is installed."
        ),
        click.option("--quiet", is_flag=True, help="No progress bar."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@click.option(
    "--store", required=True, type=click.Path(path_type=Path), help="Directory of the store."
)
@click.option(
    "--hook",
    "hooks",
    required=True,
    multiple=True,
    help="Module path that activations were collected at.",
)
@click.option(
    "--name",
    "names",
    required=True,
    multiple=True,
    help="Of the SAE in the store; one for each --hook.",
)
@click.option(
    "--steps", type=click.IntRange(1), help="[default: five times all positions, 1000 at least]"
)
@click.option(
    "--batch-size",
    type=click.IntRange(2),
    default=4096,
    show_default=True,
    help="Positions per step.",
)
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, …")
@train_options
def train(
    *,
    store: Path,
    hooks: tuple[str, ...],
    names: tuple[str, ...],
    steps: int | None,
    batch_size: int,
    device: str,
    log: str | None,
    quiet: bool,
    **what: Any,
) -> None:
    """Train an SAE on the activations of a hook; with several --hook and --name, one for each, side
    by side.

    Weights, configuration and metrics (on samples held out from training) go into the store, with a
    picture of the course. The same command goes on where it was interrupted, and ends with the same
    weights. Started by torchrun or accelerate, the processes share each batch.

    \b
    Example:
      featurestore train --store ./store --hook unet.up_blocks.1.attentions.1 --k 32 --expansion 16 --name styles
      torchrun --nproc-per-node 8 -m featurestore train --store ./store --hook … --name styles
    """
    from featurestore.cli.terminal.hints import say_next
    from featurestore.store import Store
    from sae.feed.batches import PositionBatches
    from sae.training.logs import open_log
    from sae.training.train import train_many

    settings = train_settings(steps, batch_size, what)
    opened, began = Store.open(store), time.monotonic()
    sources = {
        name: PositionBatches(
            opened,
            hook,
            settings.branch,
            batch_size,
            seed=settings.seed,
            holdout=settings.holdout,
        )
        for name, hook in named(names, hooks).items()
    }
    with open_log(log, store) as report:
        records = train_many(
            opened, dict(sources), settings, progress=not quiet, device=device, on_report=report
        )
    for record in records if int(os.environ.get("RANK", "0")) == 0 else []:
        click.echo(summary(opened, record, time.monotonic() - began))
        say_next("encode", "--store", store, "--sae", record.shard)


def named(names: Sequence[str], hooks: Sequence[str]) -> dict[str, str]:
    """Return name → hook.

    Raises:
        UsageError: the numbers of hooks and names differ, or a name stands twice.
    """
    from featurestore.errors import UsageError

    if len(names) != len(hooks) or len(set(names)) < len(names):
        raise UsageError(
            f"{len(hooks)} --hook and {len(set(names))} different --name: give each hook a name "
            f"of its own."
        )
    return dict(zip(names, hooks, strict=True))


def train_settings(steps: int | None, batch_size: int, what: dict[str, Any]) -> "TrainSettings":
    """Return the settings that the options say."""
    from sae.training.settings import TrainSettings

    return TrainSettings(
        steps=steps, batch_size=batch_size, **{**what, "scale_inputs": what["scale_inputs"] or None}
    )


def summary(store: "Store", record: "Record", seconds: float) -> str:
    """Return what an SAE is and how good, for people."""
    from featurestore.saes import load_config, load_metrics

    config, metrics = load_config(store, record.shard), load_metrics(store, record.shard)
    assert metrics is not None, "training measures"
    directory = store.root / "saes" / record.shard
    where = "held-out samples" if metrics["held_out"] else "the training samples: there is only one"
    fvu = "undefined" if metrics["fvu"] is None else f"{metrics['fvu']:.4f}"
    return "\n".join(
        [
            f"SAE {record.shard!r}: {described(config)}",
            f"  FVU   {fvu}  ({metrics['n_positions']:,} positions of {metrics['n_samples']} "
            f"samples, {where})",
            f"  L0    {metrics['l0']:.1f}",
            f"  dead  {metrics['n_dead']} of {config['n_latents']} never fired there",
            f"  time  {seconds:.0f} s",
            f"  plot  {directory / 'training.png'}",
            f"  in    {directory}",
        ]
    )


def described(config: dict[str, Any]) -> str:
    """Return an SAE's architecture and sizes, for people."""
    kind = "" if config["architecture"] == "topk" else f"{config['architecture']}, "
    k = f", k {config['k']}" if config["k"] else ""
    return f"{kind}{config['n_latents']} latents on {config['d_in']} channels{k}"
