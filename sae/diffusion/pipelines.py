"""Load a text-to-image pipeline and describe a run of it."""

import inspect
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from featurestore.errors import ModelError, UsageError, nearest
from sae.diffusion.architectures import architecture
from sae.diffusion.modules import denoiser
from sae.diffusion.weights import model_hash

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
    autocast: torch.dtype | None = None
    """what matrix products and convolutions are taken in while pictures are generated; None: the weights' own precision"""


def load_model(name: str, device: str = "auto", dtype: str = "auto") -> Model:
    """Load a diffusers pipeline: ``minicanvas``, a local directory or a hub id.

    ``device`` and ``dtype`` may be ``auto``: CUDA and float16 where there is a GPU, else CPU and float32.

    Raises:
        ModelError: there is no such model, or it is no text-to-image pipeline of diffusers that is supported.
        UsageError: the device is not there.
    """
    cuda = torch.cuda.is_available()
    device = ("cuda" if cuda else "cpu") if device == "auto" else device
    if device.startswith("cuda") and not cuda:
        raise UsageError(f"--device {device}: this machine has no CUDA device that torch can use.")
    weights = DTYPES[("float16" if device.startswith("cuda") else "float32") if dtype == "auto" else dtype]
    source, label = name, name
    if name == EMBEDDED:
        import minicanvas

        source = str(minicanvas.MODEL_DIR)
    elif Path(name).is_dir():
        label = Path(name).resolve().name
    pipe = _from_pretrained(source, weights).to(device)
    if architecture(pipe).needs_image:
        raise ModelError(f"{type(pipe).__name__} starts from a picture: only text-to-image pipelines are run here.")
    pipe.set_progress_bar_config(disable=True)
    if name == EMBEDDED:
        return Model(label, pipe, minicanvas.STEPS, minicanvas.GUIDANCE)
    own = inspect.signature(type(pipe).__call__).parameters
    return Model(label, pipe, own["num_inference_steps"].default, own["guidance_scale"].default)


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

    The initial noise is a function of the seed alone, whatever the batch, the order and the device; or it is ``latents``.
    """
    check_run(model, settings)
    given = call_arguments(model, settings, prompts)
    if latents is not None:
        given["latents"] = latents
    device = model.pipe._execution_device.type  # Offloaded weights are elsewhere between calls.
    with torch.no_grad(), torch.autocast(device, model.autocast, model.autocast is not None):
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        result = model.pipe(**given, generator=generators, output_type=output_type)
    return list(result.images)


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
