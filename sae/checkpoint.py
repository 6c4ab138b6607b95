"""SAEs as files: ``config.json`` and ``sae.safetensors``, never a pickle."""

import dataclasses
import hashlib
import weakref
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from featurestore.errors import DamageError, NotAStoreError, SAEError, SelectionError
from featurestore.format import durable
from featurestore.format.canonical import canonical_json, sha256_text
from featurestore.format.gate import MalformedError, parse_json
from featurestore.saes import load_config, sae_files_hash, sae_hash, sae_record, weights_path
from featurestore.selection import Selection
from featurestore.store import Store
from sae.model import SAE, SAEConfig
from sae.variants import VARIANTS

CONFIG = "config.json"
METRICS = "metrics.json"
WEIGHTS = "sae.safetensors"
OPTIONAL = {
    "group_sizes": (),
    "normalize_activations": "none",
    "apply_b_dec_to_input": True,
    "initialisation": "",
}
"""fields of ``config.json`` that an SAE need not have, and what their absence means"""


def config_bytes(config: SAEConfig) -> bytes:
    """Return ``config.json``: canonical JSON and a newline; optional fields are left out where they
    say nothing."""
    fields = dataclasses.asdict(config)
    said = {
        key: value for key, value in fields.items() if key not in OPTIONAL or value != OPTIONAL[key]
    }
    return (canonical_json(said) + "\n").encode()


def weights_bytes(sae: SAE) -> bytes:
    """Return ``sae.safetensors``: the parameters under their names, in the precision that they
    have."""
    return safetensors.torch.save(
        {name: tensor.detach().cpu().contiguous() for name, tensor in sae.named_parameters()}
    )


def save_sae(sae: SAE, directory: Path) -> tuple[durable.Written, durable.Written]:
    """Write an SAE's two files into a directory; return what was written of ``config.json`` and
    ``sae.safetensors``."""
    config = durable.write_bytes(directory / CONFIG, config_bytes(sae.config))
    return config, durable.write_bytes(directory / WEIGHTS, weights_bytes(sae))


