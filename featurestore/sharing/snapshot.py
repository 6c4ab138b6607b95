"""What of a store is shared: its committed files, and nothing else."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from featurestore.card import holds, write_card
from featurestore.errors import DamageError, ShareError
from featurestore.format import durable
from featurestore.format.footers import check_footer
from featurestore.format.gate import inside, read_inside
from featurestore.format.ledger import LEDGER
from featurestore.format.records import MARK, SAE_FILES, FileEntry, is_name, is_table
from featurestore.sharing.croissant import CROISSANT, croissant
from featurestore.store import Store

CARD = "README.md"
MAX_LIST_BYTES = 512 * 2**20
"""of a ledger, or of the list of a bundle"""


def refuse_existing(path: Path) -> None:
    """Refuse a path where something is, or the current directory; an empty one elsewhere will do.

    Raises:
        ShareError: it is not free.
    """
    if path.exists() and (not path.name or not path.is_dir() or any(path.iterdir())):
        raise ShareError(f"{path} exists: name a new directory.")


def data_files(store: Store) -> Iterator[FileEntry]:
    """Yield the data files that the commit records name, in a fixed order."""
    for table in (*store.tables(), "saes"):
        for record in store.records(table):
            yield from record.files


def record_files(store: Store) -> Iterator[FileEntry]:
    """Yield the commit records, the store's mark, ledger, card and ``croissant.json``, brought up
    to date: what makes the data files count."""
    write_card(store)
    described = croissant(store).encode()
    if not holds(store.root / CROISSANT, described):
        durable.write_bytes(store.root / CROISSANT, described)
    records = [
        record.location.as_posix()
        for table in (*store.tables(), "saes")
        for record in store.records(table)
    ]
    ledger = [LEDGER] if inside(store.root, LEDGER).exists() else []
    for path in (*records, str(MARK), *ledger, CROISSANT, CARD):
        data = read_inside(store.root, path, MAX_LIST_BYTES)
        yield FileEntry(path, len(data), hashlib.sha256(data).hexdigest())


def is_shared(path: str) -> bool:
    """Say whether a path, read from somewhere else, is one that a shared store has."""
    if path in (str(MARK), LEDGER, CARD, CROISSANT):
        return True
    folder, _, name = path.rpartition("/")
    if folder.startswith("manifest/"):
        table = folder.removeprefix("manifest/")
        return is_table(table) and name.endswith(".json") and is_name(name.removesuffix(".json"))
    if folder.startswith("saes/"):
        return is_name(folder.removeprefix("saes/")) and name in SAE_FILES
    return (
        is_table(folder)
        and folder != "saes"
        and name.endswith(".parquet")
        and is_name(name.removesuffix(".parquet"))
    )


def check_contents(store: Store, listed: Mapping[str, FileEntry]) -> None:
    """Refuse a store that came from somewhere else unless its records name exactly the data files
    that came with it.

    The files themselves were compared with ``listed`` while they were written.

    Raises:
        DamageError: a record is not one, or a data file is missing, left over, or another one than
            it says.
    """
    named = {entry.path: entry for entry in data_files(store)}
    came = {
        path: entry
        for path, entry in listed.items()
        if path not in (CARD, CROISSANT) and not path.startswith("manifest/")
    }
    for path in sorted(set(named) | set(came)):
        if named.get(path) != came.get(path):
            state = (
                "is named by no record"
                if path not in named
                else "did not come"
                if path not in came
                else "differs"
            )
            raise DamageError(
                f"{path} {state}{' from what its record says' if state == 'differs' else ''}"
            )
    for table in store.tables():
        for record in store.records(table):
            for entry in record.files:
                wrong = check_footer(store.root / entry.path, record)
                if wrong:
                    raise DamageError(f"{entry.path} {wrong}")
