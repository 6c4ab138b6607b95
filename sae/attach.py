"""Take an SAE's files into a store."""

import hashlib
from pathlib import Path
from typing import NamedTuple

import torch

import featurestore
from featurestore import durable
from featurestore.errors import SAEError
from featurestore.records import FileEntry, Record
from featurestore.saes import sae_hash
from featurestore.schemas import check_name
from featurestore.store import Store
from sae.checkpoint import CONFIG, METRICS, WEIGHTS, load_sae
from sae.model import SAE


class Attached(NamedTuple):
    """An SAE for a store, in it or not yet."""

    name: str
    sae: SAE
    record: Record
    """as it is, or will be, committed"""
    files: dict[Path, bytes]
    """what has to be written for it, relative to the store; empty if the store has it"""


def attachable(store: Store, source: str, device: torch.device) -> Attached:
    """Load an SAE: one of the store by its name, or the directory of an SAE's files, whose name it then has.

    Raises:
        SAEError: there is none, it is malformed, or the store has another of that name.
    """
    directory = Path(source)
    if not (directory / CONFIG).is_file():
        if "/" in source or directory.is_dir():
            raise SAEError(f"{source} is no SAE: it has no {CONFIG}.")
        sae = load_sae((store, source), device)
        record = store.record("saes", source)
        assert record is not None, "load_sae has found it"
        return Attached(source, sae, record, {})
    name = check_name(directory.resolve().name, "the directory of an SAE")
    sae = load_sae(directory, device)
    files = {
        Path("saes", name, file): (directory / file).read_bytes()
        for file in (CONFIG, METRICS, WEIGHTS)
        if (directory / file).is_file()
    }
    entries = tuple(
        FileEntry(path.as_posix(), len(data), hashlib.sha256(data).hexdigest()) for path, data in files.items()
    )
    made_by = {"featurestore": featurestore.__version__, "attached": True}
    record, there = Record("saes", name, "", 0, (), entries, made_by), store.record("saes", name)
    if there is None:
        return Attached(name, sae, record, files)
    if sae_hash(there) != sae_hash(record):
        raise SAEError(f"{store.root} has another SAE {name!r}: give the directory {directory} another name.")
    return Attached(name, sae, there, {})


def attach(store: Store, attached: Attached) -> None:
    """Write and commit an SAE that the store does not have."""
    store.begin()
    for path, data in attached.files.items():
        durable.write_bytes(store.root / path, data)
    if attached.files:
        store.commit(attached.record)
