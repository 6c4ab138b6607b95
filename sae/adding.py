"""Add an SAE's files to a store."""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import torch

import featurestore
from featurestore.errors import SAEError
from featurestore.format.records import FileEntry, Record
from featurestore.format.schemas import check_name
from featurestore.saes import commit_sae, sae_hash
from featurestore.store import Store
from sae.checkpoint import CONFIG, METRICS, WEIGHTS, load_sae, store_sae
from sae.model import SAE


class Candidate(NamedTuple):
    """An SAE for a store, in it or not yet."""

    name: str
    sae: SAE
    record: Record
    """as it is, or will be, committed"""
    files: dict[str, bytes]
    """what has to be written for it, by name; empty if the store has it"""


def find_candidate(store: Store, source: str, device: torch.device) -> Candidate:
    """Load an SAE: one of the store by its name, or the directory of an SAE's files, whose name it
    then has.

    Raises:
        SAEError: there is no such SAE, it is malformed, or the store has another of that name.
    """
    directory = Path(source)
    if not (directory / CONFIG).is_file():
        if "/" in source or directory.is_dir():
            raise SAEError(f"{source} is no SAE: it has no {CONFIG}.")
        sae = store_sae(store, source, device)
        record = store.record("saes", source)
        assert record is not None, "store_sae has found it"
        return Candidate(source, sae, record, {})
    name = check_name(directory.resolve().name, "the directory of an SAE")
    sae = load_sae(directory, device)
    files = {
        file: (directory / file).read_bytes()
        for file in (CONFIG, METRICS, WEIGHTS)
        if (directory / file).is_file()
    }
    otherwise = f"give the directory {directory} another name"
    return make_candidate(
        store, name, sae, files=files, made_by={"attached": True}, otherwise=otherwise
    )


def make_candidate(
    store: Store,
    name: str,
    sae: SAE,
    *,
    files: dict[str, bytes],
    made_by: dict[str, Any],
    otherwise: str,
) -> Candidate:
    """Return an SAE that is to be in a store under a name: the store's own, if it is the same to
    the last bit.

    Raises:
        SAEError: the store has another of that name; ``otherwise`` says what to do.
    """
    entries = tuple(
        FileEntry(f"saes/{name}/{file}", len(data), hashlib.sha256(data).hexdigest())
        for file, data in files.items()
    )
    made_by = {"featurestore": featurestore.__version__, **made_by}
    record, there = Record("saes", name, "", 0, (), entries, made_by), store.record("saes", name)
    if there is None:
        return Candidate(name, sae, record, files)
    if sae_hash(there) != sae_hash(record):
        raise SAEError(f"{store.root} has another SAE {name!r}: {otherwise}.")
    return Candidate(name, sae, there, {})


def add_sae(store: Store, candidate: Candidate) -> None:
    """Write and commit an SAE's files, unless the store has them."""
    if candidate.files:
        commit_sae(store, candidate.name, candidate.files, candidate.record.made_by)
