"""Put the trained parts together as a pipeline directory in float16."""

import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from torch import Tensor

from minicanvas.train.diffusion import Denoiser, new_scheduler
from minicanvas.train.plans import SMALL_PLAN, Plan
from minicanvas.train.text import new_tokenizer


def build_pipeline(
    autoencoder: AutoencoderKL, weights: dict[str, Tensor], plan: Plan = SMALL_PLAN
) -> StableDiffusionPipeline:
    """Return a pipeline of a trained autoencoder and the weights of a `Denoiser`."""
    denoiser = Denoiser(plan)
    denoiser.load_state_dict(weights)
    denoiser.eval()
    return StableDiffusionPipeline(
        vae=autoencoder.eval(),
        text_encoder=denoiser.text_encoder,
        tokenizer=new_tokenizer(plan.canvas),
        unet=denoiser.unet,
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        image_encoder=None,
        requires_safety_checker=False,
    )


def export(pipeline: StableDiffusionPipeline, directory: Path) -> None:
    """Write a pipeline as float16 `.safetensors`, replacing the directory whole."""
    partial = directory.with_name(f"{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    pipeline.to(dtype=torch.float16).save_pretrained(partial, safe_serialization=True)
    _set(
        partial / "text_encoder" / "config.json", {"dtype": "float32"}
    )  # what it loads as when no dtype is asked for
    for path in partial.rglob("*.safetensors"):
        path.chmod(0o644)
    if directory.exists():
        shutil.rmtree(directory)
    partial.replace(directory)


def _set(path: Path, values: dict[str, str]) -> None:
    config = json.loads(path.read_text())
    config.update(values)
    path.write_text(json.dumps(config, indent=2) + "\n")
