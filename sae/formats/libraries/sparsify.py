"""EleutherAI's sparsify, and SAeUron and SAEmnesia, which train with copies of it: ``cfg.json``,
``sae.safetensors``.

sparsify 1.3 (``sparsify/sparse_coder.py``); SAeUron (``SAE/sae.py``) adds ``batch_topk``,
``sample_topk`` and ``input_unit_norm``.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import safetensors.torch
from torch import Tensor

from featurestore.errors import SAEError
from featurestore.format.canonical import canonical_json
from sae.formats.libraries.config import (
    D_IN,
    LATENTS,
    MAX_LATENTS,
    WORD,
    YES_NO,
    or_null,
    parse,
    read_fields,
    refuse,
    size,
)
from sae.formats.libraries.foreign import Choice, Foreign, read_tensors
from sae.model import SAE

CONFIG = "cfg.json"
WEIGHTS = "sae.safetensors"
FILES = (CONFIG, WEIGHTS)

_TRAINING_ONLY = {"expansion_factor", "normalize_decoder", "multi_topk"}
_REFUSED = {
    "skip_connection": "an SAE here has no path around its latents (W_skip)",
    "transcode": "it predicts another tensor than it reads",
    "signed": "latents here are not negative",
}


@dataclass(frozen=True, kw_only=True)
class _Config:
    """What of a configuration makes the function; the last three are SAeUron's."""

    d_in: Annotated[int, D_IN]
    k: Annotated[int, LATENTS]
    num_latents: Annotated[int | None, or_null(size(MAX_LATENTS, 0))] = None
    activation: Annotated[str, WORD] = "topk"
    signed: Annotated[bool, YES_NO] = False
    skip_connection: Annotated[bool, YES_NO] = False
    transcode: Annotated[bool, YES_NO] = False
    batch_topk: Annotated[bool, YES_NO] = False
    sample_topk: Annotated[bool, YES_NO] = False
    input_unit_norm: Annotated[bool, YES_NO] = False

    def n_latents(self, path: Path, fields: dict[str, Any]) -> int:
        """Return the number of latents; where it is not given, it follows from the expansion."""
        if self.num_latents:
            return self.num_latents
        return self.d_in * parse(path, fields, _Expansion, None).expansion_factor


@dataclass(frozen=True, kw_only=True)
class _Expansion:
    """What counts where ``num_latents`` is absent, null or 0."""

    expansion_factor: Annotated[int, size(2**10)]


def read(directory: Path, choice: Choice) -> Foreign:
    """Read a checkpoint.

    Raises:
        SAEError: it is malformed, or says what cannot be honoured.
    """
    path = directory / CONFIG
    fields = read_fields(path)
    said = parse(path, fields, _Config, _TRAINING_ONLY)
    for name, why in _REFUSED.items():
        if getattr(said, name):
            refuse(path, name, True, why)
    if said.activation != "topk":
        refuse(path, "activation", said.activation, "only 'topk' is known here")
    threshold = _threshold(path, said, choice)
    d_in, n_latents = said.d_in, said.n_latents(path, fields)
    taken = read_tensors(directory / WEIGHTS)
    tensors = {
        "W_enc": taken.take("encoder.weight", (n_latents, d_in)),
        "b_enc": taken.take("encoder.bias", (n_latents,)),
        "W_dec": taken.take("W_dec", (n_latents, d_in)),
        "b_dec": taken.take("b_dec", (d_in,)),
    }
    taken.finish()
    config: dict[str, Any] = {"d_in": d_in, "n_latents": n_latents, "k": said.k}
    if said.input_unit_norm:
        config["normalize_activations"] = "layer_norm"
    if threshold is not None:
        config["architecture"] = "batchtopk"
        tensors["threshold"] = tensors["b_enc"].new_full((n_latents,), threshold)
    name = directory.resolve().name
    uncalibrated = threshold is not None and choice.threshold is None
    return Foreign(config, tensors, hook=name if "." in name else "", uncalibrated=uncalibrated)


def _threshold(path: Path, said: _Config, choice: Choice) -> float | None:
    """Return the threshold to serve with; None for TopK."""
    trained = [name for name in ("batch_topk", "sample_topk") if getattr(said, name)]
    if not trained or choice.architecture == "topk":
        return None
    if trained == ["batch_topk"] and (choice.threshold is not None or choice.calibrate):
        return choice.threshold or 0.0
    whole, give = "sample", ""
    if trained == ["batch_topk"]:
        whole = "batch"
        give = (
            "--calibrate to find it on the store's activations, --threshold with the smallest "
            "that training kept, or "
        )
    raise SAEError(
        f"{path} has {trained[0]} = true: it was trained to keep the largest activations of a "
        f"whole {whole}, and holds no threshold. Give {give}--architecture topk to serve it with "
        f"{said.k} latents a position, as SAeUron's own loader does."
    )


def write(sae: SAE) -> dict[str, bytes]:
    """Return the files of an SAE in sparsify's format.

    Raises:
        SAEError: the SAE is what sparsify cannot express.
    """
    config = sae.config
    for name, only in (
        ("architecture", "topk"),
        ("normalize_activations", "none"),
        ("apply_b_dec_to_input", True),
    ):
        if getattr(config, name) != only:
            found = getattr(config, name)
            raise SAEError(f"sparsify's format cannot express {name} = {found!r}, only {only!r}.")
    if config.io == "difference":
        raise SAEError(
            "sparsify's format cannot say that an SAE was trained on the difference of output and "
            "input."
        )
    fields = {
        "activation": "topk",
        "expansion_factor": max(1, config.n_latents // config.d_in),
        "normalize_decoder": True,
        "num_latents": config.n_latents,
        "k": config.k,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": config.d_in,
    }
    named = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "W_dec", "b_dec": "b_dec"}
    tensors: dict[str, Tensor] = {
        named[key]: tensor.detach().cpu() for key, tensor in sae.named_parameters()
    }
    return {
        CONFIG: (canonical_json(fields) + "\n").encode(),
        WEIGHTS: safetensors.torch.save(tensors, {"format": "pt"}),
    }
