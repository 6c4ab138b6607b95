"""Measure a pipeline: how often a picture shows the style and the object its prompt asks for, and
what it is taken for where it does not.

Run as `python -m minicanvas.measure --seeds 5 --steps 20 --grid out.png`.
"""

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, cast

import click
import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from tqdm import tqdm

from minicanvas import CANVASES, GUIDANCE, PLAIN, SMALL, STEPS, Canvas, LabelledPrompt
from minicanvas.classifier import Classifier, Name, load_classifier
from minicanvas.option import canvas_option
from minicanvas.pipeline import load_pipeline


class Result(NamedTuple):
    """Pictures uint8 [n, 64, 64, 3] with the labels asked for and those found, str [n]."""

    images: np.ndarray
    styles: np.ndarray
    objects: np.ndarray
    found_styles: np.ndarray
    found_objects: np.ndarray

    @property
    def style_found(self) -> np.ndarray:
        """Whether each picture shows the style asked for, bool [n]."""
        return np.asarray(self.styles == self.found_styles)

    @property
    def object_found(self) -> np.ndarray:
        """Whether each picture shows the object asked for, bool [n]."""
        return np.asarray(self.objects == self.found_objects)


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
    batch: int = 20,
) -> Result:
    """Generate every prompt with every seed, seeds outermost, and classify the pictures."""
    asked = [labelled for _ in seeds for labelled in prompts]
    each_seed = [seed for seed in seeds for _ in prompts]
    texts = [labelled["prompt"] for labelled in asked]
    images = generate(pipeline, texts, each_seed, steps=steps, guidance=guidance, batch=batch)
    found_styles, found_objects = classifier.classify(images)
    return Result(
        images,
        np.array([labelled["style"] or PLAIN for labelled in asked]),
        np.array([labelled["object"] for labelled in asked]),
        np.array(found_styles),
        np.array(found_objects),
    )


def table(result: Result, canvas: Canvas = SMALL) -> str:
    """Return accuracies per style, per object and in all as lines of text; the totals leave the
    plain pictures out."""
    lines = [f"{'':12}{'style':>8}{'object':>8}{'n':>6}"]
    styled = result.styles != PLAIN
    for names, labels in (
        (canvas.style_labels, result.styles),
        (canvas.objects, result.objects),
    ):
        for name in names:
            rows = (labels == name) & (styled | (name == PLAIN))
            if rows.any():
                lines.append(_line(name, result, rows))
        lines.append("")
    return "\n".join([*lines, _line("all styled", result, styled)])


def confusions(result: Result, canvas: Canvas = SMALL) -> str:
    """Return as lines of text what was taken for something else, and how often; look-alikes first.
    Empty where nothing was."""
    lines = []
    alike = {(a, b) for group in canvas.look_alikes for a in group for b in group if a != b}
    for asked, found in (
        (result.styles, result.found_styles),
        (result.objects, result.found_objects),
    ):
        for pair, n in Counter(zip(asked.tolist(), found.tolist(), strict=True)).items():
            one, other = pair
            if one != other:
                share, kind = n / (asked == one).sum(), "look-alike" if pair in alike else ""
                lines.append((kind == "", -share, f"{one:12}{other:12}{share:8.3f}  {kind}"))
    header = f"{'asked for':12}{'found':12}{'share':>8}"
    return "\n".join([header, *(line.rstrip() for *_, line in sorted(lines))] if lines else [])


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
@canvas_option
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
    help="Directory that training left, or a pipeline's [default: the shipped].",
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
    name: str,
    seeds: int,
    first_seed: int,
    steps: int,
    guidance: float,
    classifier: str,
    model: Path | None,
    device: str,
    grid_path: Path | None,
) -> None:
    """Print the accuracy of generated pictures, a line per style and per object, and what is taken
    for what.

    Example: python -m minicanvas.measure --seeds 5 --steps 20 --grid out.png
    """
    canvas, judges = CANVASES[name], None
    if model is not None and (model / "pipeline").is_dir():
        model, judges = model / "pipeline", model / "classifiers"
    try:
        pipeline = load_pipeline(device=device, canvas=canvas, directory=model)
        judge = load_classifier(
            cast(Name, classifier), canvas=canvas, directory=judges, device=device
        )
    except (FileNotFoundError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    prompts = canvas.all_prompts(include_plain=True)
    start = time.perf_counter()
    wanted = range(first_seed, first_seed + seeds)
    result = measure(pipeline, judge, prompts, wanted, steps=steps, guidance=guidance)
    seconds = (time.perf_counter() - start) / len(result.images)
    click.echo("\n\n".join(filter(None, (table(result, canvas), confusions(result, canvas)))))
    click.echo(
        f"\n{seconds:.3f} s per picture, {steps} steps, guidance {guidance:g}, judged by "
        f"{classifier!r}"
    )
    if grid_path is not None:
        grid(result.images[: len(prompts)], len(canvas.objects)).save(grid_path, optimize=True)


if __name__ == "__main__":
    main()
