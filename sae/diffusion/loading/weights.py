"""Which weights a denoiser has, in whatever precision and form it was loaded (docs/format.md,
section 1.8).

One rule: the base weights under their plain names, then every adapter that acts, by its tensors and
scales. The order in which adapters were loaded, wrappers, fused copies of projections and where the
weights are kept change nothing.
"""

import hashlib
import weakref
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from featurestore.errors import ModelError
from featurestore.format.canonical import same_model, same_signs
from sae.diffusion.modules import plain_name, unwrapped

__all__ = ["in_common", "model_hash", "same_model"]

_CASTS = {
    torch.float32: {"f16": torch.float16, "bf16": torch.bfloat16},
    torch.float16: {"f16": torch.float16},
    torch.bfloat16: {"bf16": torch.bfloat16},
    # Rounded to 8 bits and kept so: exact in 16, and another model than the one that was rounded.
    torch.float8_e4m3fn: {"f8": torch.float16},
    torch.float8_e5m2: {"f8": torch.float16},
}
_BITS = {8: torch.int8, 16: torch.int16, 32: torch.int32, 64: torch.int64}
_FUSED = {"to_qkv", "to_kv", "to_added_qkv"}
_PRECISIONS = {"f16": "float16", "bf16": "bfloat16", "f8": "float8"}


class _OutOfReachError(ModelError):
    """Weights are offloaded by means that are not known here."""


class _Adapter(NamedTuple):
    """One adapter that acts on one layer."""

    name: str
    layer: str
    scale: float
    tensors: dict[str, Tensor]


class _Weights(NamedTuple):
    base: dict[str, Tensor]
    adapters: list[_Adapter]


_known: "weakref.WeakKeyDictionary[nn.Module, tuple[str, str]]" = weakref.WeakKeyDictionary()


def model_hash(module: nn.Module) -> str:
    """Return the identity of a module's weights as they are now: a hash for each precision in which
    they can be compared.

    The last part, ``sign``, is of the weights' signs, which no rounding changes. A hash is taken
    once; that the weights are still those is checked at every call.

    Raises:
        ModelError: weights are in a precision other than float32, float16, bfloat16 or float8, or
            cannot be reached.
    """
    known = _known.get(module)
    try:
        weights = _weights(module)
    except _OutOfReachError:
        if known is None:
            raise
        return known[1]  # What it was when it could be read.
    content = _content(weights)
    if known is None or known[0] != content:
        parts = [f"{name}:{_digest(weights, cast)}" for name, cast in _casts(weights).items()]
        _known[module] = known = content, ",".join([*parts, f"sign:{_digest(weights, None)}"])
    return known[1]


def in_common(found: str, wanted: str) -> str:
    """Return what two model hashes that share no precision have in common, to end a sentence with;
    empty if nothing."""
    if not same_signs(found, wanted):
        return ""
    here, there = (_precisions(one) for one in (found, wanted))
    return f": the same model in another precision ({here} here, {there} there)"


def _precisions(identity: str) -> str:
    names = (part.partition(":")[0] for part in identity.split(","))
    return " or ".join(_PRECISIONS[name] for name in names if name in _PRECISIONS)


def _casts(weights: _Weights) -> dict[str, torch.dtype]:
    """Return the precisions in which weights can be compared: those that the coarsest of them
    allows."""
    kinds = {t.dtype for t in weights.base.values() if t.is_floating_point()}
    unknown = kinds - set(_CASTS)
    if unknown:
        found = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in unknown))
        raise ModelError(
            f"the model's weights are {found}: load it in float32, float16 or bfloat16."
        )
    casts = [_CASTS[kind] for kind in kinds]
    if any("f8" in cast for cast in casts):
        return {"f8": torch.float16}
    common = set.intersection(*map(set, casts)) if casts else set()
    if not common:
        raise ModelError(
            "the model's weights are partly float16 and partly bfloat16: load it in one precision."
        )
    return {name: cast for name, cast in _CASTS[torch.float32].items() if name in common}


