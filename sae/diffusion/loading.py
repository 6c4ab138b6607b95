"""Load a pipeline of diffusers whole: nothing missing, nothing left over, nothing replaced by a
random number."""

import functools
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from featurestore.errors import ModelError, UsageError, nearest
from sae.diffusion.additions import add_lora, put_unet, take_scheduler
from sae.diffusion.architectures import architecture

EMBEDDED = "minicanvas"
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


def load_model(
    name: str, device: str = "auto", dtype: str = "auto", settings: LoadSettings = LoadSettings()
) -> Model:
    """Load a diffusers pipeline: ``minicanvas``, a local directory, a single-file checkpoint or a
    hub id.

    ``device`` and ``dtype`` may be ``auto``: CUDA and float16 where there is a GPU, else CPU and
    float32.

    Raises:
        ModelError: there is no such model, it is incomplete or holds what it should not, or it is
            no pipeline that is known.
        UsageError: the device is not there, or a setting does not fit the model.
    """
    cuda = torch.cuda.is_available()
    device = ("cuda" if cuda else "cpu") if device == "auto" else device
    if device.startswith("cuda") and not cuda:
        raise UsageError(f"--device {device}: this machine has no CUDA device that torch can use.")
    weights = DTYPES[
        ("float16" if device.startswith("cuda") else "float32") if dtype == "auto" else dtype
    ]
    source, label = name, name
    if name == EMBEDDED:
        import minicanvas

        source = str(minicanvas.MODEL_DIR)
    elif Path(name).exists():
        label = Path(name).resolve().name
    pipe = _load(source, weights, settings)
    if architecture(pipe).needs_image:
        raise ModelError(
            f"{type(pipe).__name__} starts from a picture: only text-to-image pipelines are run "
            f"here."
        )
    additions: dict[str, Any] = {}
    if settings.unet is not None:
        additions["unet_file"] = put_unet(pipe, Path(settings.unet))
    if settings.loras:
        additions["lora"] = add_lora(pipe, settings.loras)
    if settings.scheduler is not None:
        take_scheduler(pipe, settings.scheduler)
    pipe.to(device)
    pipe.set_progress_bar_config(disable=True)
    if name == EMBEDDED:
        return Model(label, pipe, minicanvas.STEPS, minicanvas.GUIDANCE, additions=additions)
    own = inspect.signature(type(pipe).__call__).parameters
    return Model(
        label,
        pipe,
        _default(own, "num_inference_steps", 50),
        _default(own, "guidance_scale", 1.0),
        additions=additions,
    )


def _default(parameters: Mapping[str, inspect.Parameter], name: str, otherwise: Any) -> Any:
    value = parameters[name].default if name in parameters else None
    return otherwise if value is None or value is inspect.Parameter.empty else value


def _load(source: str, dtype: torch.dtype, settings: LoadSettings) -> Any:
    import transformers

    transformers.logging.set_verbosity_error()  # Importing diffusers loads image processors that report on themselves.
    import diffusers

    local = Path(source)
    if local.is_dir() and not (local / "model_index.json").is_file():
        raise ModelError(f"{source} is no diffusers pipeline: it has no model_index.json.")
    if not local.exists() and source.count("/") != 1:
        raise ModelError(
            f"no model {source!r}: no such directory, and no hub id "
            f"('owner/name').{nearest(source, [EMBEDDED])}"
        )
    diffusers.logging.set_verbosity_error()
    diffusers.logging.disable_progress_bar()
    transformers.logging.disable_progress_bar()
    try:
        if local.is_file():
            return _from_single_file(source, dtype, settings)
        directory = local if local.is_dir() else Path(_download(source, settings))
        return _from_directory(directory, dtype, settings)
    except _REASONS as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"model {source!r} cannot be loaded: {reason}") from error


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
        if _module_class(value) is not None and name not in parts
    ]
    parts |= {name: _part(directory / name, index[name], dtype, settings.variant) for name in names}
    return DiffusionPipeline.from_pretrained(
        directory, dtype=dtype, variant=settings.variant, **parts
    )


def _part(directory: Path, named: Any, dtype: torch.dtype, variant: str | None) -> Any:
    """Load a part of a pipeline that holds weights, and nothing but what its files hold."""
    _check_variant(directory, variant)
    cls = _module_class(named)
    part, found = cls.from_pretrained(
        directory, dtype=dtype, variant=variant, output_loading_info=True
    )
    _check_whole(directory, found)
    return part


