"""Which modules of a pipeline's denoiser a hook names."""

import fnmatch
import re
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from featurestore.errors import HookError, ModelError, nearest
from sae.diffusion.reading.architectures import (
    BLOCKS,
    ENCODER_SUFFIX,
    has_encoder_stream,
    split_hook,
)

_DENOISERS = ("unet", "transformer")
_ENCODER = re.compile(r"text_encoder(_\d+)?")
_CACHES = {
    "faster_cache",
    "first_block_cache",
    "mag_cache",
    "pyramid_attention_broadcast",
    "sea_cache",
    "taylorseer_cache",
    "text_kv_cache",
}
"""files of diffusers/hooks that keep values from step to step"""


def unwrapped(module: Any) -> Any:
    """Return the module inside of what torch puts around one: ``torch.compile``'s ``_orig_mod``,
    ``module`` of DDP."""
    while True:
        inner = getattr(module, "_orig_mod", None)
        if inner is None and type(module).__name__ in ("DistributedDataParallel", "DataParallel"):
            inner = module.module
        if inner is None:
            return module
        module = inner


def plain_name(name: str) -> str:
    """Return a module's or a weight's name without what wrappers add to it."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def plain_modules(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield each module with its name, as ``named_modules`` would if nothing were wrapped."""
    for name, one in module.named_modules(prefix=prefix):
        if unwrapped(one) is one:
            yield plain_name(name), one


def denoiser(pipe: Any) -> nn.Module:
    """Return a pipeline's denoiser: its ``unet`` or its ``transformer``; if that is compiled, the
    module inside.

    Raises:
        ModelError: it has neither.
    """
    module = unwrapped(getattr(pipe, _denoiser_name(pipe)))
    assert isinstance(module, nn.Module)
    return module


def owns_denoiser(pipe: Any, module: nn.Module) -> bool:
    """Say whether ``module`` is a pipeline's denoiser."""
    return any(unwrapped(getattr(pipe, name, None)) is module for name in _DENOISERS)


def is_compiled(pipe: Any) -> bool:
    """Say whether the denoiser, or a module of it, is compiled by torch."""
    inner = denoiser(pipe)
    compiled = (
        getattr(module, "_compiled_call_impl", None) is not None for module in inner.modules()
    )
    wrapped = any(unwrapped(module) is not module for module in inner.modules())
    return getattr(pipe, _denoiser_name(pipe)) is not inner or wrapped or any(compiled)


def check_no_cache(module: nn.Module) -> None:
    """Refuse a denoiser of which a cache of diffusers leaves blocks out: their hooks would see what
    an earlier step saw.

    Raises:
        ModelError: one is on; it is named.
    """
    for name, one in module.named_modules():
        registry = getattr(one, "_diffusers_hook", None)
        for hook in () if registry is None else registry.hooks.values():
            if type(hook).__module__.rpartition(".")[2] in _CACHES:
                raise ModelError(
                    f"{type(module).__name__} has diffusers' {type(hook).__name__} on (at "
                    f"{name or 'the denoiser'}): it puts values of earlier steps in the place of "
                    f"new ones. Call disable_cache() on the denoiser first."
                )


def _denoiser_name(pipe: Any) -> str:
    for name in _DENOISERS:
        if isinstance(getattr(pipe, name, None), nn.Module):
            return name
    raise ModelError(
        f"{type(pipe).__name__} has no {' and no '.join(_DENOISERS)}: it is no text-to-image "
        f"pipeline of diffusers."
    )


def is_encoder_hook(hook: str) -> bool:
    """Say whether a hook lies in a text encoder."""
    return _ENCODER.fullmatch(hook.partition(".")[0]) is not None


def encoder_of(pipe: Any, name: str) -> nn.Module:
    """Return a pipeline's text encoder by its name, such as ``text_encoder_2``.

    Raises:
        HookError: the pipeline has none of that name.
    """
    module = unwrapped(getattr(pipe, name, None))
    if not isinstance(module, nn.Module):
        raise HookError(f"{type(pipe).__name__} has no {name!r}.{nearest(name, _parts(pipe))}")
    return module


def text_encoders(pipe: Any) -> dict[str, nn.Module]:
    """Return a pipeline's text encoders by their names."""
    return {
        name: unwrapped(part)
        for name, part in getattr(pipe, "components", {}).items()
        if _ENCODER.fullmatch(name) and isinstance(part, nn.Module)
    }


