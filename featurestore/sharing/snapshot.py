"""What of a store is shared: its committed files, and nothing else."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from featurestore.card import write_card
from featurestore.format.records import FileEntry
from featurestore.store import Store

CARD = "README.md"
MARK = "manifest/store.json"


def data_files(store: Store) -> Iterator[FileEntry]:
    """Yield the data files that the commit records name, in a fixed order."""
    for table in (*store.tables(), "saes"):
        for record in store.records(table):
            yield from record.files


def record_files(store: Store) -> Iterator[FileEntry]:
    """Yield the commit records, the store's mark and, brought up to date, its card: what makes the data files count."""
    write_card(store)
    records = [record.location.as_posix() for table in (*store.tables(), "saes") for record in store.records(table)]
    for path in (*records, MARK, CARD):
        data = (store.root / path).read_bytes()
        yield FileEntry(path, len(data), hashlib.sha256(data).hexdigest())


def is_safe(path: str) -> bool:
    """Say whether a path read from somewhere else stays below the directory that it is joined to."""
    parts = Path(path).parts
    return bool(parts) and not Path(path).is_absolute() and ".." not in parts and Path(path).as_posix() == path
