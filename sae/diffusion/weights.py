"""Which weights a denoiser has, in whatever precision it was loaded (docs/format.md, section 1.8)."""

import hashlib
import weakref

import torch
from torch import nn

from featurestore.errors import ModelError

_CASTS = {
    torch.float32: {"f16": torch.float16, "bf16": torch.bfloat16},
    torch.float16: {"f16": torch.float16},
    torch.bfloat16: {"bf16": torch.bfloat16},
}
_known: "weakref.WeakKeyDictionary[nn.Module, str]" = weakref.WeakKeyDictionary()


def model_hash(module: nn.Module) -> str:
    """Return the identity of a module's weights: one hash a precision in which it can be compared.

    Computed once for each module object: later changes of its weights are not seen.

    Raises:
        ModelError: its weights are in a precision other than float32, float16 or bfloat16, or are elsewhere.
    """
    if module not in _known:
        if any(parameter.is_meta for parameter in module.parameters()):
            raise ModelError(
                "the denoiser's weights are offloaded piece by piece and cannot be identified: call sae.identity.model_hash "
                "on it once before enable_sequential_cpu_offload(), or use enable_model_cpu_offload()."
            )
        dtype = next(module.parameters()).dtype
        if dtype not in _CASTS:
            raise ModelError(f"the denoiser's weights are {dtype}: load it in float32, float16 or bfloat16.")
        _known[module] = ",".join(f"{name}:{_digest(module, cast)}" for name, cast in _CASTS[dtype].items())
    return _known[module]


def same_model(one: str, other: str) -> bool:
    """Say whether two model hashes share a part."""
    return bool(set(one.split(",")) & set(other.split(",")))


def _digest(module: nn.Module, dtype: torch.dtype) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        cast = tensor.detach().to("cpu", dtype) if tensor.is_floating_point() else tensor.detach().cpu()
        digest.update(f"{name}\n{list(cast.shape)}\n".encode())
        digest.update(memoryview(cast.contiguous().view(torch.uint8).numpy()) if cast.numel() else b"")
    return digest.hexdigest()
