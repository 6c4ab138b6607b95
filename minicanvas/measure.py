"""Measure the pipeline: how often a picture shows the style and the object its prompt asks for.

Run as `python -m minicanvas.measure --seeds 5 --steps 20 --grid out.png`.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, cast

import click
import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from tqdm import tqdm

from minicanvas import GUIDANCE, OBJECTS, PLAIN, STEPS, STYLES, LabelledPrompt, all_prompts
from minicanvas.classifier import Classifier, Name, load_classifier
from minicanvas.pipeline import load_pipeline


class Result(NamedTuple):
    """Pictures uint8 [n, 64, 64, 3] with the labels asked for and whether each was found, bool
    [n]."""

    images: np.ndarray
    styles: list[str]
    objects: list[str]
    style_found: np.ndarray
    object_found: np.ndarray


def generate(
    pipeline: StableDiffusionPipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
    batch: int = 20,
) -> np.ndarray:
    """Return a picture a prompt, uint8 [n, 64, 64, 3]; each starts from the noise of its own
    seed."""
    shape = (
        1,
        pipeline.unet.config.in_channels,
        pipeline.unet.config.sample_size,
        pipeline.unet.config.sample_size,
    )
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    chunks = [np.empty((0, 64, 64, 3))]
    for start in tqdm(range(0, len(prompts), batch), desc="pictures", leave=False):
        latents = torch.cat(noise[start : start + batch]).to(pipeline.device, pipeline.dtype)
        output = pipeline(
            list(prompts[start : start + batch]),
            latents=latents,
            num_inference_steps=steps,
            guidance_scale=guidance,
            output_type="np",
        )
        chunks.append(output.images)
    return np.asarray(np.rint(np.concatenate(chunks) * 255), dtype=np.uint8)


def measure(
    pipeline: StableDiffusionPipeline,
    classifier: Classifier,
    prompts: Sequence[LabelledPrompt],
    seeds: Sequence[int],
    *,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
) -> Result:
    """Generate every prompt with every seed, seeds outermost, and classify the pictures."""
    asked = [labelled for _ in seeds for labelled in prompts]
    each_seed = [seed for seed in seeds for _ in prompts]
    texts = [labelled["prompt"] for labelled in asked]
    images = generate(pipeline, texts, each_seed, steps=steps, guidance=guidance)
    styles = [labelled["style"] or PLAIN for labelled in asked]
    objects = [labelled["object"] for labelled in asked]
    found_styles, found_objects = classifier.classify(images)
    return Result(
        images,
        styles,
        objects,
        np.array([found == label for found, label in zip(found_styles, styles, strict=True)]),
        np.array([found == label for found, label in zip(found_objects, objects, strict=True)]),
    )


def table(result: Result) -> str:
    """Return accuracies a style, an object and in all as lines of text; the totals leave the plain
    pictures out."""
    styles, objects = np.array(result.styles), np.array(result.objects)
    lines = [f"{'':12}{'style':>8}{'object':>8}{'n':>6}"]
    for names, labels in (((*STYLES, PLAIN), styles), (OBJECTS, objects)):
        for name in names:
            rows = (labels == name) & ((styles != PLAIN) | (name == PLAIN))
            if rows.any():
                lines.append(_line(name, result, rows))
        lines.append("")
    return "\n".join([*lines, _line("all styled", result, styles != PLAIN)])


def _line(name: str, result: Result, rows: np.ndarray) -> str:
    style, object_ = result.style_found[rows].mean(), result.object_found[rows].mean()
    return f"{name:12}{style:8.3f}{object_:8.3f}{rows.sum():6d}"


def grid(images: np.ndarray, n_columns: int) -> Image.Image:
    """Return pictures [n, h, w, 3] side by side, row after row; `n` is a multiple of
    `n_columns`."""
    n, height, width, channels = images.shape
    rows = images.reshape(n // n_columns, n_columns, height, width, channels)
    return Image.fromarray(
        rows.swapaxes(1, 2).reshape(n // n_columns * height, n_columns * width, channels)
    )


@click.command()
@click.option("--seeds", default=5, show_default=True, help="Pictures of each prompt.")
@click.option(
    "--first-seed", default=0, show_default=True, help="Seeds are counted up from this one."
)
@click.option("--steps", default=STEPS, show_default=True, help="DDIM steps.")
@click.option(
    "--guidance", default=GUIDANCE, show_default=True, help="Classifier-free guidance scale."
)
@click.option(
    "--classifier", type=click.Choice(["judge", "selection"]), default="judge", show_default=True
)
@click.option(
    "--model",
    type=click.Path(path_type=Path, exists=True),
    help="Pipeline directory [default: the shipped].",
)
@click.option("--device", default="cpu", show_default=True)
@click.option(
    "--grid",
    "grid_path",
    type=click.Path(path_type=Path),
    help="Write the first seed's pictures here (PNG).",
)
def main(
    *,
    seeds: int,
    first_seed: int,
    steps: int,
    guidance: float,
    classifier: str,
    model: Path | None,
    device: str,
    grid_path: Path | None,
) -> None:
    """Print the accuracy of generated pictures, a line a style and a line an object.

    Example: python -m minicanvas.measure --seeds 5 --steps 20 --grid out.png
    """
    pipeline = (
        load_pipeline(device=device)
        if model is None
        else load_pipeline(device=device, directory=model)
    )
    judge = load_classifier(cast(Name, classifier), device=device)
    prompts = all_prompts(include_plain=True)
    start = time.perf_counter()
    wanted = range(first_seed, first_seed + seeds)
    result = measure(pipeline, judge, prompts, wanted, steps=steps, guidance=guidance)
    seconds = (time.perf_counter() - start) / len(result.images)
    click.echo(table(result))
    click.echo(
        f"\n{seconds:.3f} s per picture, {steps} steps, guidance {guidance:g}, judged by "
        f"{classifier!r}"
    )
    if grid_path is not None:
        grid(result.images[: len(prompts)], len(OBJECTS)).save(grid_path, optimize=True)


if __name__ == "__main__":
    main()
