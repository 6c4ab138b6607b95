"""What the pipelines of diffusers do differently, a line each (docs/pipelines.md)."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from featurestore.errors import ModelError, UsageError, nearest
from sae.diffusion.calls import (
    Branches,
    DenoiserCall,
    Reader,
    Running,
    Steps,
    alone,
    check_batch,
    guided,
    halves,
    halves_cond_first,
    passes,
)

ENCODER_SUFFIX = "-encoder"
"""at the end of a hook: the ``encoder_hidden_states`` of its module instead of the
``hidden_states``"""


class Architecture(NamedTuple):
    """What has to be known of a pipeline class to read its denoiser's calls and to run it."""

    branches: Reader | Branches = halves
    """how a denoiser call's batch is divided"""
    two_pass: bool = False
    """whether guidance is a second denoiser call (``true_cfg_scale``), beside a scale that the
    denoiser is told"""
    timestep: str | Callable[[Running], Any] = "t"
    """the scheduler's timestep: a variable of the pipeline's call, or a function of it"""
    samples: str | Callable[[Running], int] = "latents"
    """what has a row for each picture: a variable of the pipeline's call; or a function that counts
    the pictures"""
    patch: int = 1
    """latent pixels a token, in each direction"""
    options: Mapping[str, Any] = {}
    """further arguments of the pipeline's call"""
    needs_image: bool = False
    """whether the pipeline starts from a picture: it can be edited, but nothing is collected from
    it"""

    def read(self, call: Running, steps: Steps) -> DenoiserCall:
        """Return what a denoiser call is.

        Raises:
            ModelError: the running pipeline does not say, or its batch contradicts it.
        """
        branches = self.branches(call) if callable(self.branches) else self.branches
        count = self.samples(call) if callable(self.samples) else len(call.variable(self.samples))
        check_batch(call, branches, count)
        given = self.timestep(call) if callable(self.timestep) else call.variable(self.timestep)
        timestep = steps.timestep(call, given)
        step, schedule = steps.find(call, timestep, branches)
        return DenoiserCall(timestep, branches, step, schedule, call.batch)


def _with_skipped_layers(call: Running) -> Branches:
    """Both halves in one call, then the conditional once more with layers left out (SD3)."""
    return ("skip",) if call.arguments.get("skip_layers") is not None else halves(call)


def _with_perturbed(call: Running) -> Branches:
    """Both halves, then the conditional once more with perturbed attention, all in one call
    (PAG)."""
    return (*halves(call), *(("perturbed",) if call.pipe.do_perturbed_attention_guidance else ()))


def _with_image(call: Running) -> Branches:
    """Text and picture, the picture alone, neither: three parts of one call (InstructPix2Pix)."""
    return ("cond", "image", "uncond") if guided(call) else ("cond",)


def _applied(call: Running) -> Branches:
    """Both halves in one call, the conditional first, at the steps where guidance is applied
    (Z-Image)."""
    return ("cond", "uncond") if call.variable("apply_cfg") else ("cond",)


# Pictures of exactly the size asked for, and prompts as they are stored, whatever else is
# installed.
_AS_ASKED = {"use_resolution_binning": False, "clean_caption": False}
_LDM, _MMDIT = Architecture(), Architecture(_with_skipped_layers, patch=2)
_FLUX = Architecture(passes, two_pass=True, patch=2)


def _named(kind: Architecture, *names: str) -> dict[str, Architecture]:
    return {f"{name}Pipeline": kind for name in names}


ARCHITECTURES = {
    **_named(_LDM, "StableDiffusion", "StableDiffusionXL", "LatentConsistencyModel"),
    **_named(
        _LDM._replace(needs_image=True),
        "StableDiffusionImg2Img", "StableDiffusionInpaint", "StableDiffusionControlNet", "StableDiffusionControlNetImg2Img",
        "StableDiffusionControlNetInpaint", "LatentConsistencyModelImg2Img", "StableDiffusionXLImg2Img",
        "StableDiffusionXLInpaint", "StableDiffusionXLControlNet", "StableDiffusionXLControlNetImg2Img",
        "StableDiffusionXLControlNetInpaint",
    ),
    **_named(Architecture(_with_perturbed), "StableDiffusionPAG", "StableDiffusionXLPAG"),
    **_named(Architecture(_with_image, needs_image=True), "StableDiffusionInstructPix2Pix"),
    **_named(_MMDIT, "StableDiffusion3"),
    **_named(_MMDIT._replace(needs_image=True), "StableDiffusion3Img2Img", "StableDiffusion3Inpaint"),
    **_named(_FLUX, "Flux"),
    **_named(_FLUX._replace(needs_image=True), "FluxImg2Img", "FluxInpaint", "FluxKontext"),
    **_named(Architecture(alone, patch=2, needs_image=True), "FluxFill", "FluxControl"),
    **_named(Architecture(patch=2, options=_AS_ASKED), "PixArtSigma", "PixArtAlpha"),
    **_named(Architecture(options=_AS_ASKED), "Sana"),
    **_named(Architecture(patch=2), "AuraFlow", "CogVideoX", "HunyuanDiT"),
    **_named(Architecture(), "LTX"),
    **_named(Architecture(passes, patch=2), "Chroma", "Lumina2", "CogView4", "Flux2Klein", "Wan"),
    **_named(Architecture(passes, two_pass=True, patch=2), "QwenImage", "HunyuanVideo"),
    **_named(Architecture(alone, patch=2), "Flux2"),
    **_named(Architecture(_applied, patch=2), "ZImage"),
    **_named(Architecture(halves_cond_first, options={}), "DiT"),
    **_named(Architecture(alone, samples="image"), "DDPM", "DDIM"),
}  # fmt: skip
"""by the name of diffusers' class"""
_declared: dict[type, Architecture] = {}

