"""What the text-to-image pipelines of diffusers do differently, a line each (docs/pipelines.md).

A pipeline with classifier-free guidance either runs both halves in one denoiser call (``batched``, the unconditional
half first) or calls the denoiser twice a step (``two-pass``). Which it does now is read from the pipeline itself.
"""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from featurestore.errors import ModelError
from featurestore.vocabulary import Branch

Branches = tuple[Branch, ...]
"""how a denoiser call's batch is divided, in equal parts, from its start"""
BATCHED: Branches = ("uncond", "cond")
ENCODER_SUFFIX = "-encoder"
"""at the end of a hook: the ``encoder_hidden_states`` of its module instead of the ``hidden_states``"""


@contextlib.contextmanager
def _guided_by_property(pipe: Any) -> Iterator[Callable[[], Branches | None]]:
    """Read ``pipe.do_classifier_free_guidance``."""

    def branches() -> Branches | None:
        guided = getattr(pipe, "do_classifier_free_guidance", None)
        return None if guided is None else BATCHED if guided else ("cond",)

    yield branches


@contextlib.contextmanager
def _guided_by_prompts(pipe: Any) -> Iterator[Callable[[], Branches | None]]:
    """Read how the pipeline has its prompts encoded: with or without negative ones."""
    encode, seen = pipe.encode_prompt, None

    @functools.wraps(encode)
    def encode_prompt(*args: Any, **kwargs: Any) -> Any:
        nonlocal seen
        call = inspect.signature(encode).bind(*args, **kwargs)
        call.apply_defaults()
        seen = BATCHED if call.arguments["do_classifier_free_guidance"] else ("cond",)
        return encode(*args, **kwargs)

    with _replaced(pipe, "encode_prompt", encode_prompt):
        yield lambda: seen


@contextlib.contextmanager
def _guided_by_context(pipe: Any) -> Iterator[Callable[[], Branches | None]]:
    """Read the name that the pipeline gives each denoiser call: ``cond`` or ``uncond``."""
    enter, now = pipe.transformer.cache_context, None

    @contextlib.contextmanager
    def cache_context(name: Branch, **kwargs: Any) -> Iterator[None]:
        nonlocal now
        now = (name,)
        try:
            with enter(name, **kwargs):
                yield
        finally:
            now = None

    with _replaced(pipe.transformer, "cache_context", cache_context):
        yield lambda: now


@contextlib.contextmanager
def _replaced(owner: Any, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Put ``function`` in the place of a method of one object."""
    before = vars(owner).get(name)
    setattr(owner, name, function)
    try:
        yield
    finally:
        if before is None:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


class Architecture(NamedTuple):
    """What has to be known of a pipeline class to read its denoiser's calls and to run it."""

    guidance: Callable[[Any], AbstractContextManager[Callable[[], Branches | None]]]
    """observes the pipeline; the function it gives returns the branches of the denoiser call in progress, None if unknown"""
    two_pass: bool = False
    """whether guidance is a second denoiser call (``true_cfg_scale``), beside a scale that the denoiser is told"""
    timestep: Callable[[Any, float], float] = lambda pipe, argument: argument
    """the scheduler's timestep, of the pipeline and the denoiser's argument"""
    patch: int = 1
    """latent pixels a token, in each direction"""
    options: Mapping[str, Any] = {}
    """further arguments of the pipeline's call"""
    needs_image: bool = False
    """whether the pipeline starts from a picture: it can be edited, but nothing is collected from it"""


ARCHITECTURES = {
    "StableDiffusionPipeline": Architecture(_guided_by_property),
    "StableDiffusionXLPipeline": Architecture(_guided_by_property),
    "StableDiffusionImg2ImgPipeline": Architecture(_guided_by_property, needs_image=True),
    "StableDiffusionXLImg2ImgPipeline": Architecture(_guided_by_property, needs_image=True),
    "StableDiffusion3Pipeline": Architecture(_guided_by_property, patch=2),
    # Pictures of exactly the size asked for, and prompts as they are stored, whatever else is installed.
    "PixArtSigmaPipeline": Architecture(
        _guided_by_prompts, patch=2, options={"use_resolution_binning": False, "clean_caption": False}
    ),
    # The denoiser is given the timestep / 1000, rounded to the model's precision: too coarse to tell steps apart.
    "FluxPipeline": Architecture(
        _guided_by_context, two_pass=True, timestep=lambda pipe, argument: float(pipe.current_timestep), patch=2
    ),
}

_JOINT_BLOCKS = frozenset({"JointTransformerBlock", "FluxTransformerBlock", "FluxSingleTransformerBlock"})
"""classes that return ``(encoder_hidden_states, hidden_states)``"""
BLOCKS = _JOINT_BLOCKS | {"Transformer2DModel", "ResnetBlock2D", "BasicTransformerBlock"}
"""classes whose modules can be captured; named when another cannot"""


def architecture(pipe: Any) -> Architecture:
    """Return what is known of a pipeline's class, or of the class it is derived from.

    Raises:
        ModelError: nothing is.
    """
    for cls in type(pipe).__mro__:
        if cls.__name__ in ARCHITECTURES:
            return ARCHITECTURES[cls.__name__]
    raise ModelError(f"{type(pipe).__name__} is not supported: expected one of diffusers' {', '.join(ARCHITECTURES)}.")


def split_hook(hook: str) -> tuple[str, str]:
    """Return a hook's module path and its stream's suffix: ``-encoder`` or nothing."""
    path = hook.removesuffix(ENCODER_SUFFIX)
    return path, hook[len(path) :]


def has_encoder_stream(module: Any) -> bool:
    """Say whether a module also returns ``encoder_hidden_states``; the last block of SD3 does not."""
    return type(module).__name__ in _JOINT_BLOCKS and not getattr(module, "context_pre_only", False)


def output_index(module: Any, hook: str) -> int:
    """Return which element of a tuple that ``module`` returns is the stream that ``hook`` names."""
    return 1 if type(module).__name__ in _JOINT_BLOCKS and not split_hook(hook)[1] else 0
