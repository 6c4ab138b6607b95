"""What the pipelines of diffusers do differently, a line each (docs/pipelines.md)."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from featurestore.errors import ModelError, UsageError, nearest
from featurestore.vocabulary import BRANCHES, STARTS
from sae.diffusion.reading.calls import Branches, DenoiserCall, Reader, Running, check_batch
from sae.diffusion.reading.grids import token_grid
from sae.diffusion.reading.guidance import (
    alone,
    applied,
    halves,
    halves_cond_first,
    passes,
    with_image,
    with_perturbed,
    with_skipped_layers,
)
from sae.diffusion.reading.steps import Steps

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
    """latent pixels per token, in each direction"""
    own_sizes: bool = False
    """whether it draws at sizes of its own, near the one that is asked for (HiDream, Kandinsky
    5)"""
    options: Mapping[str, Any] = {}
    """further arguments of the pipeline's call"""
    third: str | None = ""
    """the branch that its guidance may have beside ``cond`` and ``uncond``; None: not known"""
    words: Callable[[str], str] | None = None
    """what is done to a prompt before it is tokenized, where the tokens that the denoiser attends
    to are those of its ``tokenizers`` in their order; None: they are not"""
    tokenizers: tuple[str, ...] = ("tokenizer",)
    """whose tokens those are, one after another"""
    starts: Mapping[str, str] = {}
    """what samples start from beside noise: ``image``, ``mask`` or ``control`` → the argument of
    the pipeline's call that takes it"""

    def read(self, call: Running, steps: Steps) -> DenoiserCall:
        """Return what a denoiser call is.

        Raises:
            ModelError: the running pipeline does not say, or its batch contradicts it.
        """
        branches = self.branches(call) if callable(self.branches) else self.branches
        count = self.samples(call) if callable(self.samples) else len(call.variable(self.samples))
        check_batch(call, branches, count)
        timestep = steps.timestep(call, self.timestep_of(call))
        step, schedule = steps.find(call, timestep, branches)
        grid = token_grid(call)
        return DenoiserCall(timestep, branches, step, schedule, call.batch, call.prompts, grid)

    def timestep_of(self, call: Running) -> Any:
        """Return the scheduler's timestep of a denoiser call, as the pipeline has it."""
        return self.timestep(call) if callable(self.timestep) else call.variable(self.timestep)


def _lowered(prompt: str) -> str:
    return prompt.lower().strip()


# Pictures of exactly the size asked for, and prompts as they are stored, whatever else is
# installed.
_AS_ASKED = {"use_resolution_binning": False, "clean_caption": False}
_LDM, _MMDIT = (
    Architecture(words=str),
    Architecture(
        with_skipped_layers,
        patch=2,
        third="skip",
        words=str,
        tokenizers=("tokenizer", "tokenizer_3"),
    ),
)
_FLUX = Architecture(passes, two_pass=True, patch=2, words=str, tokenizers=("tokenizer_2",))


def _named(kind: Architecture, *names: str) -> dict[str, Architecture]:
    return {f"{name}Pipeline": kind for name in names}


_IMAGE, _CONTROL = {"image": "image"}, {"control": "image"}
_INPAINT = _IMAGE | {"mask": "mask_image"}
_PAG = Architecture(with_perturbed, third="perturbed")
_PIX2PIX = Architecture(with_image, third="image", starts=_IMAGE)
_PIXART = Architecture(patch=2, options=_AS_ASKED, words=_lowered)
_FLUX_ALONE = _FLUX._replace(branches=alone, two_pass=False)
_GUIDED = {"control": "control_image"}
_LDM_BY_STARTS = (
    ("Img2Img", _IMAGE),
    ("Inpaint", _INPAINT),
    ("ControlNet", _CONTROL),
    ("ControlNetImg2Img", _IMAGE | _GUIDED),
    ("ControlNetInpaint", _INPAINT | _GUIDED),
)

