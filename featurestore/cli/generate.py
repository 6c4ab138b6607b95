"""``featurestore generate``."""

from pathlib import Path

import click

from featurestore.cli.options import model_options, run_options


@click.command()
@model_options
@click.option("--prompt", "texts", multiple=True, help="A prompt; several times for several.")
@click.option("--prompts", type=click.Path(path_type=Path), help="A JSONL prompts file, as for collect.")
@click.option(
    "--ablate",
    "selections",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A selection file; several times for several.",
)
@click.option(
    "--multiplier",
    type=float,
    default=-5.0,
    show_default=True,
    help="Strength γ: selected features are scaled by γ · their mean.",
)
@click.option(
    "--sae", type=click.Path(path_type=Path), help="Directory of the SAE, if the selection's store is elsewhere."
)
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Directory for PNG files and generated.jsonl."
)
@click.option("--quiet", is_flag=True, help="No progress bar.")
@run_options
def generate(
    model: str,
    device: str,
    model_dtype: str,
    texts: tuple[str, ...],
    prompts: Path | None,
    selections: tuple[Path, ...],
    multiplier: float,
    sae: Path | None,
    out: Path,
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
    """Generate pictures, with the features of selections ablated if there are any.

    Writes one PNG a (prompt, seed), and generated.jsonl, which says what each file is and how it was made.

    \b
    featurestore generate --model minicanvas --prompt "An image of cat in neon style." --seeds 0-3 --out before
    featurestore generate --model minicanvas --prompt "An image of cat in neon style." --seeds 0-3 --out after \\
        --ablate neon.json --multiplier -20
    """  # fmt: skip
    from collectors.generate import Ablation, generate_files
    from collectors.models import RunSettings, load_model
    from collectors.prompts import Prompt, read_prompts
    from featurestore.errors import UsageError
    from featurestore.selection import Selection

    if not texts and prompts is None:
        raise UsageError("nothing to generate: give --prompt or --prompts.")
    chosen = [Selection.load(path) for path in selections]
    wanted = [Prompt(text, seed, {}, 0) for text in dict.fromkeys(texts) for seed in seeds]
    wanted += read_prompts(prompts, seeds) if prompts is not None else []
    loaded = load_model(model, device, model_dtype)
    run = RunSettings(
        steps or loaded.steps,
        loaded.guidance if guidance is None else guidance,
        negative_prompt,
        height,
        width,
        true_cfg,
    )
    ablation = Ablation(chosen, multiplier, sae) if chosen else None
    files = generate_files(out, loaded, wanted, run, ablation, batch_size, progress=not quiet)
    click.echo(f"{len(files)} pictures in {out}")
