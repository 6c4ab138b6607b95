"""``featurestore plan``: what a corpus takes, before anything is loaded."""

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collectors.planning.budget import Budget, Corpus


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
@click.option(
    "--tflop", type=click.FloatRange(0, min_open=True), help="Of one sample's denoiser call."
)
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
    "--gpus",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="GPUs that work side by side.",
)
@click.option(
    "--gpu-price", type=click.FloatRange(0), help="Price of a GPU hour, to add up the cost."
)
def plan(
    *, model: str, n_prompts: int, n_seeds: int, steps: int | None, n_hooks: int, both_branches: bool,
    positions: int | None, d_in: int | None, tflop: float | None, k: int, latents: int, gpus: int,
    gpu_price: float | None,
) -> None:  # fmt: skip
    """Say what a corpus takes: bytes of each table, GPU hours, cost. Loads no model.

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
        n_branches=2 if both_branches else 1, k=k, n_latents=latents,
    )  # fmt: skip
    _print(corpus, budget(corpus), gpus, gpu_price)


def _print(corpus: "Corpus", made: "Budget", gpus: int, gpu_price: float | None) -> None:
    from featurestore.cli.store import human_bytes
    from featurestore.cli.terminal.text import text_table

    kept = {
        "everything": ("samples", "activations", "codes", "stats"),
        "codes and statistics (collect --sae --no-activations)": ("samples", "codes", "stats"),
        "statistics only": ("samples", "stats"),
    }
    click.echo(
        f"{corpus.samples:,} pictures × {corpus.model.n_steps} steps × {corpus.n_hooks} hook(s) of "
        f"{corpus.model.positions} × {corpus.model.d_in}: {corpus.rows:,} rows, "
        f"{made.stats_rows:,} rows of stats\n"
    )
    rows = [[table, human_bytes(size)] for table, size in made.table_bytes.items()]
    click.echo(text_table(["table", "size"], rows, [False, True]))
    rows = [
        [what, human_bytes(sum(made.table_bytes[t] for t in tables))]
        for what, tables in kept.items()
    ]
    click.echo("\n" + text_table(["if you keep", "disk"], rows, [False, True]))
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
    if corpus.model.name != "sd15":
        click.echo(
            "Measured for sd15 only: these hours are scaled by the arithmetic of a denoiser call."
        )
