"""``featurestore collect``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featurestore.cli.options import (
    ModelOptions,
    PromptOptions,
    RunOptions,
    branch_option,
    io_option,
    model_options,
    prompt_options,
    run_options,
)
from featurestore.vocabulary import ACTIVATION_DTYPES, PADDING

if TYPE_CHECKING:
    from collectors.planning.estimate import Estimate


@click.command()
@model_options
@prompt_options()
@click.option("--hook", "hooks", multiple=True, help="Module path or pattern, see above.")
@click.option(
    "--store",
    required=True,
    type=click.Path(path_type=Path),
    help="Directory of the store; made if missing.",
)
@io_option
@branch_option
@click.option(
    "--dtype",
    type=click.Choice(ACTIVATION_DTYPES),
    default="float16",
    show_default=True,
    help="Of the stored activations.",
)
@click.option(
    "--timesteps",
    default="all",
    show_default=True,
    help="Steps to keep: all, every:5, or indices like 0,10-19.",
)
@click.option(
    "--positions",
    default="all",
    show_default=True,
    help="Of each map: all, random:64, or mean (one row of means).",
)
@click.option(
    "--attention",
    "words",
    multiple=True,
    metavar="WORD",
    help="Also keep how much each position of the hooks attends to a word of the prompt; repeated.",
)
@click.option(
    "--padding",
    type=click.Choice(PADDING),
    default="keep",
    show_default=True,
    help="Of a text encoder's tokens: those that only fill a text up.",
)
@click.option(
    "--sae",
    "saes",
    multiple=True,
    help="Encode while collecting: an SAE of the store, or the directory of one.",
)
@click.option(
    "--no-activations",
    "activations",
    flag_value=False,
    default=True,
    help="With --sae: keep codes and stats only.",
)
@click.option("--images", is_flag=True, help="Also keep the pictures, in the table samples.")
@click.option(
    "--shard-samples",
    type=click.IntRange(1),
    help="Pictures per shard.  [default: as the store was cut before, or whole batches that make "
    "about 512 MB, 64 at most]",
)
@click.option("--quiet", is_flag=True, help="No progress bar.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Generate one batch and say what the run would take; write nothing.",
)
@click.option("--ignore-space", is_flag=True, help="Begin even if the disk will not hold the run.")
@click.option(
    "--exact",
    is_flag=True,
    help="CPU: the same bytes for any --batch-size, threads and processes; slower.",
)
@click.option(
    "--rank",
    type=int,
    help="Which of --world-size processes this is.  [default: as torchrun or Slurm say]",
)
@click.option("--world-size", type=int, help="Processes that fill the store together.")
@run_options
def collect(
    *,
    model: ModelOptions,
    prompts: PromptOptions,
    store: Path,
    quiet: bool,
    dry_run: bool,
    ignore_space: bool,
    rank: int | None,
    world_size: int | None,
    run: RunOptions,
    **kept: Any,
) -> None:
    """Run a model over prompts and keep the activations of its modules at every denoising step.

    A line of a JSONL file is {"prompt": "…", "style": "…", "object": "…"}: beside the prompt (and
    an optional "seed" and "guidance") every key is a family of concepts and its value the sample's
    concept. Other files and columns of other names: 'featurestore prompts FILE' shows what is
    understood. The same command goes on where it was interrupted; more prompts, seeds and hooks can
    be added to a store later.

    A hook is a module's path, or a pattern in which *, ? and [...] stand for something within one
    part of it; several --hook for several. Blocks of SD3 and FLUX have two streams: a hook is their
    hidden_states, and with "-encoder" at its end their encoder_hidden_states. A hook may lie in a
    text encoder, too (text_encoder.encoder.layers.9): one row per prompt, at step 0. See
    docs/pipelines.md.

    Several processes fill one store under torchrun, accelerate or Slurm, or with --rank and
    --world-size; each does whole shards, and what one leaves undone another takes up.

    \b
    Example:
      featurestore collect --model minicanvas --prompts prompts.jsonl --store ./store \\
          --hook unet.up_blocks.1.attentions.1 --seeds 0-4
      torchrun --nproc-per-node 8 -m featurestore collect --model … --prompts … --hook … --store ./store
    """  # fmt: skip
    from collectors import collection as collecting
    from collectors.planning.shares import find_share
    from featurestore.cli.terminal.hints import after_collecting
    from featurestore.cli.terminal.text import human_bytes
    from queries.derived.keep import keep_derived

    share = find_share(rank, world_size)
    wanted = prompts.read(run.seeds)
    loaded = model.load(run.starts(wanted))
    settings = collecting.CollectSettings(**kept, batch_size=run.batch_size)
    if dry_run:
        _print_estimate(
            collecting.dry_run(store, loaded, wanted, run.settings(loaded), settings=settings)
        )
        return
    report = collecting.collect(
        store,
        loaded,
        wanted,
        run.settings(loaded),
        settings,
        progress=not quiet,
        share=share,
        ignore_space=ignore_space,
    )
    skipped = f", {report.n_skipped} were there already" if report.n_skipped else ""
    click.echo(f"{report.n_samples} samples collected{skipped}.")
    for table in report.tables:
        records = report.store.records(table)
        n, size = sum(r.rows for r in records), sum(r.n_bytes for r in records)
        click.echo(f"  {table}: {n:,} rows, {human_bytes(size)}, {len(records)} shards in {store}")
    for table in report.tables if report.whole else ():
        if table.startswith("stats/"):
            keep_derived(report.store, table.removeprefix("stats/"), progress=not quiet)
    if report.timing.writing:
        click.echo(f"  {report.timing.summary(report.n_bytes)}")
    after_collecting(report.store)


def _print_estimate(estimate: "Estimate") -> None:
    from collectors.planning.estimate import free_bytes
    from featurestore.cli.terminal.text import human_bytes, human_seconds, text_table

    rows = [[table, f"{n:,}", human_bytes(size)] for table, (n, size) in estimate.tables.items()]
    click.echo(text_table(["table", "rows", "size"], rows, [False, True, True]))
    free = free_bytes(estimate.root)
    fits = "" if estimate.bytes <= free else "  It does not fit."
    click.echo(
        f"{estimate.n_samples:,} samples, {estimate.n_shards:,} shards, "
        f"{human_bytes(estimate.bytes)} of {human_bytes(free)} free.{fits}"
    )
    click.echo(
        f"About {human_seconds(estimate.seconds)} in one process, from one batch (the first is "
        f"slower)."
    )
    click.echo("Nothing was written.")
