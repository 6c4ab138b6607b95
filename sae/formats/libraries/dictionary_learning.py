"""dictionary_learning (saprmarks): ``config.json`` with ``trainer``, ``ae.pt`` with a state dict;
version 0.1."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch

from featurestore.errors import SAEError
from sae.formats.libraries.config import (
    D_IN,
    LATENTS,
    OBJECT,
    WORD,
    or_null,
    parse,
    read_fields,
    refuse,
    required,
)
from sae.formats.libraries.foreign import Choice, Foreign, Taken, state_dict, unit_rows

CONFIG = "config.json"
WEIGHTS = "ae.pt"
FILES = (CONFIG, WEIGHTS)

_IO = {"in": "input", "out": "output"}


@dataclass(frozen=True, kw_only=True)
class _Config:
    """The two parts of a configuration."""

    trainer: Annotated[dict[str, Any], OBJECT]
    buffer: Annotated[dict[str, Any] | None, or_null(OBJECT)] = None


@dataclass(frozen=True, kw_only=True)
class _Class:
    """What says which of the fields of ``trainer`` count."""

    dict_class: Annotated[str, WORD]


@dataclass(frozen=True, kw_only=True)
class _Trainer:
    """What of ``trainer`` makes the function; how it was trained stands beside it."""

    activation_dim: Annotated[int, D_IN]
    dict_size: Annotated[int, LATENTS]
    k: Annotated[int | None, or_null(LATENTS)] = None
    submodule_name: Annotated[str | None, or_null(WORD)] = None

    @property
    def sizes(self) -> dict[str, Any]:
        """Return the sizes as fields of this project's configuration; k is 0 until it is known."""
        return {"d_in": self.activation_dim, "n_latents": self.dict_size, "k": 0}


@dataclass(frozen=True, kw_only=True)
class _Buffer:
    """What of ``buffer`` says which tensor it was trained on."""

    io: Annotated[str, WORD] = "out"


def read(directory: Path, choice: Choice) -> Foreign:
    """Read a checkpoint.

    Raises:
        SAEError: it is malformed, or says what cannot be honoured.
    """
    path = directory / CONFIG
    fields = read_fields(path)
    if not isinstance(fields.get("trainer"), dict):
        raise SAEError(f"{path} has no trainer: it is no configuration of dictionary_learning.")
    said = parse(path, fields, _Config, None)
    kind = parse(path, said.trainer, _Class, None).dict_class
    if kind in _OTHER:
        refuse(path, "dict_class", kind, _OTHER[kind])
    if kind not in _READERS:
        refuse(path, "dict_class", kind, f"only {', '.join(_READERS)} are known here")
    trainer = parse(path, said.trainer, _Trainer, None)
    side = parse(path, said.buffer or {}, _Buffer, None).io
    if side not in _IO:
        refuse(path, "io", side, "it predicts another tensor than it reads")
    taken = state_dict(directory / WEIGHTS)
    found = _READERS[kind](trainer, taken, choice)
    taken.finish()
    return found._replace(hook=trainer.submodule_name or "", io=_IO[side] if said.buffer else "")


def _linear(taken: Taken, trainer: _Trainer, bias: str) -> dict[str, torch.Tensor]:
    d_in, n_latents = trainer.activation_dim, trainer.dict_size
    return {
        "W_enc": taken.take("encoder.weight", (n_latents, d_in)),
        "b_enc": taken.take("encoder.bias", (n_latents,)),
        "W_dec": taken.take("decoder.weight", (d_in, n_latents)).T,
        "b_dec": taken.take(bias, (d_in,)),
    }


def _matrices(taken: Taken, trainer: _Trainer) -> dict[str, torch.Tensor]:
    d_in, n_latents = trainer.activation_dim, trainer.dict_size
    return {
        "W_enc": taken.take("W_enc", (d_in, n_latents)).T,
        "b_enc": taken.take("b_enc", (n_latents,)),
        "W_dec": taken.take("W_dec", (n_latents, d_in)),
        "b_dec": taken.take("b_dec", (d_in,)),
    }


