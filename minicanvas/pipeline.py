"""The shipped pipelines, loaded."""

from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

from minicanvas import SMALL, Canvas


def load_pipeline(
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    *,
    canvas: Canvas = SMALL,
    directory: Path | None = None,
) -> StableDiffusionPipeline:
    """Load a plain `StableDiffusionPipeline` of 64 × 64 pictures, a benchmark's shipped one or that
    of a directory, with its progress bar off.

    Generate with `num_inference_steps=minicanvas.STEPS, guidance_scale=minicanvas.GUIDANCE`. Use
    float16 on accelerators only: most CPUs are slower in it.

    Raises:
        FileNotFoundError: the benchmark's weights do not ship with this package.
    """
    directory = canvas.directory("pipeline") if directory is None else directory
    pipeline = StableDiffusionPipeline.from_pretrained(directory, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device) if pipeline.dtype == dtype else pipeline.to(device, dtype)
