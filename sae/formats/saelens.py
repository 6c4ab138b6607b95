"""SAELens 6: ``cfg.json``, ``sae_weights.safetensors`` (``sae_lens/saes/``, version 6.54)."""

from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from featurestore.errors import SAEError
from featurestore.format.canonical import canonical_json
from sae.formats.foreign import Choice, Foreign, Taken, check_known, integer, read_fields, read_tensors, refuse
from sae.model import NORMALIZATIONS, SAE

CONFIG = "cfg.json"
WEIGHTS = "sae_weights.safetensors"
FILES = (CONFIG, WEIGHTS)

_COMMON = {"d_in", "d_sae", "dtype", "device", "apply_b_dec_to_input", "normalize_activations", "reshape_activations"}
_FIELDS = {
    "standard": _COMMON,
    "jumprelu": _COMMON,
    "topk": _COMMON | {"k", "rescale_acts_by_decoder_norm"},
}
_TRAINING = {"batchtopk", "matryoshka_batchtopk"}
_VERSION = "6.0.0"
"""of the format that :func:`write` writes: SAELens reads files without a version as older than 6"""


def read(directory: Path, choice: Choice) -> Foreign:
    """Read a checkpoint.

    Raises:
        SAEError: it is malformed, or says what cannot be honoured.
    """
    path = directory / CONFIG
    fields = read_fields(path)
    architecture, metadata = fields.get("architecture"), fields.get("metadata")
    if not isinstance(metadata, dict):
        raise SAEError(f"{path} has no metadata: it is older than SAELens 6. Load it with SAELens 6 and save it again.")
    if architecture in _TRAINING:
        refuse(path, "architecture", architecture, "it is a training state: save it with save_inference_model()")
    if architecture not in _FIELDS:
        refuse(path, "architecture", architecture, f"only {', '.join(_FIELDS)} are known here")
    check_known(path, fields, _FIELDS[architecture] | {"architecture", "metadata"})
    d_in, n_latents = integer(path, fields, "d_in"), integer(path, fields, "d_sae")
    config = {"d_in": d_in, "n_latents": n_latents, **_input(path, fields)}
    taken = read_tensors(directory / WEIGHTS)
    tensors = {
        "W_enc": taken.take("W_enc", (d_in, n_latents)).T,
        "b_enc": taken.take("b_enc", (n_latents,)),
        "W_dec": taken.take("W_dec", (n_latents, d_in)),
        "b_dec": taken.take("b_dec", (d_in,)),
    }
    if architecture == "topk":
        config["k"] = integer(path, fields, "k")
        if fields.get("rescale_acts_by_decoder_norm", False) is not False:
            tensors = _rescaled(taken, tensors)
    else:
        # A standard SAE is a ReLU: a threshold of 0.
        threshold = taken.take("threshold", (n_latents,)) if architecture == "jumprelu" else torch.zeros(n_latents)
        tensors["threshold"] = threshold
        config |= {"k": 0, "architecture": "jumprelu"}
    taken.finish()
    hook, io = metadata.get("hook_name") or "", metadata.get("io") or ""
    return Foreign(config, tensors, str(hook), str(io))


def _input(path: Path, fields: dict[str, Any]) -> dict[str, Any]:
    """Return what the configuration says of inputs."""
    normalize = fields.get("normalize_activations", "none")
    if normalize not in NORMALIZATIONS:
        why = f"only {', '.join(NORMALIZATIONS)} are known here"
        if normalize in ("expected_average_only_in", "covariance_whitening"):
            why = "the factors that inputs were multiplied by in training are not in the file: fold them in SAELens"
        refuse(path, "normalize_activations", normalize, why)
    reshape = fields.get("reshape_activations", "none")
    if reshape != "none":
        refuse(path, "reshape_activations", reshape, "activations here are positions by channels")
    apply_b_dec = fields.get("apply_b_dec_to_input", True)
    if type(apply_b_dec) is not bool:
        refuse(path, "apply_b_dec_to_input", apply_b_dec, "expected true or false")
    return {"normalize_activations": normalize, "apply_b_dec_to_input": apply_b_dec}


def _rescaled(taken: Taken, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Fold ``rescale_acts_by_decoder_norm`` in: pre-activations times ``‖W_dec[i]‖``, decoded with unit rows."""
    norms = torch.linalg.vector_norm(tensors["W_dec"], dim=1, keepdim=True)
    if not bool((norms > 0).all()):
        raise SAEError(f"{taken.path}: W_dec has rows of zeros, which rescale_acts_by_decoder_norm divides by.")
    W_enc, b_enc = tensors["W_enc"] * norms, tensors["b_enc"] * norms.squeeze(1)
    return {**tensors, "W_enc": W_enc, "b_enc": b_enc, "W_dec": tensors["W_dec"] / norms}


def write(sae: SAE) -> dict[str, bytes]:
    """Return the files of an SAE in SAELens's format; SAEs with a threshold as ``jumprelu``."""
    config = sae.config
    topk = config.architecture == "topk"
    fields: dict[str, Any] = {
        "architecture": "topk" if topk else "jumprelu",
        "d_in": config.d_in,
        "d_sae": config.n_latents,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": config.apply_b_dec_to_input,
        "normalize_activations": config.normalize_activations,
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": _VERSION, "hook_name": config.hook, "io": config.io},
    }
    if topk:
        fields |= {"k": config.k, "rescale_acts_by_decoder_norm": False}
    tensors = {name: tensor.detach().to("cpu", torch.float32) for name, tensor in sae.named_parameters()}
    tensors["W_enc"] = tensors["W_enc"].T.contiguous()
    return {
        CONFIG: (canonical_json(fields) + "\n").encode(),
        WEIGHTS: safetensors.torch.save(tensors, {"format": "pt"}),
    }