def _parts(pipe: Any) -> dict[str, nn.Module]:
    """Return the parts that hooks may lie in, by their names: the denoiser, and text encoders."""
    return {_denoiser_name(pipe): denoiser(pipe), **text_encoders(pipe)}


def find_module(pipe: Any, hook: str) -> nn.Module:
    """Return the module of a hook such as ``unet.mid_block.attentions.0``,
    ``transformer.transformer_blocks.3-encoder`` or ``text_encoder.encoder.layers.9``.

    Raises:
        HookError: the model has no such module, or the module no such stream.
    """
    path, suffix = split_hook(present_name(pipe, hook))
    root, _, inner = path.partition(".")
    parts = _parts(pipe)
    if root not in parts and isinstance(getattr(pipe, root, None), nn.Module):
        raise HookError(
            f"{hook!r} is no part of {' or '.join(parts)}: it does not run at every step, nor once "
            f"per prompt."
        )
    try:
        module = unwrapped(parts[root].get_submodule(inner)) if root in parts else None
    except AttributeError:
        module = None
    if module is None:
        near = parts if root in parts else {_denoiser_name(pipe): denoiser(pipe)}
        known = [
            f"{part}.{name}"
            for part, top in near.items()
            if part == root or root not in parts
            for name, _ in plain_modules(top)
            if name
        ]
        raise HookError(f"the model has no module {path!r}.{nearest(path, known)}")
    if suffix and not has_encoder_stream(module):
        raise HookError(f"module {path!r} returns no encoder_hidden_states.{capturable(pipe)}")
    return module


def present_name(pipe: Any, hook: str) -> str:
    """Return a hook under the name that its module has here: ``text_model.``, which CLIP's modules
    had before transformers 5, is left out where it is not."""
    root, _, inner = hook.partition(".")
    if inner.startswith("text_model.") and is_encoder_hook(hook):
        part = getattr(pipe, root, None)
        if isinstance(part, nn.Module) and not hasattr(unwrapped(part), "text_model"):
            return f"{root}.{inner.removeprefix('text_model.')}"
    return hook


def match_hooks(pipe: Any, patterns: Sequence[str]) -> list[str]:
    """Replace each pattern with the hooks that it matches: those of the model's modules, in its
    order; others stay as they are.

    ``*``, ``?`` and ``[…]`` stand for something within one part of the path, as in
    ``unet.up_blocks.*.attentions.*``; with ``-encoder`` only modules that have that stream match.

    Raises:
        HookError: a pattern matches nothing, or a hook names no module.
    """
    found: dict[str, None] = {}
    for given in patterns:
        pattern = present_name(pipe, given)
        matches = _matches(pipe, pattern) if set("*?[") & set(pattern) else [pattern]
        if not matches:
            raise HookError(f"no module matches {pattern!r}.{capturable(pipe)}")
        for hook in matches:
            find_module(pipe, hook)
        found |= dict.fromkeys(matches)
    return list(found)


def _matches(pipe: Any, pattern: str) -> list[str]:
    path, suffix = split_hook(pattern)
    parts = path.split(".")
    matches = []
    for root, part in _parts(pipe).items():
        for name, module in plain_modules(part, root):
            steps = name.split(".")
            alike = len(steps) == len(parts) and all(map(fnmatch.fnmatchcase, steps, parts))
            if (
                alike
                and not isinstance(module, nn.ModuleList)
                and (not suffix or has_encoder_stream(module))
            ):
                matches.append(name + suffix)
    return matches


def capturable(pipe: Any) -> str:
    """Return `` Can be captured: …``: the patterns of the blocks whose tensors are maps or token
    streams, for an error."""
    patterns: dict[str, None] = {}
    for name, module in plain_modules(denoiser(pipe), _denoiser_name(pipe)):
        if type(module).__name__ in BLOCKS:
            pattern = re.sub(r"\.\d+", ".*", name)
            patterns |= dict.fromkeys(
                [pattern, *([pattern + ENCODER_SUFFIX] if has_encoder_stream(module) else [])]
            )
    return f" Can be captured: {', '.join(patterns)}, and modules in them that return as much."
