"""Calls of a denoiser that no pipeline makes, as in training: what they are is said by hand."""

import contextlib
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from featurestore.errors import ModelError
from sae.diffusion.reading.calls import Branches, DenoiserCall, batch_size, bound
from sae.diffusion.reading.steps import scalar

_direct: "weakref.WeakKeyDictionary[nn.Module, list[tuple[Branches, float | None]]]" = (
    weakref.WeakKeyDictionary()
)


@contextlib.contextmanager
def said_of(module: nn.Module, branches: Branches, timestep: float | None) -> Iterator[None]:
    """Say what the calls of a denoiser are that no pipeline makes, for as long as the block
    lasts."""
    told = _direct.setdefault(module, [])
    told.append((branches, timestep))
    try:
        yield
    finally:
        told.remove((branches, timestep))


def direct_call(
    module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> DenoiserCall | None:
    """Return a denoiser's call that no pipeline makes, as :func:`said_of` has it; None if nothing
    was said.

    Raises:
        ModelError: its batch cannot be divided so.
    """
    told = _direct.get(module)
    if not told:
        return None
    branches, timestep = told[-1]
    arguments = bound(module, args, kwargs)
    batch = batch_size(arguments)
    if batch % len(branches):
        raise ModelError(
            f"the denoiser was called with {batch} samples, which are not {' and '.join(branches)} "
            f"of each."
        )
    at = scalar(arguments["timestep"]) if timestep is None else timestep
    return DenoiserCall(at, branches, batch=batch)
