"""EleutherAI's sparsify, and SAeUron and SAEmnesia, which train with copies of it: ``cfg.json``,
``sae.safetensors``.

sparsify 1.3 (``sparsify/sparse_coder.py``); SAeUron (``SAE/sae.py``) adds ``batch_topk``,
``sample_topk`` and ``input_unit_norm``.
"""

from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from featurestore.errors import SAEError
from featurestore.format.canonical import canonical_json
from sae.formats.foreign import (
    Choice,
    Foreign,
    check_known,
    integer,
    read_fields,
    read_tensors,
    refuse,
)
from sae.model import SAE

CONFIG = "cfg.json"
WEIGHTS = "sae.safetensors"
FILES = (CONFIG, WEIGHTS)

_TRAINING_ONLY = {"expansion_factor", "normalize_decoder", "multi_topk"}
_MATTERS = {"d_in", "num_latents", "k", "activation", "signed", "skip_connection", "transcode"}
_SAEURON = {"batch_topk", "sample_topk", "input_unit_norm"}
_REFUSED = {
    "skip_connection": "an SAE here has no path around its latents (W_skip)",
    "transcode": "it predicts another tensor than it reads",
    "signed": "latents here are not negative",
}


def read(directory: Path, choice: Choice) -> Foreign:
    """Read a checkpoint.

    Raises:
        SAEError: it is malformed, or says what cannot be honoured.
    """
    path = directory / CONFIG
    fields = read_fields(path)
    check_known(path, fields, _TRAINING_ONLY | _MATTERS | _SAEURON)
    d_in, k = integer(path, fields, "d_in"), integer(path, fields, "k")
    for name, why in _REFUSED.items():
        if fields.get(name, False) is not False:
            refuse(path, name, fields[name], why)
    if fields.get("activation", "topk") != "topk":
        refuse(path, "activation", fields["activation"], "only 'topk' is known here")
    threshold = _threshold(path, fields, choice)
    n_latents = (
        integer(path, fields, "num_latents", 0) if fields.get("num_latents") is not None else 0
    )
    n_latents = n_latents or d_in * integer(path, fields, "expansion_factor")
    taken = read_tensors(directory / WEIGHTS)
    tensors = {
        "W_enc": taken.take("encoder.weight", (n_latents, d_in)),
        "b_enc": taken.take("encoder.bias", (n_latents,)),
        "W_dec": taken.take("W_dec", (n_latents, d_in)),
        "b_dec": taken.take("b_dec", (d_in,)),
    }
    taken.finish()
    config: dict[str, Any] = {"d_in": d_in, "n_latents": n_latents, "k": k}
    if fields.get("input_unit_norm"):
        config["normalize_activations"] = "layer_norm"
    if threshold is not None:
        config["architecture"] = "batchtopk"
        tensors["threshold"] = tensors["b_enc"].new_full((n_latents,), threshold)
    name = directory.resolve().name
    uncalibrated = threshold is not None and choice.threshold is None
    return Foreign(config, tensors, hook=name if "." in name else "", uncalibrated=uncalibrated)


def _threshold(path: Path, fields: dict[str, Any], choice: Choice) -> float | None:
    """Return the threshold to serve with; None for TopK."""
    trained = [
        name for name in ("batch_topk", "sample_topk") if fields.get(name, False) is not False
    ]
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
        f"whole {whole}, and holds no "
        f"threshold. Give {give}--architecture topk to serve it with {fields['k']} latents a "
        f"position, as SAeUron's own "
        f"loader does."
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
