"""Run a text-to-image pipeline, and describe the run."""

import json
from dataclasses import dataclass, replace
from typing import Any

import torch

from featurestore.errors import UsageError
from sae.diffusion.architectures import architecture
from sae.diffusion.faults import mark, watch_decoder
from sae.diffusion.loading import DTYPES, LoadSettings, Model, load_model
from sae.diffusion.modules import denoiser
from sae.diffusion.weights import model_hash

__all__ = [
    "DTYPES",
    "LoadSettings",
    "Model",
    "RunSettings",
    "check_branch",
    "check_run",
    "describe_run",
    "generate",
    "load_model",
    "picture_size",
    "with_guidance",
]


@dataclass(frozen=True)
class RunSettings:
    """How pictures are generated."""

    n_steps: int
    guidance: float
    negative_prompt: str = ""
    height: int | None = None
    width: int | None = None
    true_cfg: float = 1.0
    """scale of guidance by a second denoiser call, for a pipeline whose ``guidance`` its denoiser is told (FLUX)"""


def with_guidance(run: RunSettings, scale: float | None) -> RunSettings:
    """Return the settings with a guidance scale that some prompts have of their own, or as they are."""
    return run if scale is None else replace(run, guidance=scale)


def check_run(model: Model, settings: RunSettings) -> None:
    """Refuse settings that the pipeline would ignore or round.

    Raises:
        UsageError: naming the option.
    """
    pipe, kind = model.pipe, architecture(model.pipe)
    if settings.n_steps < 1:
        raise UsageError(f"--steps {settings.n_steps}: at least 1 is needed.")
    if settings.true_cfg > 1 and not kind.two_pass:
        raise UsageError(f"--true-cfg {settings.true_cfg:g}: {type(pipe).__name__} has none, use --guidance.")
    if settings.negative_prompt and kind.two_pass and settings.true_cfg <= 1:
        raise UsageError(f"--negative-prompt: {type(pipe).__name__} uses it with --true-cfg above 1 only.")
    multiple = max(8, pipe.vae_scale_factor * kind.patch)  # Pipelines ask for 8 whatever their autoencoder.
    for option, pixels in zip(("--height", "--width"), picture_size(pipe, settings), strict=True):
        if pixels % multiple:
            raise UsageError(f"{option} {pixels}: {type(pipe).__name__} needs a multiple of {multiple}.")


def check_branch(model: Model, settings: RunSettings, branch: str) -> None:
    """Refuse a branch (``cond``, ``uncond`` or ``both``) that a run does not have.

    Raises:
        UsageError: it has no unconditional half.
    """
    config: Any = denoiser(model.pipe).config
    option, scale = "--guidance", settings.guidance
    if architecture(model.pipe).two_pass:
        option, scale = "--true-cfg", settings.true_cfg
    distilled = config.get("time_cond_proj_dim") is not None
    if branch != "cond" and (scale <= 1 or distilled):
        why = f"{model.name} has guidance distilled" if distilled else f"branch {branch} with {option} {scale:g}"
        raise UsageError(f"{why}: without guidance there is no unconditional half.")


def describe_run(model: Model, settings: RunSettings) -> dict[str, Any]:
    """Return the run settings as a store keeps them (docs/format.md, section 1.8)."""
    pipe = model.pipe
    check_run(model, settings)
    height, width = picture_size(pipe, settings)
    config = {key: value for key, value in pipe.scheduler.config.items() if not key.startswith("_")}
    return {
        "model": model.name,
        "model_hash": model_hash(denoiser(pipe)),
        "scheduler": {"class": type(pipe.scheduler).__name__, "config": _plain(config)},
        "n_steps": settings.n_steps,
        "guidance": float(settings.guidance),
        "negative_prompt": settings.negative_prompt,
        "height": height,
        "width": width,
        "dtype": str(denoiser(pipe).dtype).removeprefix("torch."),
        **({"true_cfg": float(settings.true_cfg)} if architecture(pipe).two_pass else {}),
        **({"autocast": str(model.autocast).removeprefix("torch.")} if model.autocast else {}),
        **model.additions,
    }


def _plain(config: dict[str, Any]) -> Any:
    """Return what JSON can say of a configuration; infinite numbers, as DPM-Solver has one, become text."""
    return json.loads(json.dumps(config, default=str), parse_constant=str)


def picture_size(pipe: Any, settings: RunSettings) -> tuple[int, int]:
    """Return the pictures' height and width: as set, or the model's own."""
    config: Any = denoiser(pipe).config
    size = config.get("sample_size") or pipe.default_sample_size
    own = (size, size) if isinstance(size, int) else tuple(size)
    return settings.height or own[0] * pipe.vae_scale_factor, settings.width or own[1] * pipe.vae_scale_factor


def generate(
    model: Model,
    settings: RunSettings,
    prompts: list[str],
    seeds: list[int],
    output_type: str = "pil",
    *,
    latents: torch.Tensor | None = None,
) -> list:
    """Generate one picture per (prompt, seed): PIL images, or whatever ``output_type`` of the pipeline names.

    The initial noise is a function of the seed alone, whatever the batch, the order and the device; or it is ``latents``. Of
    PIL images :func:`sae.diffusion.faults.picture_fault` says which are no results.
    """
    check_run(model, settings)
    given = call_arguments(model, settings, prompts)
    if latents is not None:
        given["latents"] = latents
    device = model.pipe._execution_device.type  # Offloaded weights are elsewhere between calls.
    with (
        torch.no_grad(),
        torch.autocast(device, model.autocast, model.autocast is not None),
        watch_decoder(model.pipe) as decoded,
    ):
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        result = model.pipe(**given, generator=generators, output_type=output_type)
    images = list(result.images)
    if output_type == "pil":
        mark(images, getattr(result, "nsfw_content_detected", None), decoded.of(len(images)))
    return images


def call_arguments(model: Model, settings: RunSettings, prompts: list[str]) -> dict[str, Any]:
    """Return what the pipeline is called with for a run of prompts, beside noise and the kind of output."""
    height, width = picture_size(model.pipe, settings)
    given = {
        "prompt": prompts,
        "num_inference_steps": settings.n_steps,
        "guidance_scale": settings.guidance,
        "height": height,
        "width": width,
        **architecture(model.pipe).options,
    }
    if settings.true_cfg > 1:
        given["true_cfg_scale"] = settings.true_cfg
    if settings.negative_prompt or settings.true_cfg > 1:  # Without one, even an empty one, true CFG would stay off.
        given["negative_prompt"] = [settings.negative_prompt] * len(prompts)
    return given
