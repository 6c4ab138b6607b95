"""SAEs in a store: configuration, weights' path and identity, without torch."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featurestore.errors import SAEError, nearest
from featurestore.format import durable
from featurestore.format.canonical import sha256_text
from featurestore.format.records import FileEntry, Record
from featurestore.store import Store


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


def load_config(store: Store, name: str) -> dict[str, Any]:
    """Return an SAE's ``config.json``.

    Raises:
        SAEError: there is no such SAE, or the file is not what its record says.
    """
    entry = _entry(sae_record(store, name), "config.json")
    path = store.root / entry.path
    data = path.read_bytes() if path.is_file() else b""
    if sha256_text(data.decode(errors="replace")) != entry.sha256:
        raise SAEError(f"{path} is missing or was changed: run 'featurestore verify {store.root}'.")
    config = json.loads(data)
    assert isinstance(config, dict)
    return config


def weights_path(store: Store, name: str) -> Path:
    """Return the path of an SAE's weights."""
    return store.root / _entry(sae_record(store, name), "sae.safetensors").path


def sae_hash(record: Record) -> str:
    """Return an SAE's identity: SHA-256 over the SHA-256 of its configuration and that of its weights."""
    return sha256_text(_entry(record, "config.json").sha256 + _entry(record, "sae.safetensors").sha256)


def sae_files_hash(directory: Path) -> str:
    """Return the identity, as :func:`sae_hash` has it, of the SAE whose files lie in a directory.

    Raises:
        SAEError: a file cannot be read.
    """
    digests = []
    for name in ("config.json", "sae.safetensors"):
        try:
            digests.append(hashlib.sha256((directory / name).read_bytes()).hexdigest())
        except OSError as error:
            raise SAEError(f"{directory / name} cannot be read: {error.strerror}.") from error
    return sha256_text("".join(digests))


def commit_sae(store: Store, name: str, files: Mapping[str, bytes], made_by: Mapping[str, Any]) -> Record:
    """Write an SAE's files, given by their names, and commit them; if another process was first, return its record."""
    store.begin()
    entries = []
    for file, data in files.items():
        path = f"saes/{name}/{file}"
        entries.append(FileEntry(path, *durable.write_bytes(store.root / path, data)))
    return store.commit(Record("saes", name, "", 0, (), tuple(entries), made_by))


def _entry(record: Record, name: str) -> FileEntry:
    for entry in record.files:
        if entry.path.endswith(f"/{name}"):
            return entry
    raise SAEError(f"the record of SAE {record.shard!r} lists no {name}.")
