"""What is put into a loaded pipeline: denoiser weights from a file, LoRA, another scheduler."""

import hashlib
import inspect
import re
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from featurestore.errors import ModelError, SAEError, UsageError, nearest
from sae.diffusion.modules import denoiser, plain_name
from sae.pickles import pickled_tensors

_WRAPPERS = ("module.", "unet.", "transformer.")
_MATRICES = (".lora_A.", ".lora_B.", "lora_down", "lora_up", ".lora.up", ".lora.down")
"""what the names of LoRA's matrices hold, by whichever program they were saved"""
_SCALED = re.compile(r"(?P<source>.+?)(?::(?P<scale>-?\d+(?:\.\d+)?))?")


def put_unet(pipe: Any, path: Path) -> dict[str, Any]:
    """Put a file's weights in the place of the denoiser's; return what the run's settings say of
    it.

    ESD, SalUn and UnlearnCanvas publish such files: all weights or some, under diffusers' names or
    those of the original code. Safetensors, or a torch pickle, which is read without running what
    it says.

    Raises:
        ModelError: the file cannot be read, or holds what the denoiser has not.
    """
    if not path.is_file():
        raise ModelError(f"--unet {path}: there is no such file.")
    module = denoiser(pipe)
    given = _diffusers_names(_tensors(path), module)
    own = {plain_name(name): tensor for name, tensor in module.state_dict(keep_vars=True).items()}
    unknown = sorted(set(given) - set(own))
    if unknown or not given:
        listed = ", ".join(unknown[:5]) or "no tensor"
        raise ModelError(
            f"--unet {path} holds {listed}, which {type(module).__name__} has not: it is for "
            f"another model."
        )
    wrong = [
        f"{name} {list(given[name].shape)}"
        for name in given
        if given[name].shape != own[name].shape
    ]
    if wrong:
        raise ModelError(
            f"--unet {path} has other shapes than the model: {', '.join(sorted(wrong)[:5])}."
        )
    bad = sorted(name for name, tensor in given.items() if not bool(tensor.isfinite().all()))
    if bad:
        raise ModelError(f"--unet {path}: {', '.join(bad[:5])} hold values that are not finite.")
    with torch.no_grad():
        for name, tensor in given.items():
            own[name].copy_(tensor)
    return {"file": path.name, "sha256": _sha256(path), "tensors": len(given), "of": len(own)}


def _tensors(path: Path) -> dict[str, Tensor]:
    """Return a file's tensors without what wrappers put before their names."""
    try:
        found = (
            safetensors.torch.load_file(path)
            if path.suffix == ".safetensors"
            else pickled_tensors(path)
        )
    except (SAEError, safetensors.SafetensorError, OSError) as error:
        raise ModelError(f"--unet {path} cannot be read: {error}") from error
    named = {}
    for name, tensor in found.items():
        name = plain_name(name.rpartition("/")[2])
        for prefix in _WRAPPERS:
            name = name.removeprefix(prefix)
        named[name] = tensor
    return named


def _diffusers_names(tensors: dict[str, Tensor], module: Any) -> dict[str, Tensor]:
    """Return tensors under diffusers' names, those of the original Stable Diffusion code
    included."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    original = ("model.diffusion_model.", "input_blocks.", "middle_block.", "output_blocks.")
    if not any(name.startswith(original) for name in tensors):
        return tensors
    prefix = original[0]
    kept = {name: t for name, t in tensors.items() if name.startswith(prefix)} or {
        prefix + name: tensor for name, tensor in tensors.items()
    }
    try:
        converted = convert_ldm_unet_checkpoint(dict(kept), config=module.config)
    except KeyError as error:
        raise ModelError(
            f"--unet: a checkpoint of the original code without {error}: only whole ones can be "
            f"read."
        ) from error
    return dict(converted)


def add_lora(pipe: Any, sources: tuple[str, ...]) -> list[dict[str, Any]]:
    """Load LoRA weights, each at its scale; return what the run's settings say of them.

    Raises:
        ModelError: one cannot be read, or not all of it fits the pipeline.
        UsageError: peft is not installed, or the pipeline takes none.
    """
    from diffusers.utils import is_peft_available

    if not is_peft_available():
        raise UsageError("--lora needs the package peft: pip install 'featurestore[lora]'.")
    if not hasattr(pipe, "load_lora_weights"):
        raise UsageError(f"--lora: {type(pipe).__name__} takes none.")
    said, scales = [], []
    for number, text in enumerate(sources):
        match = _SCALED.fullmatch(text)
        assert match is not None, "every text fits"
        source, scale = match["source"], float(match["scale"] or 1)
        _load_lora(pipe, source, f"lora_{number}")
        scales.append(scale)
        path = Path(source)
        digest = {"sha256": _sha256(path)} if path.is_file() else {}
        said.append({"source": path.name if path.exists() else source, "scale": scale, **digest})
    pipe.set_adapters([f"lora_{number}" for number in range(len(sources))], scales)
    return said


def _load_lora(pipe: Any, source: str, name: str) -> None:
    path = Path(source)
    where = {"pretrained_model_name_or_path_or_dict": source}
    if path.is_file():
        where = {
            "pretrained_model_name_or_path_or_dict": str(path.parent),
            "weight_name": path.name,
        }
    try:
        state = pipe.lora_state_dict(**where, local_files_only=path.exists())
        state = state[0] if isinstance(state, tuple) else state
        pipe.load_lora_weights(dict(state), adapter_name=name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"--lora {source} cannot be loaded: {reason}") from error
    wanted = sum(any(part in key for part in _MATRICES) for key in state)
    loaded = sum(
        name in key.split(".") and ("lora_A" in key or "lora_B" in key)
        for part in pipe.components.values()
        if isinstance(part, torch.nn.Module)
        for key, _ in part.named_parameters()
    )
    if not loaded or loaded != wanted:
        raise ModelError(
            f"--lora {source}: {loaded} of its {wanted} matrices fit {type(pipe).__name__}: it is "
            f"for another model."
        )


def take_scheduler(pipe: Any, name: str) -> None:
    """Put a scheduler of another class in the place of the pipeline's, with its configuration.

    Raises:
        UsageError: diffusers has no such scheduler, or it does not take the configuration.
    """
    import diffusers
    from diffusers import SchedulerMixin

    cls: Any = getattr(diffusers, name, None)
    if not inspect.isclass(cls) or not issubclass(cls, SchedulerMixin):
        known = [
            one
            for one in dir(diffusers)
            if one.endswith("Scheduler") and not one.startswith("Flax")
        ]
        raise UsageError(f"--scheduler {name}: diffusers has no such class.{nearest(name, known)}")
    try:
        pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config)
    except (ValueError, TypeError, ImportError) as error:
        own = type(pipe.scheduler).__name__
        raise UsageError(
            f"--scheduler {name} does not take the configuration of {own}: {error}"
        ) from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
