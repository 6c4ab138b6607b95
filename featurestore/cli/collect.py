"""``featurestore collect``."""

from pathlib import Path

import click

from featurestore.cli.options import model_options, run_options


@click.command()
@model_options
@click.option("--prompts", required=True, type=click.Path(path_type=Path), help="JSONL file, see above.")
@click.option("--hook", "hooks", required=True, multiple=True, help="Module path or pattern, see above.")
@click.option(
    "--store", required=True, type=click.Path(path_type=Path), help="Directory of the store; made if missing."
)
@click.option(
    "--io",
    type=click.Choice(["output", "input", "difference"]),
    default="output",
    show_default=True,
    help="Which tensor of the module; difference is output - input.",
)
@click.option(
    "--branch",
    type=click.Choice(["cond", "uncond", "both"]),
    default="cond",
    show_default=True,
    help="Which half of classifier-free guidance.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float16", "float32"]),
    default="float16",
    show_default=True,
    help="Of the stored activations.",
)
@click.option("--images", is_flag=True, help="Also keep the pictures, in the table samples.")
@click.option("--shard-samples", type=click.IntRange(1), default=16, show_default=True, help="Pictures a shard.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
@run_options
def collect(
    model: str,
    device: str,
    model_dtype: str,
    prompts: Path,
    hooks: tuple[str, ...],
    store: Path,
    io: str,
    branch: str,
    dtype: str,
    images: bool,
    shard_samples: int,
    quiet: bool,
    steps: int | None,
    guidance: float | None,
    true_cfg: float,
    negative_prompt: str,
    height: int | None,
    width: int | None,
    seeds: list[int],
    batch_size: int,
) -> None:
    """Run a model over prompts and keep the activations of its modules at every denoising step.

    A line of the prompts file is {"prompt": "…", "style": "…", "object": "…"}: beside the prompt (and an optional "seed")
    every key is a family of concepts and its value the sample's concept. The same command goes on where it was
    interrupted; more prompts, seeds and hooks can be added to a store later.

    A hook is a module's path, or a pattern in which *, ? and [...] stand for something within one part of it; several
    --hook for several. Blocks of SD3 and FLUX have two streams: a hook is their hidden_states, and with "-encoder" at its
    end their encoder_hidden_states. See docs/architectures.md.

    \b
    featurestore collect --model minicanvas --prompts prompts.jsonl --store ./store \\
        --hook unet.up_blocks.1.attentions.1 --seeds 0-4
    """  # fmt: skip
    from collectors.collect import CollectSettings
    from collectors.collect import collect as run_collect
    from collectors.models import RunSettings, load_model
    from collectors.prompts import read_prompts
    from featurestore.cli.store import human_bytes

    wanted = read_prompts(prompts, seeds)
    loaded = load_model(model, device, model_dtype)
    run = RunSettings(
        steps or loaded.steps,
        loaded.guidance if guidance is None else guidance,
        negative_prompt,
        height,
        width,
        true_cfg,
    )
    settings = CollectSettings(hooks, io, branch, dtype, images, batch_size, shard_samples)
    report = run_collect(store, loaded, wanted, run, settings, progress=not quiet)
    skipped = f", {report.n_skipped} were there already" if report.n_skipped else ""
    click.echo(f"{report.n_samples} samples collected{skipped}.")
    for hook in report.hooks:
        records = report.store.records(f"activations/{hook}")
        size = human_bytes(sum(entry.bytes for record in records for entry in record.files))
        click.echo(
            f"  {hook}: {sum(record.rows for record in records):,} rows, {size}, {len(records)} shards in {store}"
        )
