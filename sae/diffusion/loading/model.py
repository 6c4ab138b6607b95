"""Load a pipeline of diffusers whole: nothing missing, nothing left over, nothing replaced by a
random number."""

import inspect
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from featurestore.errors import ModelError, UsageError, nearest
from sae.devices import pick_device
from sae.diffusion.loading.additions import add_lora, put_unet, take_scheduler
from sae.diffusion.loading.parts import load_controlnet, load_part, module_class
from sae.diffusion.loading.single_file import from_single_file
from sae.diffusion.starts import sibling

EMBEDDED = ("minicanvas", "minicanvas:large")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_REASONS = (OSError, ValueError, KeyError, TypeError, ImportError, AttributeError)
"""what diffusers and transformers raise for files that are not what they expect"""


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
    """what matrix products and convolutions are taken in while pictures are generated; None: the
    weights' own precision"""
    additions: Mapping[str, Any] = field(default_factory=dict)
    """what was put into the pipeline after it was loaded, as a run's settings have it"""


@dataclass(frozen=True, kw_only=True)
class LoadSettings:
    """What is loaded beside a pipeline's directory, or in the place of a part of it."""

    variant: str | None = None
    """of the weight files, such as ``fp16``"""
    base: str | None = None
    """a pipeline's directory with the configuration of a single-file checkpoint; None: diffusers
    asks the hub"""
    unet: str | None = None
    """a file of denoiser weights, put in the place of the pipeline's: diffusers' names or the
    original ones; some or all"""
    loras: tuple[str, ...] = ()
    """files, directories or hub ids, each with ``:scale`` at its end if it is not 1"""
    scheduler: str | None = None
    """a class of diffusers, made from the configuration of the pipeline's own"""
    safety_checker: bool = False
    """load the pipeline's, which blacks out what it flags"""
    starts: Collection[str] = ()
    """what samples start from beside noise, ``image``, ``mask``, ``control``: the pipeline of the
    same parts that takes these is loaded"""
    controlnet: str | None = None
    """a ControlNet's directory or hub id, for ``control``"""


def load_model(
    name: str, device: str = "auto", dtype: str = "auto", settings: LoadSettings = LoadSettings()
) -> Model:
    """Load a diffusers pipeline: ``minicanvas``, ``minicanvas:large``, a local directory, a
    single-file checkpoint or a hub id.

    ``device`` and ``dtype`` may be ``auto``: CUDA and float16 where there is a GPU, else CPU and
    float32.

    Raises:
        ModelError: there is no such model, it is incomplete or holds what it should not, or it is
            no pipeline that is known.
        UsageError: the device is not there, the precision is not known, or a setting does not fit
            the model.
    """
    there = pick_device(device)
    if dtype == "auto":
        dtype = "float16" if there.type == "cuda" else "float32"
    if dtype not in DTYPES:
        raise UsageError(f"dtype {dtype!r}: expected one of auto, {', '.join(DTYPES)}.")
    weights = DTYPES[dtype]
    source, label = name, name
    if name in EMBEDDED:
        import minicanvas

        try:
            source = str(minicanvas.CANVASES[name].directory("pipeline"))
        except FileNotFoundError as error:
            raise ModelError(str(error)) from error
    elif Path(name).exists():
        label = Path(name).resolve().name
    pipe = _load(source, weights, settings)
    pipe = _starting(pipe, weights, settings)
    additions: dict[str, Any] = {}
    if settings.unet is not None:
        additions["unet_file"] = put_unet(pipe, Path(settings.unet))
    if settings.loras:
        additions["lora"] = add_lora(pipe, settings.loras)
    if settings.scheduler is not None:
        take_scheduler(pipe, settings.scheduler)
    pipe.to(there)
    pipe.set_progress_bar_config(disable=True)
    if name in EMBEDDED:
        return Model(label, pipe, minicanvas.STEPS, minicanvas.GUIDANCE, additions=additions)
    own = inspect.signature(type(pipe).__call__).parameters
    return Model(
        label,
        pipe,
        _default(own, "num_inference_steps", 50),
        _default(own, "guidance_scale", 1.0),
        additions=additions,
    )


def _starting(pipe: Any, dtype: torch.dtype, settings: LoadSettings) -> Any:
    """Return the pipeline of the same parts that starts from what the settings name."""
    if settings.controlnet is None:
        return sibling(pipe, settings.starts)
    if "control" not in settings.starts:
        raise UsageError(
            f"--controlnet {settings.controlnet} guides by a picture: give --control-image, or "
            f"--control-column for one per prompt."
        )
    try:
        controlnet = load_controlnet(settings.controlnet, dtype)
    except _REASONS as error:
        raise ModelError(
            f"--controlnet {settings.controlnet!r} cannot be loaded: {_reason(error)}"
        ) from error
    return sibling(pipe, settings.starts, controlnet=controlnet)


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _default(parameters: Mapping[str, inspect.Parameter], name: str, otherwise: Any) -> Any:
    value = parameters[name].default if name in parameters else None
    return otherwise if value is None or value is inspect.Parameter.empty else value


def _load(source: str, dtype: torch.dtype, settings: LoadSettings) -> Any:
    import transformers

    # Importing diffusers loads image processors that report on themselves.
    transformers.logging.set_verbosity_error()
    import diffusers

    local = Path(source)
    if local.is_dir() and not (local / "model_index.json").is_file():
        raise ModelError(f"{source} is no diffusers pipeline: it has no model_index.json.")
    if not local.exists() and source.count("/") != 1:
        raise ModelError(
            f"no model {source!r}: no such directory, and no hub id "
            f"('owner/name').{nearest(source, EMBEDDED)}"
        )
    diffusers.logging.set_verbosity_error()
    diffusers.logging.disable_progress_bar()
    transformers.logging.disable_progress_bar()
    try:
        if local.is_file():
            base, checked = _base(source, settings), settings.safety_checker
            return from_single_file(
                source, base, dtype, variant=settings.variant, safety_checker=checked
            )
        directory = local if local.is_dir() else Path(_download(source, settings))
        return _from_directory(directory, dtype, settings)
    except _REASONS as error:
        raise ModelError(f"model {source!r} cannot be loaded: {_reason(error)}") from error


def _base(source: str, settings: LoadSettings) -> Path:
    """Return the directory with the configuration of a single file."""
    if settings.base is None:
        raise ModelError(
            f"{source} is one file and does not say its configuration: give --base with a "
            f"pipeline's directory or hub id of the same architecture, whose text encoders, "
            f"tokenizer and scheduler are taken where the file has none."
        )
    local = Path(settings.base)
    return local if local.is_dir() else Path(_download(settings.base, settings))


def _download(source: str, settings: LoadSettings) -> str:
    from diffusers import DiffusionPipeline

    return str(DiffusionPipeline.download(source, variant=settings.variant))


def _from_directory(directory: Path, dtype: torch.dtype, settings: LoadSettings) -> Any:
    """Load each part by itself, which says what its files lack and what they hold too much, then
    the pipeline of them."""
    from diffusers import DiffusionPipeline

    index = json.loads((directory / "model_index.json").read_bytes())
    parts: dict[str, Any] = {}
    if "safety_checker" in index and not settings.safety_checker:
        parts |= {"safety_checker": None, "requires_safety_checker": False}
    names = [
        name
        for name, value in index.items()
        if module_class(value) is not None and name not in parts
    ]
    parts |= {
        name: load_part(directory / name, index[name], dtype, settings.variant) for name in names
    }
    return DiffusionPipeline.from_pretrained(
        directory, dtype=dtype, variant=settings.variant, **parts
    )
