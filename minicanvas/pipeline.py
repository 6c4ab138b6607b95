"""The shipped pipeline, loaded."""

from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

from minicanvas import MODEL_DIR


def load_pipeline(
    dtype: torch.dtype = torch.float32, device: str = "cpu", *, directory: Path = MODEL_DIR
) -> StableDiffusionPipeline:
    """Load a plain `StableDiffusionPipeline` of 64 × 64 pictures, with its progress bar off.

    Generate with `num_inference_steps=minicanvas.STEPS, guidance_scale=minicanvas.GUIDANCE`. Use
    float16 on accelerators only: most CPUs are slower in it.
    """
    pipeline = StableDiffusionPipeline.from_pretrained(directory, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device) if pipeline.dtype == dtype else pipeline.to(device, dtype)
