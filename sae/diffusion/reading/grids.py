"""How the tokens of a transformer lie in the picture, or in the frames of a video."""

from typing import Any

from torch import Tensor

from sae.diffusion.reading.calls import Running

FRAMES_FIRST = {"CogVideoXTransformer3DModel"}
"""classes whose videos have their frames before their channels, ``[B, F, C, H, W]``"""
CHANNELS_LAST = {"Kandinsky5Transformer3DModel"}
"""classes whose latents have their channels last, ``[B, F, H, W, C]``"""


def token_grid(call: Running) -> tuple[int, int, int] | None:
    """Return frames, height and width of the patches that a denoiser makes of its latents; None
    where its arguments do not say (latents that are packed already, a UNet).

    Whether a module's tokens are these patches, their number says.
    """
    match [call.arguments.get(name) for name in ("num_frames", "height", "width")]:
        case [int() as frames, int() as height, int() as width]:  # LTX
            return frames, height, width
    latents = next(iter(call.arguments.values()))
    module: Any = getattr(call.pipe, "transformer", None)
    patch = None if module is None else module.config.get("patch_size")
    if patch is None or not isinstance(latents, Tensor) or latents.dim() not in (4, 5):
        return None
    if call.arguments.get("sparse_params") is not None:
        return None  # Kandinsky 5 then attends to squares of patches, one after another.
    frames = 1 if latents.dim() == 4 else latents.shape[2]
    height, width = latents.shape[-2:]
    kind = type(getattr(module, "_orig_mod", module)).__name__
    if kind in FRAMES_FIRST:
        frames = latents.shape[1]
    elif kind in CHANNELS_LAST:
        frames, height, width = latents.shape[1:4]
    each = patch
    if not isinstance(patch, (list, tuple)):
        each = (module.config.get("patch_size_t"), patch, patch)
    if len(each) != 3:
        return None
    return frames // (each[0] or 1), height // each[1], width // each[2]