def _k(trainer: _Trainer, taken: Taken) -> int:
    path = taken.path.parent / CONFIG
    k = required(path, "k", trainer.k)
    if "k" in taken and taken.number("k") != k:
        raise SAEError(f"{path} has k = {k}, {taken.path} has k = {taken.number('k'):g}.")
    return k


def _standard(trainer: _Trainer, taken: Taken, choice: Choice) -> Foreign:
    """``ReLU``: a threshold of 0. With unit rows in the decoder, as the library's
    ``load_dictionary`` gives them."""
    tensors = unit_rows(taken, _linear(taken, trainer, "bias"), "its own loader")
    tensors["threshold"] = torch.zeros(trainer.dict_size)
    return Foreign(trainer.sizes | {"architecture": "jumprelu"}, tensors)


def _topk(trainer: _Trainer, taken: Taken, choice: Choice) -> Foreign:
    """TopK; the threshold in the file is not used unless one asks for it."""
    taken.ignore("threshold")
    tensors = _linear(taken, trainer, "b_dec")
    return Foreign(trainer.sizes | {"k": _k(trainer, taken)}, tensors)


def _batchtopk(trainer: _Trainer, taken: Taken, choice: Choice) -> Foreign:
    tensors = _linear(taken, trainer, "b_dec")
    config = trainer.sizes | {"k": _k(trainer, taken), "architecture": "batchtopk"}
    return _with_threshold(Foreign(config, tensors), taken, choice)


def _matryoshka(trainer: _Trainer, taken: Taken, choice: Choice) -> Foreign:
    tensors = _matrices(taken, trainer)
    config = trainer.sizes | {"k": _k(trainer, taken), "architecture": "matryoshka_batchtopk"}
    config["group_sizes"] = tuple(taken.integers("group_sizes"))
    return _with_threshold(Foreign(config, tensors), taken, choice)


def _jumprelu(trainer: _Trainer, taken: Taken, choice: Choice) -> Foreign:
    """A threshold per latent; this library's JumpReLU does not subtract ``b_dec`` from its
    input."""
    tensors = _matrices(taken, trainer)
    tensors["threshold"] = taken.take("threshold", (trainer.dict_size,))
    config = trainer.sizes | {"architecture": "jumprelu", "apply_b_dec_to_input": False}
    return Foreign(config, tensors)


def _with_threshold(found: Foreign, taken: Taken, choice: Choice) -> Foreign:
    """Add the one threshold of a file, or what was asked for in its place."""
    threshold = taken.number("threshold") if "threshold" in taken else None
    if choice.architecture == "topk":
        fields = {key: value for key, value in found.fields.items() if key != "group_sizes"}
        return found._replace(fields=fields | {"architecture": "topk"})
    if threshold is None or threshold < 0:
        if choice.threshold is None and not choice.calibrate:
            says = "no threshold" if threshold is None else f"threshold = {threshold:g}"
            raise SAEError(
                f"{taken.path} has {says}: it was never calibrated. Give --calibrate to do so on "
                f"the store's activations, --threshold, or --architecture topk to serve it with "
                f"{found.fields['k']} latents per position."
            )
        found, threshold = (
            found._replace(uncalibrated=choice.threshold is None),
            choice.threshold or 0.0,
        )
    elif choice.threshold is not None and not math.isclose(
        choice.threshold, threshold, rel_tol=1e-6
    ):
        given = f"--threshold {choice.threshold:g}"
        raise SAEError(
            f"{taken.path} has threshold = {threshold:g}: {given} would be another function."
        )
    return found._replace(
        tensors=found.tensors | {"threshold": torch.full((found.fields["n_latents"],), threshold)}
    )


_READERS = {
    "AutoEncoder": _standard,
    "AutoEncoderTopK": _topk,
    "BatchTopKSAE": _batchtopk,
    "MatryoshkaBatchTopKSAE": _matryoshka,
    "JumpReluAutoEncoder": _jumprelu,
}
_OTHER = {
    "GatedAutoEncoder": "a gate of its own decides which latents fire: two encoders, where an SAE "
    "here has one",
    "CrossCoder": "it reads several layers at once",
}
"""classes that are another function than any SAE here"""