_TEXT_FIRST = """
    AuraFlowJoint Bria BriaFibo BriaSingle Chroma Flux Flux3Single FluxSingle Joint LongCatImage LongCatImageSingle OvisImage
    OvisImageSingle QwenImage Flux2
"""
_IMAGE_FIRST = """
    CogView3Plus CogView4 EasyAnimate GlmImage HiDreamImage HunyuanImage HunyuanImageSingle HunyuanVideo HunyuanVideo15
    HunyuanVideoSingle HunyuanVideoTokenReplace HunyuanVideoTokenReplaceSingle JoyImage JoyImageEditPlus Mochi MotifVideo
    MotifVideoSingle
"""
STREAMS = {
    f"{name}TransformerBlock": ("encoder_hidden_states", "hidden_states")
    for name in _TEXT_FIRST.split()
}
STREAMS |= {
    f"{name}TransformerBlock": ("hidden_states", "encoder_hidden_states")
    for name in _IMAGE_FIRST.split()
}
STREAMS |= dict.fromkeys(
    ("CogVideoXBlock", "ConsisIDBlock"), ("hidden_states", "encoder_hidden_states")
)
"""classes of diffusers whose modules return two streams, and in which order"""
_ONE_STREAM = """
    AuraFlowSingleTransformerBlock BasicTransformerBlock ChromaSingleTransformerBlock Flux2SingleTransformerBlock
    HunyuanDiTBlock LTXVideoTransformerBlock Lumina2TransformerBlock ResnetBlock2D SanaTransformerBlock Transformer2DModel
    WanTransformerBlock ZImageTransformerBlock
"""
BLOCKS = set(STREAMS) | set(_ONE_STREAM.split())
"""classes whose modules can be captured; named when another cannot"""


def declare(
    pipeline: type,
    branches: Reader | Branches = halves,
    *,
    timestep: str | Callable[[Running], Any] = "t",
    samples: str | Callable[[Running], int] = "latents",
    patch: int = 1,
    options: Mapping[str, Any] | None = None,
) -> None:
    """Say how the denoiser's calls of a pipeline class are read, and of those derived from it
    (docs/pipelines.md).

    ``branches``: how the batch is divided, in equal parts: a tuple such as ``("uncond", "cond")``,
    or a function of the running call (:class:`sae.diffusion.calls.Running`): ``halves``, ``passes``
    and others are in :mod:`sae.diffusion.calls`. ``timestep``, ``samples``: the variables of the
    pipeline's call that hold the scheduler's timestep, and a row for each picture; or functions.
    ``patch``: latent pixels a token. ``options``: further arguments of the pipeline's call.

    Raises:
        UsageError: ``pipeline`` is no class, or a branch is named twice.
    """
    if not isinstance(pipeline, type):
        raise UsageError(f"declare expects a pipeline's class, found {pipeline!r}.")
    if not callable(branches) and (not branches or len(set(branches)) < len(branches)):
        raise UsageError(
            f"declare expects branches such as ('uncond', 'cond'), found {branches!r}."
        )
    _declared[pipeline] = Architecture(
        branches, timestep=timestep, samples=samples, patch=patch, options=dict(options or {})
    )


def is_pipeline(owner: Any) -> bool:
    """Say whether an object is a pipeline: of a known class, of a declared one, or one of
    diffusers."""
    kinds = type(owner).__mro__
    return any(kind in _declared or kind.__name__ in ARCHITECTURES for kind in kinds) or any(
        kind.__name__ == "DiffusionPipeline" for kind in kinds
    )


def architecture(pipe: Any) -> Architecture:
    """Return what is known of a pipeline's class, or of the class it is derived from.

    Raises:
        ModelError: nothing is.
    """
    for cls in type(pipe).__mro__:
        if cls in _declared:
            return _declared[cls]
        if cls.__name__ in ARCHITECTURES:
            return ARCHITECTURES[cls.__name__]
    name = type(pipe).__name__
    raise ModelError(
        f"{name} is not known: say how its calls are read with sae.diffusion.declare, or use one "
        f"of those that "
        f"docs/pipelines.md lists.{nearest(name, ARCHITECTURES)}"
    )


def split_hook(hook: str) -> tuple[str, str]:
    """Return a hook's module path and its stream's suffix: ``-encoder`` or nothing."""
    path = hook.removesuffix(ENCODER_SUFFIX)
    return path, hook[len(path) :]


def has_encoder_stream(module: Any) -> bool:
    """Say whether a module also returns ``encoder_hidden_states``; the last block of SD3 does
    not."""
    return type(module).__name__ in STREAMS and not getattr(module, "context_pre_only", False)


def output_index(module: Any, hook: str) -> int:
    """Return which element of a tuple that ``module`` returns is the stream that ``hook`` names."""
    wanted = "encoder_hidden_states" if split_hook(hook)[1] else "hidden_states"
    streams = STREAMS.get(type(module).__name__, (wanted,))
    return streams.index(wanted)
