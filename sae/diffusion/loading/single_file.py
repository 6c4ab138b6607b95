"""Load the parts of a pipeline that one checkpoint file holds, under the original code's names."""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sae.diffusion.loading.parts import check_whole, load_part, module_class


def from_single_file(
    source: str, base: Path, dtype: torch.dtype, *, variant: str | None, safety_checker: bool
) -> Any:
    """Load the parts that a single file holds, with the configuration of the pipeline in
    ``base``."""
    import diffusers
    from diffusers.loaders.single_file_utils import SingleFileComponentError

    index = json.loads((base / "model_index.json").read_bytes())
    cls = getattr(diffusers, index["_class_name"])
    parts: dict[str, Any] = {"safety_checker": None}
    if safety_checker and index.get("safety_checker"):  # No file of the original code has one.
        parts = _checker(base, index["safety_checker"], dtype)
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
            if name.startswith("text_encoder") and module_class(value)
        ]
        pipe = load(
            **parts,
            **{name: load_part(base / name, index[name], dtype, variant) for name in encoders},
        )
    for name, part in pipe.components.items():
        if isinstance(part, nn.Module):
            empty = [key for key, tensor in part.state_dict().items() if tensor.is_meta]
            check_whole(Path(source) / name, {"missing_keys": empty})
    return pipe


def _checker(base: Path, named: list[str], dtype: torch.dtype) -> dict[str, Any]:
    """Return the safety checker of a base, of a class of one of diffusers' pipelines."""
    from diffusers import pipelines

    cls = getattr(getattr(pipelines, named[0]), named[1])
    return {"safety_checker": cls.from_pretrained(base / "safety_checker", dtype=dtype).eval()}


def _name_missing(source: str, base: Path, index: Mapping[str, Any]) -> None:
    """Refuse a single file by the names of the tensors that it lacks of diffusers' models."""
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
    from diffusers.loaders.single_file_utils import load_single_file_checkpoint

    checkpoint = load_single_file_checkpoint(source, local_files_only=True)
    for name, value in index.items():
        cls = module_class(value)
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
            check_whole(Path(source) / name, {"missing_keys": wanted - set(found)})
