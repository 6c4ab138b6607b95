"""SAELens: ``cfg.json``, ``sae_weights.safetensors`` (``sae_lens/saes/``, version 6.54; and the
versions before 6)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import safetensors.torch
import torch

from featurestore.errors import SAEError
from featurestore.format.canonical import canonical_json
from sae.formats.libraries.config import (
    D_IN,
    LATENTS,
    OBJECT,
    WORD,
    YES_NO,
    check_known,
    or_null,
    parse,
    read_fields,
    refuse,
    required,
)
from sae.formats.libraries.foreign import Choice, Foreign, read_tensors, unit_rows
from sae.model import NORMALIZATIONS, SAE

CONFIG = "cfg.json"
WEIGHTS = "sae_weights.safetensors"
FILES = (CONFIG, WEIGHTS)

_COMMON = {
    "d_in",
    "d_sae",
    "dtype",
    "device",
    "apply_b_dec_to_input",
    "normalize_activations",
    "reshape_activations",
}
_FIELDS = {
    "standard": _COMMON,
    "jumprelu": _COMMON,
    "topk": _COMMON | {"k", "rescale_acts_by_decoder_norm"},
}
_BEFORE_6 = {
    "architecture", "activation_fn_str", "activation_fn_kwargs", "finetuning_scaling_factor",
    "hook_name", "hook_head_index",
}  # fmt: skip
_ELSEWHERE = {
    "model_name", "hook_layer", "prepend_bos", "dataset_path", "dataset_trust_remote_code",
    "context_size", "sae_lens_training_version", "sae_lens_version", "neuronpedia_id",
    "model_from_pretrained_kwargs", "seqpos_slice", "seqpos", "from_pretrained_path", "hook_point",
    "hook_point_layer", "d_head",
}  # fmt: skip
"""what an older configuration says of data and model: it does not change the function"""
_TRANSCODER = "it predicts another tensor than it reads"
_OTHER = {
    "gated": "a gate of its own decides which latents fire: two encoders, where an SAE here has "
    "one",
    "transcoder": _TRANSCODER,
    "skip_transcoder": _TRANSCODER,
    "jumprelu_transcoder": _TRANSCODER,
    "jumprelu_skip_transcoder": _TRANSCODER,
    "temporal": "it reads several positions at once",
}
"""architectures that are another function than any SAE here"""
_TRAINING = ("batchtopk", "matryoshka_batchtopk")
_TRAINING_STATE = "it is a training state: save it with save_inference_model()"
_VERSION = "6.0.0"
"""of the format that :func:`write` writes: SAELens reads files without a version as older than 6"""


@dataclass(frozen=True, kw_only=True)
class _Architecture:
    """What says which fields there may be."""

    architecture: Annotated[str, WORD]


@dataclass(frozen=True, kw_only=True)
class _Config:
    """What of a configuration of version 6 makes the function."""

    d_in: Annotated[int, D_IN]
    d_sae: Annotated[int, LATENTS]
    k: Annotated[int | None, LATENTS] = None
    rescale_acts_by_decoder_norm: Annotated[bool, YES_NO] = False
    apply_b_dec_to_input: Annotated[bool, YES_NO] = True
    normalize_activations: Annotated[str, WORD] = "none"
    reshape_activations: Annotated[str, WORD] = "none"
    finetuning_scaling_factor: Annotated[bool, YES_NO] = False


@dataclass(frozen=True, kw_only=True)
class _Metadata:
    """What of ``metadata`` says where it belongs."""

    hook_name: Annotated[str | None, or_null(WORD)] = None
    io: Annotated[str | None, or_null(WORD)] = None


@dataclass(frozen=True, kw_only=True)
class _Before6:
    """What an older configuration says in words of its own."""

    architecture: Annotated[str, WORD] = "standard"
    activation_fn_str: Annotated[str, WORD] = "relu"
    activation_fn_kwargs: Annotated[dict[str, Any] | None, or_null(OBJECT)] = None
    hook_name: Annotated[str | None, or_null(WORD)] = None


def read(directory: Path, choice: Choice) -> Foreign:
    """Read a checkpoint.

    Raises:
        SAEError: it is malformed, or says what cannot be honoured.
    """
    path = directory / CONFIG
    fields = read_fields(path)
    metadata, known = fields.get("metadata"), {"architecture", "metadata"}
    if not isinstance(metadata, dict):
        known |= {"finetuning_scaling_factor"}
        fields, metadata = _as_version_6(path, fields)
    architecture = parse(path, fields, _Architecture, None).architecture
    if architecture in (*_OTHER, *_TRAINING):
        refuse(path, "architecture", architecture, _OTHER.get(architecture, _TRAINING_STATE))
    if architecture not in _FIELDS:
        refuse(path, "architecture", architecture, f"only {', '.join(_FIELDS)} are known here")
    check_known(path, fields, _FIELDS[architecture] | known)
    said, place = parse(path, fields, _Config, None), parse(path, metadata, _Metadata, None)
    d_in, n_latents = said.d_in, said.d_sae
    config = {"d_in": d_in, "n_latents": n_latents, **_input(path, said)}
    taken = read_tensors(directory / WEIGHTS)
    tensors = {
        "W_enc": taken.take("W_enc", (d_in, n_latents)).T,
        "b_enc": taken.take("b_enc", (n_latents,)),
        "W_dec": taken.take("W_dec", (n_latents, d_in)),
        "b_dec": taken.take("b_dec", (d_in,)),
    }
    if architecture == "topk":
        config["k"] = required(path, "k", said.k)
        if said.rescale_acts_by_decoder_norm:
            tensors = unit_rows(taken, tensors, "rescale_acts_by_decoder_norm")
    else:
        # A standard SAE is a ReLU: a threshold of 0.
        threshold = (
            taken.take("threshold", (n_latents,))
            if architecture == "jumprelu"
            else torch.zeros(n_latents)
        )
        tensors["threshold"] = threshold
        config |= {"k": 0, "architecture": "jumprelu"}
    if said.finetuning_scaling_factor:
        factor = taken.take("scaling_factor", (n_latents,))
        # Of the decoder alone: what fires stays.
        tensors["W_dec"] = tensors["W_dec"] * factor[:, None]
    elif "scaling_factor" in taken:
        taken.ignore("scaling_factor")  # Version 5 keeps ones where it is not used.
    taken.finish()
    return Foreign(config, tensors, place.hook_name or "", place.io or "")


def _as_version_6(path: Path, fields: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what version 6 would say of an older configuration, and its metadata
    (``sae_lens/sae.py``, version 5).

    Raises:
        SAEError: it says what cannot be honoured.
    """
    if "d_sae" not in fields:
        raise SAEError(f"{path} has neither metadata nor d_sae: it is no configuration of SAELens.")
    check_known(path, fields, _COMMON | _BEFORE_6 | _ELSEWHERE)
    told = parse(path, fields, _Before6, None)
    activation, architecture = told.activation_fn_str, told.architecture
    if activation not in ("relu", "topk") or (activation == "topk" and architecture != "standard"):
        refuse(
            path,
            "activation_fn_str",
            activation,
            "only 'relu', and 'topk' of a standard SAE, are known here",
        )
    if fields.get("hook_head_index") is not None:
        refuse(
            path,
            "hook_head_index",
            fields["hook_head_index"],
            "activations here are positions by channels",
        )
    said = {
        name: fields[name] for name in (*_COMMON, "finetuning_scaling_factor") if name in fields
    }
    if activation == "topk":
        architecture, said = "topk", said | {"k": (told.activation_fn_kwargs or {}).get("k")}
    return said | {"architecture": architecture, "metadata": {}}, {"hook_name": told.hook_name}


def _input(path: Path, said: _Config) -> dict[str, Any]:
    """Return what the configuration says of inputs."""
    normalize = said.normalize_activations
    if normalize not in NORMALIZATIONS:
        why = f"only {', '.join(NORMALIZATIONS)} are known here"
        if normalize in ("expected_average_only_in", "covariance_whitening"):
            why = (
                "the factors that inputs were multiplied by in training are not in the file: "
                "fold them in SAELens"
            )
        refuse(path, "normalize_activations", normalize, why)
    if said.reshape_activations != "none":
        why = "activations here are positions by channels"
        refuse(path, "reshape_activations", said.reshape_activations, why)
    return {
        "normalize_activations": normalize,
        "apply_b_dec_to_input": said.apply_b_dec_to_input,
    }


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
    tensors = {
        name: tensor.detach().to("cpu", torch.float32) for name, tensor in sae.named_parameters()
    }
    tensors["W_enc"] = tensors["W_enc"].T.contiguous()
    return {
        CONFIG: (canonical_json(fields) + "\n").encode(),
        WEIGHTS: safetensors.torch.save(tensors, {"format": "pt"}),
    }
