"""SAEs in a store: configuration, weights' path and identity, without torch."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from featurestore.errors import SAEError, TakenError, nearest
from featurestore.format import durable
from featurestore.format.canonical import sha256_text
from featurestore.format.checksums import check_file
from featurestore.format.gate import (
    Field,
    MalformedError,
    closed,
    inside,
    list_of,
    one_of,
    parse_json,
    read_regular,
    text,
    whole,
)
from featurestore.format.records import FileEntry, Record
from featurestore.store import Store
from featurestore.vocabulary import BRANCH_CHOICES, IO


def sae_record(store: Store, name: str) -> Record:
    """Return an SAE's commit record.

    Raises:
        SAEError: the store has no SAE of that name; the near ones are offered.
    """
    record = store.record("saes", name)
    if record is None:
        known = [r.shard for r in store.records("saes")]
        advice = nearest(name, known) or " It has none: 'featurestore train' makes one."
        raise SAEError(f"{store.root} has no SAE {name!r}.{advice}")
    return record


_COUNT = whole(1, 2**31 - 1)
_FIELDS = {
    "d_in": _COUNT,
    "n_latents": _COUNT,
    "k": whole(0, 2**31 - 1),
    "architecture": text("[a-z_]{1,40}", "an architecture's name"),
    "hook": text("([A-Za-z0-9][A-Za-z0-9_.-]{0,199})?", "a module's path"),
    "io": one_of(IO),
    "height": whole(0, 2**20),
    "width": whole(0, 2**20),
    "branch": one_of(tuple(BRANCH_CHOICES), optional=True),
    "model_hash": text("[\x20-\x7e]{0,4000}", "a hash", optional=True),
    "run_id": text("[0-9a-f]{0,64}", "hexadecimal digits", optional=True),
    "group_sizes": list_of(_COUNT, "a list of whole numbers", optional=True),
    "normalize_activations": text("[a-z_]{1,40}", "a name", optional=True),
    "initialisation": text("[a-z_]{1,40}", "a name", optional=True),
    "apply_b_dec_to_input": Field(lambda value: isinstance(value, bool), "true or false", True),
}
_MAX_CONFIG_BYTES = 2**20
_MAX_METRICS_BYTES = 2**26
_IDENTIFYING = ("config.json", "sae.safetensors")
"""files that make an SAE another one, in this order"""


class EncodedShare(NamedTuple):
    """How much of a store an SAE has encoded."""

    n_encoded: int
    """samples"""
    n_samples: int
    """of the store"""
    n_waiting: int
    """samples whose activations are stored and not encoded"""


def encoded_share(store: Store, name: str) -> EncodedShare:
    """Return how many of a store's samples an SAE has encoded, and how many ``encode`` would.

    Raises:
        SAEError: there is no such SAE.
    """
    hook = load_config(store, name)["hook"]
    samples, encoded = store.committed_samples("samples"), store.committed_samples(f"codes/{name}")
    waiting = store.committed_samples(f"activations/{hook}") - encoded
    return EncodedShare(len(encoded), len(samples), len(waiting))


def load_config(store: Store, name: str) -> dict[str, Any]:
    """Return an SAE's ``config.json``: a closed set of fields, each of its type and range.

    Raises:
        SAEError: there is no such SAE, the file is not what its record says, or a field is not what
            it must be.
    """
    entry = _entry(sae_record(store, name), "config.json")
    try:
        return closed(_read_json(store, entry, _MAX_CONFIG_BYTES), _FIELDS)
    except MalformedError as error:
        raise SAEError(f"{store.root / entry.path}: {error}.") from error


def load_metrics(store: Store, name: str) -> dict[str, Any] | None:
    """Return an SAE's ``metrics.json``, FVU, L0 and dead latents on held-out samples; None: it was
    never measured.

    Raises:
        SAEError: there is no such SAE, or the file is not what its record says.
    """
    record = sae_record(store, name)
    if not any(entry.path.endswith("/metrics.json") for entry in record.files):
        return None
    metrics = _read_json(store, _entry(record, "metrics.json"), _MAX_METRICS_BYTES)
    return metrics if isinstance(metrics, dict) else None


def _read_json(store: Store, entry: FileEntry, limit: int) -> Any:
    """Return what a JSON file of an SAE says, once it is what its record says; raises SAEError."""
    wrong = check_file(store.root, entry)
    if wrong:
        raise SAEError(
            f"{store.root / entry.path} {wrong}: run 'featurestore verify {store.root}'."
        )
    path = inside(store.root, entry.path)
    try:
        return parse_json(read_regular(path, limit))
    except (MalformedError, OSError) as error:
        raise SAEError(f"{path}: {error}.") from error


def weights_path(store: Store, name: str) -> Path:
    """Return the path of an SAE's weights.

    Raises:
        SAEError: the store has no SAE of that name.
        DamageError: the path leads through a symbolic link.
    """
    return inside(store.root, _entry(sae_record(store, name), "sae.safetensors").path)


def sae_hash(record: Record) -> str:
    """Return an SAE's identity: SHA-256 over the SHA-256 of its configuration and that of its
    weights."""
    return _identity({name: _entry(record, name).sha256 for name in _IDENTIFYING})


def sae_files_hash(directory: Path) -> str:
    """Return the identity, as :func:`sae_hash` has it, of the SAE whose files lie in a directory.

    Raises:
        SAEError: a file cannot be read.
    """
    digests = {}
    for name in _IDENTIFYING:
        try:
            digests[name] = hashlib.sha256((directory / name).read_bytes()).hexdigest()
        except OSError as error:
            raise SAEError(f"{directory / name} cannot be read: {error.strerror}.") from error
    return _identity(digests)


def _identity(digests: Mapping[str, str]) -> str:
    return sha256_text("".join(digests[name] for name in _IDENTIFYING))


def commit_sae(
    store: Store, name: str, files: Mapping[str, bytes], made_by: Mapping[str, Any]
) -> Record:
    """Write an SAE's files, given by their names, and commit them; the same SAE again changes
    nothing.

    Raises:
        TakenError: another process has committed another SAE of that name.
    """
    with store.claim("saes", name):
        there = store.record("saes", name)
        if there is not None:
            mine = {file: hashlib.sha256(data).hexdigest() for file, data in files.items()}
            if sae_hash(there) == _identity(mine):
                return there
            raise TakenError(
                f"{store.root}: another process has committed an SAE {name!r} in the meantime. It "
                f"stays; nothing of this one was written: use another name."
            )
        entries = []
        for file, data in files.items():
            path = f"saes/{name}/{file}"
            entries.append(
                FileEntry(path, *durable.place_file(inside(store.root, path), _writer(data)))
            )
        return store.commit(Record("saes", name, "", 0, (), tuple(entries), made_by))


@contextlib.contextmanager
def training_of(store: Store, name: str) -> Iterator[None]:
    """Keep other processes from training an SAE of the same name while the block runs.

    Raises:
        TakenError: one is doing so already.
    """
    claim = durable.Claim.take(store.root / ".work" / "claims" / f"train-{name}")
    if claim is None:
        raise TakenError(
            f"{store.root}: another process is training an SAE {name!r} just now: wait for it, or "
            f"use another --name."
        )
    with claim:
        yield


def _writer(data: bytes) -> Callable[[BinaryIO], object]:
    return lambda file: file.write(data)


def _entry(record: Record, name: str) -> FileEntry:
    for entry in record.files:
        if entry.path.endswith(f"/{name}"):
            return entry
    raise SAEError(f"the record of SAE {record.shard!r} lists no {name}.")
