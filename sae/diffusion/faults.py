"""Name pictures that are no result: flagged by a safety checker, not finite, or black."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

FLAGGED = "flagged by the safety checker"
NOT_FINITE = "not finite"
BLACK = "black"
_KEY = "featurestore.fault"


def picture_fault(image: Any) -> str | None:
    """Say why a PIL picture is no result, None if it is one.

    What :func:`sae.diffusion.pipelines.generate` saw of it: that its safety checker flagged it, or
    that the autoencoder gave values which are not finite. Of any other picture, also one from a
    file: that every pixel of it is black.
    """
    said = image.info.get(_KEY)
    if said is not None:
        return str(said)
    bands = image.convert("RGB").getextrema()
    return BLACK if all(highest == 0 for _, highest in bands) else None


def mark(images: Sequence[Any], flagged: Sequence[bool] | None, finite: Sequence[bool]) -> None:
    """Note in PIL pictures what is wrong with them; nothing of it is in their pixels or files."""
    for number, image in enumerate(images):
        if flagged and flagged[number]:
            image.info[_KEY] = FLAGGED
        elif not finite[number]:
            image.info[_KEY] = NOT_FINITE


def say_faults(faults: dict[str, str], n_pictures: int) -> str:
    """Return one line that counts and names faulty pictures, ``name → fault``; empty if there are
    none."""
    if not faults:
        return ""
    named = ", ".join(f"{name} ({fault})" for name, fault in list(faults.items())[:5])
    return (
        f"{len(faults)} of {n_pictures} pictures are no results: "
        f"{named}{', …' if len(faults) > 5 else ''}."
    )


class Decoded:
    """What an autoencoder gave while it was watched."""

    def __init__(self) -> None:
        self._finite: list[torch.Tensor] = []

    def add(self, output: Any) -> None:
        """Note which pictures of an output are finite."""
        tensor = output[0] if isinstance(output, tuple) else output
        self._finite.append(tensor.detach().isfinite().flatten(1).all(1).cpu())

    def of(self, n: int) -> list[bool]:
        """Return whether each of n pictures is finite; pieces of pictures (tiles) are not told
        apart: one spoils all."""
        if not self._finite:
            return [True] * n
        found = torch.cat(self._finite)
        return found.tolist() if len(found) == n else [bool(found.all())] * n


@contextlib.contextmanager
def watch_decoder(pipe: Any) -> Iterator[Decoded]:
    """Watch the decoder of a pipeline's autoencoder, if it has one."""
    decoded = Decoded()
    decoder = getattr(getattr(pipe, "vae", None), "decoder", None)
    if not isinstance(decoder, nn.Module):
        yield decoded
        return
    handle = decoder.register_forward_hook(lambda module, args, output: decoded.add(output))
    try:
        yield decoded
    finally:
        handle.remove()
