"""``featurestore generate``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from featurestore.cli.options import model_options, run_options, run_settings


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
    "multipliers",
    type=float,
    multiple=True,
    help="Strength: γ (selected features are scaled by γ · their mean), c of clamp, α of add.  [default: -5]",
)
@click.option(
    "--intervention",
    "kinds",
    multiple=True,
    type=click.Choice(["paper", "zero", "clamp", "add", "replace"]),
    help="What is done with the features.  [default: paper]",
)
@click.option(
    "--branch",
    "branches",
    multiple=True,
    type=click.Choice(["cond", "uncond", "both"]),
    help="Half of guidance that is edited.  [default: the selection's]",
)
@click.option(
    "--window", "windows", multiple=True, help="Timesteps, such as 800:200, or parts of the schedule, such as 0%:50%."
)
@click.option(
    "--mask",
    "masks",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A picture, white where the edit acts; of the pictures' size or the map's.",
)
@click.option(
    "--mode",
    type=click.Choice(["paper", "no-error", "saeuron"]),
    default="paper",
    show_default=True,
    help="Keep the SAE's error, drop it, or do as SAeUron's released code (for comparison only).",
)
@click.option(
    "--sae",
    "saes",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Directory of the SAE, if the selection's store is elsewhere; of several, each has its SAE's name.",
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
    multipliers: tuple[float, ...],
    kinds: tuple[str, ...],
    branches: tuple[str, ...],
    windows: tuple[str, ...],
    masks: tuple[Path, ...],
    mode: str,
    saes: tuple[Path, ...],
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

    Writes one PNG a (prompt, seed), and generated.jsonl, which says what each file is and how it was made. --multiplier,
    --intervention, --branch, --window and --mask are given once for all selections, or once for each, in their order.

    \b
    featurestore generate --model minicanvas --prompt "An image of cat in neon style." --seeds 0-3 --out before
    featurestore generate --model minicanvas --prompt "An image of cat in neon style." --seeds 0-3 --out after \\
        --ablate neon.json --multiplier -20
    featurestore generate --model minicanvas --prompt "An image of cat in neon style." --out half \\
        --ablate neon.json --multiplier -1 --ablate cat.json --multiplier -20 --window 0%:50%
    """  # fmt: skip
    from featurestore.errors import UsageError
    from featurestore.prompts import Prompt, read_prompts
    from featurestore.selection import Selection
    from sae.diffusion.pipelines import load_model
    from sae.intervention.generate import Ablation, generate_files
    from sae.intervention.settings import ALWAYS, Intervention, Window

    if not texts and prompts is None:
        raise UsageError("nothing to generate: give --prompt or --prompts.")
    options = {
        "kind": _one_each("--intervention", kinds, selections, "paper"),
        "strength": _one_each("--multiplier", multipliers, selections, -5.0),
        "branch": _one_each("--branch", branches, selections, ""),
        "window": [Window.parse(w) if w else ALWAYS for w in _one_each("--window", windows, selections, "")],
        "mask": [None if m is None else _read_mask(m) for m in _one_each("--mask", masks, selections, None)],
    }
    chosen = [
        Intervention(Selection.load(path), **{name: values[i] for name, values in options.items()})
        for i, path in enumerate(selections)
    ]
    wanted = [Prompt(text, seed, {}, 0) for text in dict.fromkeys(texts) for seed in seeds]
    wanted += read_prompts(prompts, seeds) if prompts is not None else []
    loaded = load_model(model, device, model_dtype)
    run = run_settings(loaded, steps, guidance, negative_prompt, height, width, true_cfg)
    ablation = Ablation(chosen, saes=saes, mode=mode) if chosen else None
    files = generate_files(out, loaded, wanted, run, ablation, batch_size, progress=not quiet)
    click.echo(f"{len(files)} pictures in {out}")


def _one_each(option: str, values: Sequence[Any], selections: Sequence[Path], default: Any) -> list[Any]:
    """Return a value a selection: that of all, each one's own, or the default."""
    from featurestore.errors import UsageError

    if values and not selections:
        raise UsageError(f"{option} is about selections: give --ablate too.")
    if len(values) not in (0, 1, len(selections)):
        raise UsageError(
            f"{option} is given {len(values)} times for {len(selections)} selections: once, or once for each."
        )
    return list(values) if len(values) == len(selections) else [*values, default][:1] * len(selections)


def _read_mask(path: Path) -> Any:
    """Return a picture's mask, bool ``[height, width]``: true where it is lighter than middle grey."""
    import numpy as np
    import torch
    from PIL import Image

    from featurestore.errors import UsageError

    try:
        with Image.open(path) as image:
            return torch.from_numpy(np.array(image.convert("L")) > 127)
    except OSError as error:
        raise UsageError(f"mask {path} cannot be read as a picture: {error}.") from error
