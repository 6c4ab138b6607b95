"""Load a text-to-image pipeline and describe a run of it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from featurestore.errors import ModelError, UsageError, nearest
from sae.hooks import denoiser
from sae.identity import model_hash

EMBEDDED = "minicanvas"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Model:
    """A loaded pipeline and the name it goes by."""

    name: str
    pipe: Any
    steps: int
    """denoising steps if the user names none"""
    guidance: float
    """guidance scale if the user names none"""


def load_model(name: str, device: str = "auto", dtype: str = "auto") -> Model:
    """Load a diffusers pipeline: ``minicanvas``, a local directory or a hub id.

    ``device`` and ``dtype`` may be ``auto``: CUDA and float16 where there is a GPU, else CPU and float32.

    Raises:
        ModelError: there is no such model, or it is no text-to-image pipeline of diffusers.
        UsageError: the device is not there.
    """
    cuda = torch.cuda.is_available()
    device = ("cuda" if cuda else "cpu") if device == "auto" else device
    if device.startswith("cuda") and not cuda:
        raise UsageError(f"--device {device}: this machine has no CUDA device that torch can use.")
    weights = DTYPES[("float16" if device.startswith("cuda") else "float32") if dtype == "auto" else dtype]
    steps, guidance = 50, 7.5
    source, label = name, name
    if name == EMBEDDED:
        import minicanvas

        source, steps, guidance = str(minicanvas.MODEL_DIR), minicanvas.STEPS, minicanvas.GUIDANCE
    elif Path(name).is_dir():
        label = Path(name).resolve().name
    pipe = _from_pretrained(source, weights).to(device)
    denoiser(pipe)
    pipe.set_progress_bar_config(disable=True)
    return Model(label, pipe, steps, guidance)


def _from_pretrained(source: str, dtype: torch.dtype) -> Any:
    import transformers

    transformers.logging.set_verbosity_error()  # Importing diffusers loads image processors that report on themselves.
    from diffusers import DiffusionPipeline

    local = Path(source)
    if local.exists() and not (local / "model_index.json").is_file():
        raise ModelError(f"{source} is no diffusers pipeline: it has no model_index.json.")
    if not local.exists() and source.count("/") != 1:
        raise ModelError(
            f"no model {source!r}: no such directory, and no hub id ('owner/name').{nearest(source, [EMBEDDED])}"
        )
    _hush()
    try:
        return DiffusionPipeline.from_pretrained(source, dtype=dtype)
    except (OSError, ValueError, KeyError, TypeError, ImportError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"model {source!r} cannot be loaded: {reason}") from error


def _hush() -> None:
    import diffusers
    import transformers

    diffusers.logging.set_verbosity_error()
    diffusers.logging.disable_progress_bar()
    transformers.logging.disable_progress_bar()


@dataclass(frozen=True)
class RunSettings:
    """How pictures are generated."""

    n_steps: int
    guidance: float
    negative_prompt: str = ""
    height: int | None = None
    width: int | None = None


def describe_run(model: Model, settings: RunSettings) -> dict[str, Any]:
    """Return the run settings as a store keeps them (docs/format.md, section 1.8)."""
    pipe = model.pipe
    if settings.n_steps < 1:
        raise UsageError(f"--steps {settings.n_steps}: at least 1 is needed.")
    height, width = picture_size(pipe, settings)
    config = {key: value for key, value in pipe.scheduler.config.items() if not key.startswith("_")}
    return {
        "model": model.name,
        "model_hash": model_hash(denoiser(pipe)),
        "scheduler": {"class": type(pipe.scheduler).__name__, "config": json.loads(json.dumps(config, default=str))},
        "n_steps": settings.n_steps,
        "guidance": float(settings.guidance),
        "negative_prompt": settings.negative_prompt,
        "height": height,
        "width": width,
        "dtype": str(denoiser(pipe).dtype).removeprefix("torch."),
    }


def picture_size(pipe: Any, settings: RunSettings) -> tuple[int, int]:
    """Return the pictures' height and width: as set, or the model's own."""
    size: Any = denoiser(pipe).config["sample_size"]  # type: ignore[index]
    own = (size, size) if isinstance(size, int) else tuple(size)
    return settings.height or own[0] * pipe.vae_scale_factor, settings.width or own[1] * pipe.vae_scale_factor


def generate(
    model: Model, settings: RunSettings, prompts: list[str], seeds: list[int], output_type: str = "pil"
) -> list:
    """Generate one picture a (prompt, seed): PIL images, or whatever ``output_type`` of the pipeline names.

    The initial noise is a function of the seed alone, whatever the batch, the order and the device.
    """
    height, width = picture_size(model.pipe, settings)
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    negative = {"negative_prompt": [settings.negative_prompt] * len(prompts)} if settings.negative_prompt else {}
    with torch.no_grad():
        result = model.pipe(
            prompt=prompts,
            generator=generators,
            num_inference_steps=settings.n_steps,
            guidance_scale=settings.guidance,
            height=height,
            width=width,
            output_type=output_type,
            **negative,
        )
    return list(result.images)
