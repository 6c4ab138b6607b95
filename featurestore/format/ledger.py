"""The ledger: which records were committed, so that one that is gone is missed (docs/format.md,
section 2).

``manifest/SHA256SUMS`` has a line for each record of a table that is not derived, in the form that
``sha256sum -c`` takes. It is a function of the records, brought up to date with the dataset card; a
line stays when its record is gone without having been removed by this project, until
``featurestore repair`` has dealt with the loss.
"""

import hashlib
import re
from functools import partial
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from featurestore.errors import DamageError
from featurestore.format import durable
from featurestore.format.gate import inside, read_inside
from featurestore.format.records import (
    MAX_RECORD_BYTES,
    is_name,
    is_table,
    list_shards,
    list_tables,
)
from featurestore.vocabulary import BY_FEATURE, CANDIDATES

LEDGER = f"manifest/{durable.LEDGER}"
DERIVED = ("totals", "scores", "sums", *BY_FEATURE, *CANDIDATES)
"""kinds of table that are computed anew from others, and may lose a shard at any time"""
_LINE = re.compile(r"([0-9a-f]{64})  manifest/([^\n]+)/([^/\n]+)\.json")
_MAX_BYTES = 512 * 2**20


def read_ledger(root: Path) -> dict[str, str]:
    """Return record → SHA-256 of the committed records that a store's ledger lists; empty if it has
    none.

    Raises:
        DamageError: it is not a ledger.
    """
    if not inside(root, LEDGER).exists():
        return {}
    committed = {}
    lines = read_inside(root, LEDGER, _MAX_BYTES).decode("ascii", errors="replace").split("\n")
    for number, line in enumerate(lines[:-1], 1):
        match = _LINE.fullmatch(line)
        if not match or not is_table(match[2]) or not is_name(match[3]) or is_derived(match[2]):
            raise DamageError(
                f"line {number} is {line[:60]!r}, expected a SHA-256 and a record's path"
            )
        committed[line[66:]] = match[1]
    if lines[-1]:
        raise DamageError("it was cut short")
    return committed


def is_derived(table: str) -> bool:
    """Say whether a table is computed from others."""
    return table.partition("/")[0] in DERIVED


def update_ledger(root: Path, forget: frozenset[str] = frozenset()) -> None:
    """Bring the ledger up to date: every record that is there, and those that it lists already but
    for ``forget``.

    Other processes may be committing, and writing it, too.
    """
    path = inside(root, LEDGER)
    while True:
        try:
            before = read_ledger(root)
        except DamageError:  # derived: written anew
            before = {}
        kept = {name: digest for name, digest in before.items() if name not in forget}
        lines = "".join(
            f"{digest}  {name}\n" for name, digest in sorted((kept | _present(root, kept)).items())
        )
        there = path.read_bytes() if path.is_file() else b""
        if there == lines.encode():
            return
        durable.place_file(path, partial(_write, lines))


def _write(lines: str, file: BinaryIO) -> None:
    file.write(lines.encode())


def _present(root: Path, known: dict[str, str]) -> dict[str, str]:
    """Return record → SHA-256 of the records that are there and not yet listed."""
    found = {}
    for table in list_tables(root):
        for shard in list_shards(root, table) if not is_derived(table) else ():
            name = f"manifest/{table}/{shard}.json"
            if name not in known:
                data = read_inside(root, PurePosixPath(name), MAX_RECORD_BYTES)
                found[name] = hashlib.sha256(data).hexdigest()
    return found