def _weights(module: nn.Module) -> _Weights:
    """Return a module's weights by their plain names, and what acts on them."""
    base: dict[str, Tensor] = {}
    adapters: dict[tuple[str, str], _Adapter] = {}
    layers = {
        plain_name(name): one
        for name, one in module.named_modules()
        if hasattr(one, "adapter_layer_names")
    }
    fused = tuple(
        f"{plain_name(name)}.{copy}."
        for name, one in module.named_modules()
        if getattr(one, "fused_projections", False)
        for copy in _FUSED
        if hasattr(one, "to_q") or copy == "to_added_qkv"
    )
    for name, tensor in sorted(_tensors(module), key=lambda one: one[0]):
        if name.startswith(fused):
            continue
        layer = next((one for one in layers if name.startswith(f"{one}.")), None)
        inner = "" if layer is None else name.removeprefix(f"{layer}.")
        if layer is None or inner.startswith("base_layer."):
            base[name if layer is None else f"{layer}.{inner.removeprefix('base_layer.')}"] = tensor
            continue
        for adapter, scale in _acting(layers[layer]):
            if adapter in inner.split("."):
                kept = adapters.setdefault((adapter, layer), _Adapter(adapter, layer, scale, {}))
                kept.tensors[".".join(part for part in inner.split(".") if part != adapter)] = (
                    tensor
                )
    return _Weights(dict(sorted(base.items())), list(adapters.values()))


def _acting(layer: Any) -> Iterator[tuple[str, float]]:
    """Yield the adapters that change what a layer computes, with their scales; a merged one is in
    its weights already."""
    if layer.disable_adapters or layer.merged:
        return
    for name in layer.active_adapters:
        scale = float(getattr(layer, "scaling", {}).get(name, 1.0))
        if scale:
            yield name, scale


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield parameters and kept buffers, also those that accelerate keeps elsewhere between
    calls."""
    elsewhere: dict[str, Mapping[str, Tensor]] = {}
    for name, one in module.named_modules():
        for hook in _hooks(one):
            kept = getattr(hook, "weights_map", None)
            if kept is not None:
                elsewhere[name] = kept
    for name, tensor in module.state_dict(keep_vars=True).items():
        owner, _, last = name.rpartition(".")
        found = elsewhere[owner][last] if tensor.is_meta and owner in elsewhere else tensor
        if found.is_meta:
            raise _OutOfReachError(
                f"the denoiser's weight {name!r} is kept where it cannot be read: use "
                f"enable_model_cpu_offload() or load it whole."
            )
        yield plain_name(name), found.detach()


def _hooks(module: nn.Module) -> list[Any]:
    hook = getattr(unwrapped(module), "_hf_hook", None)
    return list(getattr(hook, "hooks", [hook])) if hook is not None else []


def _content(weights: _Weights) -> str:
    """Return a quick fingerprint of the weights' bits, to see that they are still the same."""
    sums = []
    for tensor in [
        *weights.base.values(),
        *(t for one in weights.adapters for t in one.tensors.values()),
    ]:
        bits = (
            tensor.view(_BITS[tensor.element_size() * 8]) if tensor.is_floating_point() else tensor
        )
        sums.append(
            bits.sum(dtype=torch.int64).cpu()
            if tensor.numel()
            else torch.zeros((), dtype=torch.int64)
        )
    shapes = [(name, t.shape, t.dtype) for name, t in weights.base.items()]
    acting = [(one.name, one.layer, one.scale, list(one.tensors)) for one in weights.adapters]
    return f"{torch.stack(sums).tolist() if sums else []} {shapes} {acting}"


def _digest(weights: _Weights, dtype: torch.dtype | None) -> str:
    """Return the hash of the base, and of the adapters that act on it: ``base`` or
    ``base+adapters``.

    An adapter counts by its tensors and scales, not by the name that was given to it.
    """
    base = _hash(weights.base, dtype)
    names = sorted({one.name for one in weights.adapters})
    acting = []
    for name in names:
        of_one = sorted(
            (one for one in weights.adapters if one.name == name), key=lambda one: one.layer
        )
        tensors = {
            f"{one.layer}.{key}": tensor for one in of_one for key, tensor in one.tensors.items()
        }
        scales = "".join(f"{one.layer}={one.scale!r}\n" for one in of_one)
        acting.append(
            hashlib.sha256(
                f"{_hash(dict(sorted(tensors.items())), dtype)}\n{scales}".encode()
            ).hexdigest()
        )
    return (
        base
        if not acting
        else f"{base}+{hashlib.sha256(''.join(sorted(acting)).encode()).hexdigest()}"
    )


def _hash(tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> str:
    """Return the SHA-256 of names, shapes and values cast to ``dtype``; None: of their signs."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name}\n{list(tensor.shape)}\n".encode())
        if tensor.is_floating_point() and dtype is None:
            bits = tensor.cpu().contiguous().view(_BITS[tensor.element_size() * 8]).flatten() < 0
            digest.update(np.packbits(bits.numpy()).tobytes())
            continue
        cast = tensor.to("cpu", dtype) if tensor.is_floating_point() else tensor.cpu()
        digest.update(cast.contiguous().view(torch.uint8).numpy().data if cast.numel() else b"")
    return digest.hexdigest()
