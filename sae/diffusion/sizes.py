"""What a pipeline can be asked for, and how large its pictures are."""

import inspect
import math
from collections.abc import Mapping
from typing import Any

from featurestore.errors import UsageError
from sae.diffusion.modules import denoiser
from sae.diffusion.settings import RunSettings


def arguments_of(pipe: Any) -> Mapping[str, inspect.Parameter]:
    """Return what a pipeline can be called with."""
    return inspect.signature(type(pipe).__call__).parameters


def takes(pipe: Any, name: str) -> bool:
    """Say whether a pipeline can be called with an argument."""
    own = arguments_of(pipe)
    return name in own or any(one.kind is inspect.Parameter.VAR_KEYWORD for one in own.values())


def pixels_per_latent(pipe: Any) -> int:
    """Return how many pixels of a picture a latent pixel stands for, in each direction; 1 without
    an autoencoder."""
    if hasattr(pipe, "vae_scale_factor"):
        return int(pipe.vae_scale_factor)
    for name in (
        "vae_scale_factor_spatial",
        "vae_spatial_compression_ratio",
        "vae_spatial_scale_factor",
    ):
        if hasattr(pipe, name):
            return int(getattr(pipe, name))
    vae = getattr(pipe, "vae", None)
    return 1 if vae is None else int(2 ** (len(vae.config.block_out_channels) - 1))


def drawn_size(pipe: Any, height: int, width: int) -> tuple[int, int]:
    """Return the height and width that a pipeline with sizes of its own draws when others are asked
    for: Kandinsky 5 the one of its list that is nearest in shape, HiDream that of its own area,
    rounded down (diffusers' ``pipeline_kandinsky_t2i.py``, ``pipeline_hidream_image.py``)."""
    if hasattr(pipe, "resolutions"):
        listed = [(h, w) for w, h in pipe.resolutions]
        if (height, width) in listed:
            return height, width
        return min(listed, key=lambda one: abs(one[1] / one[0] - width / height))
    multiple = pixels_per_latent(pipe) * 2
    own = pipe.default_sample_size * pixels_per_latent(pipe)
    scale = math.sqrt(own**2 / (width * height))
    return int(height * scale // multiple * multiple), int(width * scale // multiple * multiple)


def picture_size(pipe: Any, settings: RunSettings) -> tuple[int, int]:
    """Return the pictures' height and width: as set, or the model's own.

    Raises:
        UsageError: neither says it.
    """
    config: Any = denoiser(pipe).config
    size = config.get("sample_size") or getattr(pipe, "default_sample_size", None)
    if size is not None:
        own = [
            pixels * pixels_per_latent(pipe)
            for pixels in ((size, size) if isinstance(size, int) else size)
        ]
    else:
        own = [
            getattr(arguments_of(pipe).get(name), "default", None) for name in ("height", "width")
        ]
    height, width = settings.height or own[0], settings.width or own[1]
    if height is None or width is None:
        raise UsageError(
            f"{type(pipe).__name__} does not say the size of its pictures: give --height and "
            f"--width."
        )
    return height, width
