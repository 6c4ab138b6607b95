"""``featurestore plan``: what a corpus takes, before anything is loaded."""

from typing import TYPE_CHECKING

import click

from featurestore.cli.options.kinds import Finite

if TYPE_CHECKING:
    from collections.abc import Mapping

    from collectors.planning.budget import Budget, Corpus

_KEPT: "Mapping[str, tuple[str, ...]]" = {
    "everything": (),
    "no activations (collect --sae --no-activations)": ("activations",),
    "no activations, no codes": ("activations", "codes"),
}
"""what is kept → the tables that are not"""


@click.command()
@click.option(
    "--model",
    default="sd15",
    show_default=True,
    help="sd15, sdxl or flux; another: give its three sizes.",
)
@click.option(
    "--prompts", "n_prompts", type=click.IntRange(1), required=True, help="Number of prompts."
)
@click.option(
    "--seeds",
    "n_seeds",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Pictures per prompt.",
)
@click.option(
    "--steps", type=click.IntRange(1), help="Denoising steps; default: the model's usual number."
)
@click.option(
    "--hooks",
    "n_hooks",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Number of hooks.",
)
@click.option("--both-branches", is_flag=True, help="Keep the unconditional half too.")
@click.option("--positions", type=click.IntRange(1), help="Of the hook's map.")
@click.option("--d-in", type=click.IntRange(1), help="Channels of the hook.")
@click.option("--tflop", type=Finite(0, min_open=True), help="Of one sample's denoiser call.")
@click.option(
    "--k",
    type=click.IntRange(1),
    default=32,
    show_default=True,
    help="Active latents per position.",
)
@click.option(
    "--latents",
    type=click.IntRange(1),
    default=20480,
    show_default=True,
    help="Latents of the SAE.",
)
@click.option(
    "--families",
    "n_families",
    type=click.IntRange(1),
    default=2,
    show_default=True,
    help="Families of concepts that samples are labelled with.",
)
@click.option(
    "--concepts",
    "n_concepts",
    type=click.IntRange(1),
    default=70,
    show_default=True,
    help="Concepts, of all families together.",
)
@click.option(
    "--gpus",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="GPUs that work side by side.",
)
@click.option("--gpu-price", type=Finite(0), help="Price of a GPU hour, to add up the cost.")
@click.option("--disk-price", type=Finite(0), help="Price of a terabyte per month, likewise.")
def plan(
    *, model: str, n_prompts: int, n_seeds: int, steps: int | None, n_hooks: int,
    both_branches: bool, positions: int | None, d_in: int | None, tflop: float | None, k: int,
    latents: int, n_families: int, n_concepts: int, gpus: int, gpu_price: float | None,
    disk_price: float | None,
) -> None:  # fmt: skip
    """Say what a corpus takes: bytes of each table, files, GPU hours, what SQL takes on one machine
    and on Spark, cost. Loads no model.

    The constants were measured (docs/scale.md says where); hours of models other than sd15 are
    scaled by their arithmetic. For a run that can be started, `featurestore collect --dry-run`
    measures one batch.

    \b
    Example:
      featurestore plan --model sd15 --prompts 83200 --hooks 2 --gpus 8 --gpu-price 2.5
    """
    from collectors.planning.budget import Corpus, budget, model_sizes

    sizes = model_sizes(model, positions=positions, d_in=d_in, tflop=tflop, n_steps=steps)
    corpus = Corpus(
        model=sizes, n_prompts=n_prompts, n_seeds=n_seeds, n_hooks=n_hooks,
        n_branches=2 if both_branches else 1, k=k, n_latents=latents, n_families=n_families,
        n_concepts=n_concepts,
    )  # fmt: skip
    made = budget(corpus)
    _print_disk(corpus, made, disk_price)
    _print_work(corpus, made, gpus, gpu_price)


def _print_disk(corpus: "Corpus", made: "Budget", price: float | None) -> None:
    from featurestore.cli.terminal.text import human_bytes, text_table

    click.echo(
        f"{corpus.samples:,} pictures × {corpus.model.n_steps} steps × {corpus.n_hooks} hook(s) of "
        f"{corpus.model.positions} × {corpus.model.d_in}: {corpus.rows:,} rows, "
        f"{made.stats_rows:,} rows of stats\n"
    )
    rows = [[table, human_bytes(size)] for table, size in made.table_bytes.items()]
    click.echo(text_table(["table", "size"], rows, [False, True]))
    sizes = [(what, made.kept_bytes(without)) for what, without in _KEPT.items()]
    names = ["if you keep", "disk", *(["per month"] if price is not None else [])]
    rows = [
        [what, human_bytes(n), *([f"{n / 1e12 * price:,.2f}"] if price is not None else [])]
        for what, n in sizes
    ]
    click.echo("\n" + text_table(names, rows, [False, *[True] * (len(names) - 1)]))


def _print_work(corpus: "Corpus", made: "Budget", gpus: int, gpu_price: float | None) -> None:
    hours = made.generate_hours + made.encode_hours
    said = (
        f"\nGPU (one H100): {made.generate_hours:,.2f} h to collect, at most "
        f"{made.encode_hours:,.2f} h to encode"
    )
    said += f"; {hours / gpus:,.2f} h with {gpus} side by side" if gpus > 1 else ""
    said += (
        f"; cost {hours * gpu_price:,.2f} at {gpu_price:g} per hour"
        if gpu_price is not None
        else ""
    )
    click.echo(f"{said}.")
    each = -(-corpus.shards // gpus)
    array = f", {each:,} for each of {gpus} tasks of a job array" if gpus > 1 else ""
    click.echo(
        f"Files: {corpus.shards:,} shards per table, of {corpus.shard_samples} pictures{array}; "
        f"{made.n_files:,} files, which are as many objects in an object store."
    )
    click.echo(
        f"SQL, once: sums, candidates and tables by feature in {made.derive_hours:,.2f} h on two "
        f"cores within 2 GB of memory; the sums on Spark in an hour with "
        f"{made.spark_executors:,} executor(s) of four cores."
    )
    if corpus.model.name != "sd15":
        click.echo(
            "Measured for sd15 only: the hours of the GPU are scaled by the arithmetic of a "
            "denoiser call."
        )