def load_sae(
    directory: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> SAE:
    """Load the SAE whose ``config.json`` and ``sae.safetensors`` lie in a directory.

    Its weights need no gradient until asked to.

    Raises:
        SAEError: a file cannot be read, or is not what an SAE of this project has.
    """
    path = Path(directory) / WEIGHTS
    sae = _made(_read_json(Path(directory) / CONFIG), path, _read(path), device=device, dtype=dtype)
    _origins[sae] = sae_files_hash(Path(directory)), _versions(sae)
    return sae


def store_sae(
    store: Store, name: str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> SAE:
    """Load an SAE of a store by its name, checked against its commit record.

    Its weights need no gradient until asked to.

    Raises:
        SAEError: the store has no such SAE, or it is malformed.
        DamageError: a file is not the recorded one.
    """
    fields, path = load_config(store, name), weights_path(store, name)
    data = _read(path)
    _check_recorded(store, name, path, data)
    sae = _made(fields, path, data, device=device, dtype=dtype)
    _origins[sae] = sae_hash(sae_record(store, name)), _versions(sae)
    return sae


def sae_identity(sae: SAE) -> str:
    """Return the hash of the files that an SAE was loaded from; if it was not, or was changed
    since, of those it would have."""
    origin = _origins.get(sae)
    if origin is not None and origin[1] == _versions(sae):
        return origin[0]
    digests = (
        hashlib.sha256(data).hexdigest() for data in (config_bytes(sae.config), weights_bytes(sae))
    )
    return sha256_text("".join(digests))


def _versions(sae: SAE) -> list[int]:
    """Return how often each weight was changed in place."""
    return [parameter._version for parameter in sae.parameters()]


_origins: "weakref.WeakKeyDictionary[SAE, tuple[str, list[int]]]" = weakref.WeakKeyDictionary()


def _made(
    fields: dict[str, Any],
    path: Path,
    data: bytes,
    *,
    device: str | torch.device,
    dtype: torch.dtype,
) -> SAE:
    tensors = _tensors(path, data)
    config = parse_config(fields, path.parent / CONFIG)
    check_tensors(path, config, tensors)
    with torch.device("meta"):
        sae = SAE(config)
    sae.load_state_dict(
        {key: tensor.to(device, dtype, copy=True) for key, tensor in tensors.items()}, assign=True
    )
    return sae.requires_grad_(False)


def load_selection_sae(selection: Selection, device: str | torch.device = "cpu") -> SAE:
    """Load the SAE that a selection was made with from the store that it names.

    Raises:
        SelectionError: there is no such store, or its SAE of that name is another one.
    """
    try:
        store = Store.open(selection.store)
    except NotAStoreError as error:
        raise SelectionError(
            f"the selection {selection.family}={selection.concept} needs SAE {selection.sae!r} of "
            f"the store {selection.store}, where there is no store: put it there, or give the "
            f"SAE's directory."
        ) from error
    found = sae_hash(sae_record(store, selection.sae))
    if found != selection.sae_hash:
        raise SelectionError(
            f"the selection {selection.family}={selection.concept} was made with SAE "
            f"{selection.sae!r} ({selection.sae_hash[:12]}…), that of {store.root} is another "
            f"({found[:12]}…)."
        )
    return store_sae(store, selection.sae, device)


def parse_config(fields: dict[str, Any], path: Path) -> SAEConfig:
    """Return the configuration that JSON fields hold; ``path`` is where they come from.

    Raises:
        SAEError: a field is missing, unknown or of another type.
    """
    kinds = {field.name: field.type for field in dataclasses.fields(SAEConfig)} | {
        "group_sizes": list
    }
    unknown = sorted(set(fields) - set(kinds))
    missing = sorted({"d_in", "n_latents", "k"} - set(fields))
    if unknown or missing:
        raise SAEError(f"{path}: fields missing: {missing}; fields unknown: {unknown}.")
    for name, value in fields.items():
        if type(value) is not kinds[name]:
            raise SAEError(
                f"{path}: {name} is {value!r}, expected "
                f"{getattr(kinds[name], '__name__', kinds[name])}."
            )
    groups = tuple(fields.get("group_sizes", ()))
    if any(type(size) is not int for size in groups):
        raise SAEError(f"{path}: group_sizes is {list(groups)!r}, expected a list of int.")
    return SAEConfig(**fields | {"group_sizes": groups})


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SAEError(f"{path} cannot be read: {error.strerror}.") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        fields = parse_json(_read(path))
    except MalformedError as error:
        raise SAEError(f"{path} is no JSON: {error}.") from error
    if not isinstance(fields, dict):
        raise SAEError(f"{path} holds {type(fields).__name__}, expected an object.")
    return fields


def _check_recorded(store: Store, name: str, path: Path, data: bytes) -> None:
    record = store.record("saes", name)
    assert record is not None, "load_config has found it"
    (expected,) = (entry.sha256 for entry in record.files if entry.path.endswith(f"/{WEIGHTS}"))
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        raise DamageError(
            f"{path} was changed: its SHA-256 is {found[:12]}…, its record says {expected[:12]}…: "
            f"run 'featurestore verify {store.root}'."
        )


def _tensors(path: Path, data: bytes) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise SAEError(f"{path} is no safetensors file: {error}.") from error


def check_tensors(path: Path, config: SAEConfig, tensors: dict[str, Tensor]) -> None:
    """Refuse tensors that are not those of an SAE of that configuration; ``path`` is where they
    come from.

    Raises:
        SAEError: a tensor is missing, unknown, of another shape or kind, or not finite.
    """
    matrix = [config.n_latents, config.d_in]
    expected = {"W_enc": matrix, "b_enc": matrix[:1], "W_dec": matrix, "b_dec": matrix[1:]}
    if VARIANTS[config.architecture].has_threshold:
        expected["threshold"] = matrix[:1]
    if set(tensors) != set(expected):
        raise SAEError(f"{path} has tensors {sorted(tensors)}, expected {sorted(expected)}.")
    for name, shape in expected.items():
        tensor = tensors[name]
        if list(tensor.shape) != shape or not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise SAEError(
                f"{path}: {name} is {kind} {list(tensor.shape)}, expected floating point {shape}."
            )
        if not all_finite(tensor):
            raise SAEError(f"{path}: {name} holds values that are not finite.")


def all_finite(tensor: Tensor) -> bool:
    """Say whether a tensor with at least one element has neither NaN nor infinity; nothing of its
    size is made."""
    return bool(torch.stack(tensor.aminmax()).isfinite().all())
