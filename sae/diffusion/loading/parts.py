"""Load a part of a pipeline, such as a UNet or a text encoder, whole or not at all."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from featurestore.errors import ModelError


def load_part(directory: Path, named: Any, dtype: torch.dtype, variant: str | None) -> Any:
    """Load a part of a pipeline that holds weights, and nothing but what its files hold."""
    _check_variant(directory, variant)
    cls = module_class(named)
    part, found = cls.from_pretrained(
        directory, dtype=dtype, variant=variant, output_loading_info=True
    )
    check_whole(directory, found)
    return part


def module_class(value: Any) -> Any:
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


def check_whole(path: Path, found: Mapping[str, Any]) -> None:
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


def load_controlnet(source: str, dtype: torch.dtype) -> nn.Module:
    """Load a ControlNet from its directory or hub id.

    Raises:
        ModelError: it is not a ControlNet, or it is incomplete.
    """
    from huggingface_hub import snapshot_download

    directory = Path(source) if Path(source).is_dir() else Path(snapshot_download(source))
    config = directory / "config.json"
    name = json.loads(config.read_bytes()).get("_class_name") if config.is_file() else None
    if not isinstance(name, str) or "ControlNet" not in name:
        raise ModelError(
            f"--controlnet {source} is no ControlNet of diffusers: its config.json "
            f"{f'says {name!r}' if name else 'is missing, or names no class'}."
        )
    return load_part(directory, ["diffusers", name], dtype, None)
