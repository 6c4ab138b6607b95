"""``featurestore train-live``."""

import time
from pathlib import Path
from typing import Any

import click

from featurestore.cli.options import (
    ModelOptions,
    PromptOptions,
    RunOptions,
    io_option,
    model_options,
    prompt_options,
    run_options,
)
from featurestore.cli.train import named, summary, train_options, train_settings


@click.command("train-live")
@model_options
@prompt_options()
@click.option(
    "--hook",
    "hooks",
    required=True,
    multiple=True,
    help="Module path; several --hook for several SAEs.",
)
@click.option(
    "--name",
    "names",
    required=True,
    multiple=True,
    help="Of the SAE in the store; one for each --hook.",
)
@click.option(
    "--store",
    required=True,
    type=click.Path(path_type=Path),
    help="Where the SAEs go; made if missing.",
)
@io_option
@click.option(
    "--positions-a-step",
    type=click.IntRange(2),
    default=4096,
    show_default=True,
    help="Training batch.",
)
@click.option(
    "--chunk",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="Pictures that are mixed.",
)
@click.option("--training-steps", type=click.IntRange(1), help="[default: every position once]")
@click.option(
    "--scratch",
    type=click.Path(path_type=Path),
    help="Where a chunk's activations lie.  [default: TMPDIR]",
)
@train_options
@run_options
def train_live(
    *,
    model: ModelOptions,
    prompts: PromptOptions,
    hooks: tuple[str, ...],
    names: tuple[str, ...],
    store: Path,
    io: str,
    positions_a_step: int,
    chunk: int,
    training_steps: int | None,
    scratch: Path | None,
    log: str | None,
    quiet: bool,
    run: RunOptions,
    **what: Any,
) -> None:
    """Train SAEs while pictures are generated, keeping no activations.

    All hooks are captured in one pass. A tenth of the samples is kept from training and measured
    on. The same command goes on where it was interrupted: it generates the first chunk again and
    the one at which it stopped.

    \b
    Example:
      featurestore train-live --model minicanvas --prompts prompts.jsonl --store ./store --k 16 --expansion 8 \\
          --hook unet.up_blocks.1.attentions.1 --name styles --hook unet.up_blocks.0.attentions.1 --name objects
    """
    from collectors.collection import CollectSettings
    from collectors.live import train_live
    from featurestore.cli.terminal.hints import say_next
    from featurestore.store import Store
    from sae.training.logs import open_log

    settings, began = train_settings(training_steps, positions_a_step, what), time.monotonic()
    wanted = prompts.read(run.seeds)
    loaded = model.load(run.starts(wanted))
    collecting = CollectSettings(
        hooks=hooks, io=io, branch=settings.branch, batch_size=run.batch_size
    )
    with open_log(log, store) as report:
        records = train_live(
            store,
            loaded,
            wanted,
            run.settings(loaded),
            hooks=named(names, hooks),
            settings=settings,
            what=collecting,
            chunk_samples=chunk,
            progress=not quiet,
            device=model.device,
            scratch=scratch,
            on_report=report,
        )
    for record in records:
        click.echo(summary(Store.open(store), record, time.monotonic() - began))
    kept = ("--store", store, "--sae", records[0].shard, "--no-activations")
    say_next("collect", *kept, "--model", model.model, "--prompts", str(prompts.source))