def _module_class(value: Any) -> Any:
    """Return the class of a part that ``model_index.json`` names, if it holds weights."""
    import diffusers
    import transformers

    if (
        not isinstance(value, list)
        or len(value) != 2
        or value[0] not in ("diffusers", "transformers")
    ):
        return None
    cls = getattr({"diffusers": diffusers, "transformers": transformers}[value[0]], value[1], None)
    return cls if isinstance(cls, type) and issubclass(cls, nn.Module) else None


def _check_variant(directory: Path, variant: str | None) -> None:
    """Say which variant is there if the one that is asked for is not."""
    files = [path.name for path in directory.iterdir() if path.suffix in (".safetensors", ".bin")]
    variants = sorted(
        {
            name.split(".")[1]
            for name in files
            if name.count(".") == 2 and "-of-" not in name.split(".")[1]
        }
    )
    if (
        variant is None
        and files
        and variants
        and all(name.split(".")[1] in variants for name in files)
    ):
        raise ModelError(
            f"{directory} has the weights as variant {' and '.join(variants)} only: give "
            f"--variant {variants[0]}."
        )


def _check_whole(path: Path, found: Mapping[str, Any]) -> None:
    """Refuse a part whose files lack tensors, for which random numbers would stand, or hold others
    than the model has."""
    missing, unexpected = (
        sorted(found.get(key) or ()) for key in ("missing_keys", "unexpected_keys")
    )
    mismatched = sorted(
        str(one[0] if isinstance(one, (tuple, list)) else one)
        for one in found.get("mismatched_keys") or ()
    )
    if unexpected and all("_orig_mod" in key.split(".") for key in unexpected):
        raise ModelError(
            f"{path}: its tensors are named _orig_mod.…: it was saved from a compiled model. Save "
            f"the module inside, _orig_mod."
        )
    for keys, what in (
        (missing, "lacks"),
        (mismatched, "has in another shape"),
        (unexpected, "has, which the model has not,"),
    ):
        if keys:
            listed = ", ".join(keys[:5]) + (f", … ({len(keys)} in all)" if len(keys) > 5 else "")
            raise ModelError(
                f"{path} {what} {listed}: the checkpoint is incomplete or another model's; "
                f"nothing was loaded."
            )


def _from_single_file(source: str, dtype: torch.dtype, settings: LoadSettings) -> Any:
    """Load the parts that a single file holds, with the configuration of ``settings.base``."""
    import diffusers
    from diffusers.loaders.single_file_utils import SingleFileComponentError

    if settings.base is None:
        raise ModelError(
            f"{source} is one file and does not say its configuration: give --base with a "
            f"pipeline's directory or hub id of "
            f"the same architecture, whose text encoders, tokenizer and scheduler are taken where "
            f"the file has none."
        )
    base = (
        Path(settings.base)
        if Path(settings.base).is_dir()
        else Path(_download(settings.base, settings))
    )
    index = json.loads((base / "model_index.json").read_bytes())
    cls = getattr(diffusers, index["_class_name"])
    parts: dict[str, Any] = {} if settings.safety_checker else {"safety_checker": None}
    load = functools.partial(
        cls.from_single_file, source, config=str(base), torch_dtype=dtype, local_files_only=True
    )
    try:
        pipe = load(**parts)
    except NotImplementedError:  # Tensors that no file filled cannot be moved.
        _name_missing(source, base, index)
        raise
    except SingleFileComponentError:  # The file has no text encoder.
        encoders = [
            name
            for name, value in index.items()
            if name.startswith("text_encoder") and _module_class(value)
        ]
        pipe = load(
            **parts,
            **{name: _part(base / name, index[name], dtype, settings.variant) for name in encoders},
        )
    for name, part in pipe.components.items():
        if isinstance(part, nn.Module):
            empty = [key for key, tensor in part.state_dict().items() if tensor.is_meta]
            _check_whole(Path(source) / name, {"missing_keys": empty})
    return pipe


def _name_missing(source: str, base: Path, index: Mapping[str, Any]) -> None:
    """Refuse a single file by the names of the tensors that it lacks of diffusers' models."""
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
    from diffusers.loaders.single_file_utils import load_single_file_checkpoint

    checkpoint = load_single_file_checkpoint(source, local_files_only=True)
    for name, value in index.items():
        cls = _module_class(value)
        convert = (
            SINGLE_FILE_LOADABLE_CLASSES.get(cls.__name__, {}).get("checkpoint_mapping_fn")
            if cls
            else None
        )
        if convert is not None:
            config = cls.load_config(base / name)
            with torch.device("meta"):
                wanted = set(cls.from_config(config).state_dict())
            found = convert(checkpoint=dict(checkpoint), config=config)
            _check_whole(Path(source) / name, {"missing_keys": wanted - set(found)})
