"""What readers of other libraries' checkpoints share: options, and tensors that are checked as they
are taken."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from featurestore.errors import SAEError
from sae.checkpoint import all_finite
from sae.formats.libraries.config import listed, read_bytes
from sae.pickles import pickled_tensors


class Choice(NamedTuple):
    """What a user says because the file does not."""

    architecture: str | None = None
    k: int | None = None
    threshold: float | None = None
    calibrate: bool = False
    """find the threshold on a store's activations"""


class Foreign(NamedTuple):
    """A checkpoint as an SAE of this project."""

    fields: dict[str, Any]
    """of :class:`sae.model.SAEConfig`"""
    tensors: dict[str, Tensor]
    """float32, under the names of :class:`sae.model.SAE`"""
    hook: str = ""
    """where the checkpoint says that it belongs; empty: it does not"""
    io: str = ""
    """what the checkpoint, or its library, was trained on; empty: unknown"""
    format: str = ""
    """the name of the format that it was read from"""
    uncalibrated: bool = False
    """the threshold is not in the file, and has to be found before the SAE is of use"""


class Taken:
    """The tensors of a file, each to be taken once; none may be left."""

    def __init__(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        self.path, self._tensors, self._taken = path, _unwrapped(tensors), set[str]()

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def shape(self, name: str, n_dims: int) -> list[int]:
        """Return the shape of a tensor.

        Raises:
            SAEError: it is missing, or has another number of dimensions.
        """
        shape = list(self._get(name).shape)
        if len(shape) != n_dims:
            raise SAEError(f"{self.path}: {name} is {shape}, expected {n_dims} dimensions.")
        return shape

    def take(self, name: str, shape: Collection[int]) -> Tensor:
        """Return a tensor as float32.

        Raises:
            SAEError: it is missing, of another shape, of integers, or not finite.
        """
        tensor = self._get(name)
        # A vector may be kept as one row.
        if len(shape) == 1 and list(tensor.shape) == [1, *shape]:
            tensor = tensor[0]
        if list(tensor.shape) != list(shape) or not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            found = f"{name} is {kind} {list(tensor.shape)}"
            raise SAEError(f"{self.path}: {found}, expected floating point {list(shape)}.")
        if not all_finite(tensor):
            raise SAEError(f"{self.path}: {name} holds values that are not finite.")
        self._taken.add(name)
        return tensor.to(torch.float32)

    def number(self, name: str) -> float:
        """Return a tensor of one number.

        Raises:
            SAEError: it is missing, or something else.
        """
        tensor = self._get(name)
        if tensor.numel() != 1 or not bool(tensor.isfinite().all()):
            raise SAEError(
                f"{self.path}: {name} is {list(tensor.shape)}, expected one finite number."
            )
        self._taken.add(name)
        return float(tensor)

    def integers(self, name: str) -> list[int]:
        """Return a list of integers.

        Raises:
            SAEError: it is missing, or something else.
        """
        tensor = self._get(name)
        if tensor.dim() != 1 or tensor.is_floating_point():
            raise SAEError(
                f"{self.path}: {name} is {tensor.dtype} {list(tensor.shape)}, expected a list of "
                f"integers."
            )
        self._taken.add(name)
        return [int(value) for value in tensor.tolist()]

    def ignore(self, *names: str) -> None:
        """Take tensors that do not matter for the function, if they are there."""
        self._taken |= set(names)

    def finish(self) -> None:
        """Refuse tensors that were not taken.

        Raises:
            SAEError: there are some: they may change the function.
        """
        left = sorted(set(self._tensors) - self._taken)
        if left:
            raise SAEError(
                f"{self.path} has tensors that are not known and may change the function: "
                f"{listed(left)}."
            )

    def _get(self, name: str) -> Tensor:
        if name not in self._tensors:
            raise SAEError(f"{self.path} has no tensor {name!r}: it has {listed(self._tensors)}.")
        return self._tensors[name]


def _unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors without the ``_orig_mod.`` or ``module.`` that a compiled or distributed
    module has before all names."""
    for prefix in ("_orig_mod.", "module."):
        if tensors and all(name.startswith(prefix) for name in tensors):
            return _unwrapped(
                {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
            )
    return dict(tensors)


def is_there(directory: Path, name: str) -> bool:
    """Say whether a directory has a file, or the shards of one."""
    return (directory / name).is_file() or bool(_shards(directory / name))


def _shards(path: Path) -> list[Path]:
    """Return ``name-00001-of-00003.safetensors`` and the others of them.

    Raises:
        SAEError: some are missing.
    """
    found = sorted(path.parent.glob(f"{path.stem}-*-of-*{path.suffix}"))
    n = (
        int(found[0].stem.rpartition("-of-")[2])
        if found and found[0].stem.rpartition("-of-")[2].isdecimal()
        else 0
    )
    if len(found) != n:
        raise SAEError(f"{path.parent} has {len(found)} of the {n} shards of {path.name}.")
    return found


def read_tensors(path: Path) -> Taken:
    """Return the tensors of a safetensors file, or of its shards.

    Raises:
        SAEError: no file of weights lies there, or a shard is missing.
    """
    tensors: dict[str, Tensor] = {}
    for file in [path] if path.is_file() else _shards(path) or [path]:
        try:
            tensors |= safetensors.torch.load(read_bytes(file))
        except safetensors.SafetensorError as error:
            raise SAEError(f"{file} is no safetensors file: {error}.") from error
    return Taken(path, tensors)


def state_dict(path: Path, within: str = "") -> Taken:
    """Return the tensors of a state dict that ``torch.save`` wrote, without running what the file
    says.

    ``within``: the only key of the dictionary that holds it, where it does not stand by itself.

    Raises:
        SAEError: the file is no torch file of plain tensors, asks for anything else, or holds more.
    """
    prefix = f"{within}/" if within else ""
    tensors = pickled_tensors(path)
    wrong = sorted(name for name in tensors if not name.startswith(prefix) or not name)
    if wrong:
        expected = f"tensors under {within!r}" if within else "named tensors"
        raise SAEError(f"{path} holds {', '.join(map(repr, wrong[:8]))}, expected only {expected}.")
    return Taken(path, {name.removeprefix(prefix): tensor for name, tensor in tensors.items()})


def unit_rows(taken: Taken, tensors: dict[str, Tensor], by: str) -> dict[str, Tensor]:
    """Return an SAE's tensors with pre-activations times ``‖W_dec[i]‖``, and ``W_dec`` of unit
    rows: the same reconstruction.

    Raises:
        SAEError: a row of zeros has no direction; ``by`` says what divides by it.
    """
    norms = torch.linalg.vector_norm(tensors["W_dec"], dim=1, keepdim=True)
    if not bool((norms > 0).all()):
        raise SAEError(f"{taken.path}: W_dec has rows of zeros, which {by} divides by.")
    W_enc, b_enc = tensors["W_enc"] * norms, tensors["b_enc"] * norms.squeeze(1)
    return {**tensors, "W_enc": W_enc, "b_enc": b_enc, "W_dec": tensors["W_dec"] / norms}