ARCHITECTURES = {
    **_named(_LDM, "StableDiffusion", "StableDiffusionXL", "LatentConsistencyModel"),
    **{
        f"{name}{end}Pipeline": _LDM._replace(starts=starts)
        for name in ("StableDiffusion", "StableDiffusionXL")
        for end, starts in _LDM_BY_STARTS
    },
    **_named(_LDM._replace(starts=_IMAGE), "LatentConsistencyModelImg2Img"),
    **_named(_PAG, "StableDiffusionPAG", "StableDiffusionXLPAG"),
    **_named(_PIX2PIX, "StableDiffusionInstructPix2Pix"),
    **_named(_MMDIT, "StableDiffusion3"),
    **_named(_MMDIT._replace(starts=_IMAGE), "StableDiffusion3Img2Img"),
    **_named(_MMDIT._replace(starts=_INPAINT), "StableDiffusion3Inpaint"),
    **_named(_FLUX, "Flux"),
    **_named(_FLUX._replace(starts=_IMAGE), "FluxImg2Img"),
    **_named(_FLUX._replace(starts=_IMAGE, options={"_auto_resize": False}), "FluxKontext"),
    **_named(_FLUX._replace(starts=_INPAINT), "FluxInpaint"),
    **_named(_FLUX_ALONE._replace(starts=_INPAINT), "FluxFill"),
    **_named(_FLUX_ALONE._replace(starts=_GUIDED), "FluxControl"),
    **_named(_PIXART, "PixArtSigma", "PixArtAlpha"),
    **_named(Architecture(options=_AS_ASKED), "Sana"),
    **_named(Architecture(alone, options=_AS_ASKED), "SanaSprint"),
    **_named(Architecture(patch=2, options=_AS_ASKED), "Allegro"),
    **_named(Architecture(patch=2), "Mochi"),
    **_named(Architecture(patch=2, own_sizes=True), "HiDreamImage"),
    **_named(Architecture(passes, patch=2, own_sizes=True), "Kandinsky5T2I"),
    **_named(Architecture(patch=2), "AuraFlow", "CogVideoX", "HunyuanDiT"),
    **_named(Architecture(), "LTX", "Kandinsky3"),
    **_named(Architecture(passes, patch=2), "Chroma", "Lumina2", "CogView4", "Flux2Klein"),
    **_named(Architecture(passes, patch=2), "Wan", "Kandinsky5T2V"),
    **_named(Architecture(passes, two_pass=True, patch=2), "QwenImage", "HunyuanVideo"),
    **_named(Architecture(alone, patch=2), "Flux2"),
    **_named(Architecture(applied, patch=2), "ZImage"),
    **_named(Architecture(halves_cond_first, options={}), "DiT"),
    **_named(Architecture(alone, samples="image"), "DDPM", "DDIM"),
}  # fmt: skip
"""by the name of diffusers' class"""
_declared: dict[type, Architecture] = {}

_TEXT_FIRST = """
    AuraFlowJoint Bria BriaFibo BriaSingle Chroma Flux Flux3Single FluxSingle Joint LongCatImage
    LongCatImageSingle OvisImage OvisImageSingle QwenImage Flux2
"""
_IMAGE_FIRST = """
    CogView3Plus CogView4 EasyAnimate GlmImage HiDreamImage HunyuanImage HunyuanImageSingle
    HunyuanVideo HunyuanVideo15 HunyuanVideoSingle HunyuanVideoTokenReplace
    HunyuanVideoTokenReplaceSingle JoyImage JoyImageEditPlus Mochi MotifVideo MotifVideoSingle
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
    AllegroTransformerBlock AuraFlowSingleTransformerBlock BasicTransformerBlock
    ChromaSingleTransformerBlock Flux2SingleTransformerBlock HunyuanDiTBlock
    Kandinsky5TransformerDecoderBlock Kandinsky5TransformerEncoderBlock LTXVideoTransformerBlock
    Lumina2TransformerBlock ResnetBlock2D SanaTransformerBlock Transformer2DModel
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
    third: str | None = None,
    words: Callable[[str], str] | None = None,
    starts: Mapping[str, str] | None = None,
) -> None:
    """Say how the denoiser's calls of a pipeline class are read, and of those derived from it
    (docs/pipelines.md).

    ``branches``: how the batch is divided, in equal parts: a tuple such as ``("uncond", "cond")``,
    or a function of the running call (:class:`sae.diffusion.reading.calls.Running`): ``halves``,
    ``passes`` and others are in :mod:`sae.diffusion.reading.guidance`. ``timestep``, ``samples``:
    the variables of the pipeline's call that hold the scheduler's timestep, and a row for each
    picture; or functions. ``patch``: latent pixels per token. ``options``: further arguments of the
    pipeline's call.
    ``third``: the branch of its guidance beside ``cond`` and ``uncond``, ``""`` if it has no such
    branch; None: not known, and refused only when a run lacks it. ``words``: what is done to a
    prompt before it is tokenized, where the denoiser attends to the tokens of its ``tokenizer``:
    then words have maps. ``starts``: ``image``, ``mask`` or ``control`` → the argument of the
    pipeline's call that takes such a picture.

    Raises:
        UsageError: ``pipeline`` is no class, a branch is named twice, or there is no such third
            branch or start.
    """
    if not isinstance(pipeline, type):
        raise UsageError(f"declare expects a pipeline's class, found {pipeline!r}.")
    if not callable(branches) and (not branches or len(set(branches)) < len(branches)):
        raise UsageError(
            f"declare expects branches such as ('uncond', 'cond'), found {branches!r}."
        )
    known = ("", *BRANCHES[2:])
    if third is not None and third not in known:
        raise UsageError(f"declare expects third as one of {known}, found {third!r}.")
    for kind in starts or {}:
        if kind not in STARTS:
            raise UsageError(
                f"declare expects starts from {', '.join(STARTS)}, found {kind!r}: "
                f"starts={{'image': 'init_image'}} says which argument takes the picture."
            )
    _declared[pipeline] = Architecture(
        branches,
        timestep=timestep,
        samples=samples,
        patch=patch,
        options=dict(options or {}),
        third=third,
        words=words,
        starts=dict(starts or {}),
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
        f"of those that docs/pipelines.md lists.{nearest(name, ARCHITECTURES)}"
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
