"""overcomplete (KempnerInstitute): one file, a bare state dict; version 0.3
(``overcomplete/sae/``).

The file does not say what it is: TopK and BatchTopK have the same tensors, and k and the threshold
are not among them. Only JumpSAE shows, by its ``thresholds``. Encoders other than one linear layer,
and dictionaries other than a matrix of unit rows times ``exp(multiplier)``, have other tensors, or
other rows, and are refused.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featurestore.errors import SAEError
from sae.formats.libraries.foreign import Choice, Foreign, Taken, state_dict

SUFFIXES = (".pt", ".pth")
_LINEAR = ("encoder.final_block.0.weight", "encoder.final_block.0.bias")
_TIEABLE = ("encoder.weight", "encoder.bias")
_DICTIONARY = "dictionary._weights"


def read(path: Path, choice: Choice) -> Foreign:
    """Read a file.

    Raises:
        SAEError: it is malformed, not such an SAE, or ``choice`` does not say what it is.
    """
    taken = state_dict(path)
    n_latents, d_in = taken.shape(_DICTIONARY, 2)
    weight, bias = _TIEABLE if _TIEABLE[0] in taken else _LINEAR
    tensors = {
        "W_enc": taken.take(weight, (n_latents, d_in)),
        "b_enc": torch.zeros(n_latents),
        "W_dec": _dictionary(taken, n_latents, d_in),
        "b_dec": torch.zeros(d_in),
    }
    if bias in taken or bias in _LINEAR:
        tensors["b_enc"] = taken.take(bias, (n_latents,))
    config: dict[str, Any] = {"d_in": d_in, "n_latents": n_latents, "k": 0}
    if "thresholds" in taken:
        tensors["threshold"] = _inclusive(taken.take("thresholds", (n_latents,)).exp())
        config["architecture"] = "jumprelu"
    elif choice.architecture == "relu":
        tensors["threshold"] = torch.zeros(n_latents)
        config["architecture"] = "jumprelu"
    elif choice.threshold is not None:
        tensors["threshold"] = _inclusive(torch.full((n_latents,), choice.threshold))
        config["architecture"] = "batchtopk"
    elif choice.k is not None:
        config["k"] = choice.k
        if choice.calibrate:
            tensors["threshold"] = torch.zeros(n_latents)
            config["architecture"] = "batchtopk"
    else:
        raise SAEError(
            f"{path} does not say whether it is a TopK or a BatchTopK SAE: give --k (its top_k) "
            f"for TopK; for BatchTopK --threshold (its running_threshold), or --calibrate and --k "
            f"(latents per position); --architecture relu if it is neither but a plain SAE."
        )
    taken.finish()
    uncalibrated = config.get("architecture") == "batchtopk" and choice.threshold is None
    return Foreign(config, tensors, uncalibrated=uncalibrated)


def _dictionary(taken: Taken, n_latents: int, d_in: int) -> Tensor:
    """Return the dictionary as evaluation uses it."""
    rows = taken.take(_DICTIONARY, (n_latents, d_in))
    norms = torch.linalg.vector_norm(rows, dim=1)
    if not bool(((norms - 1).abs() < 1e-5).all()):
        raise SAEError(
            f"{taken.path}: rows of {_DICTIONARY} have norms {float(norms.min()):.4g} to "
            f"{float(norms.max()):.4g}, expected 1: the file does not say how they are normalised. "
            f"Only 'l2' is known here: call eval() before saving."
        )
    multiplier = taken.number("dictionary.multiplier") if "dictionary.multiplier" in taken else 0.0
    return rows * torch.tensor(multiplier).exp()


def _inclusive(threshold: Tensor) -> Tensor:
    """Return thresholds that are exceeded by what reaches these: overcomplete keeps ``a ≥ θ``, this
    project ``a > θ``."""
    return torch.nextafter(threshold, torch.full_like(threshold, -torch.inf))
