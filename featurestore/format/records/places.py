"""Where records lie, and which names tables and shards can have."""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from featurestore.errors import DamageError
from featurestore.format.contents import COMPACTED
from featurestore.format.gate import entries, inside, scan
from featurestore.format.schemas import is_name
from featurestore.vocabulary import PLAIN_TABLES, TABLE_KINDS

MARK = PurePosixPath("manifest/store.json")
SAE_FILES = ("config.json", "sae.safetensors", "metrics.json")
"""of ``saes/<name>``; the last is optional"""


def is_table(table: str) -> bool:
    """Say whether a text names a table: ``samples``, ``labels``, ``saes``, or a kind and a name."""
    kind, slash, name = table.partition("/")
    return table in (*PLAIN_TABLES, "saes") or bool(slash and kind in TABLE_KINDS and is_name(name))


def shard_files(table: str, shard: str) -> tuple[str, ...]:
    """Return the only paths that a shard's files can have, relative to the store."""
    if table == "saes":
        return tuple(f"saes/{shard}/{name}" for name in SAE_FILES)
    return (f"{table}/{shard}.parquet",)


def list_tables(root: Path) -> Iterator[str]:
    """Yield the names of the tables that have a record, ``saes`` among them, in no order.

    Raises:
        DamageError: a directory of records cannot be read, is a link, or belongs to no table.
    """
    for kind in _directories(root, PurePosixPath("manifest")):
        if kind in (*PLAIN_TABLES, "saes"):
            tables = [kind]
        elif kind in TABLE_KINDS:
            names = _directories(root, PurePosixPath("manifest", kind))
            tables = [f"{kind}/{name}" for name in names]
        else:
            tables = [kind]
        for table in tables:
            if not is_table(table):
                if not any(root.joinpath("manifest", table).rglob("*.json")):
                    continue
                raise DamageError(
                    f"{root / 'manifest' / table}: {table[:80]!r} is no table that this version "
                    f"knows. Run 'featurestore repair {root}', which sets it aside."
                )
            if any_shard(root, table) is not None:
                yield table


def stranger(relative: str) -> str | None:
    """Return, of a path under ``manifest/``, the part that belongs to no table or shard; None if
    all of it does."""
    _, *folders, name = relative.split("/")
    if folders and folders[0] not in (*PLAIN_TABLES, "saes", *TABLE_KINDS):
        return f"manifest/{folders[0]}"
    if len(folders) > 1 and folders[0] in TABLE_KINDS and not is_name(folders[1]):
        return f"manifest/{folders[0]}/{folders[1]}"
    known = is_table("/".join(folders)) and is_name(name.removesuffix(".json"))
    return None if known or relative == str(MARK) else relative


def _directories(root: Path, relative: PurePosixPath) -> list[str]:
    found = [entry for entry in entries(root, relative) if not entry.name.startswith(".")]
    for entry in found:
        if entry.is_symlink():
            inside(root, relative / entry.name)
    return [entry.name for entry in found if entry.is_dir(follow_symlinks=False)]


def any_shard(root: Path, table: str) -> str | None:
    """Return the name of some shard of a table that has a record, or None; raises as
    :func:`list_shards`.

    It is the first that is found, so a table of many costs no more than one of few.
    """
    return next((shard for shard, _ in record_entries(root, table)), None)


def compacted_shards(root: Path, table: str) -> list[str]:
    """Return the names of the shards of a table that hold the rows of others."""
    names = (entry.name for entry in _scan(root, table))
    return sorted(
        name[:-5]
        for name in names
        if name.endswith(".json") and "-with-" in name and COMPACTED.fullmatch(name[:-5])
    )


def _scan(root: Path, table: str) -> "Iterator[os.DirEntry[str]]":
    """Yield what lies where the records of a table are, in no order; nothing if ``table``, which a
    user may have typed, can name none."""
    if is_table(table):
        yield from scan(root, PurePosixPath("manifest", table))


def record_entries(root: Path, table: str) -> "Iterator[tuple[str, os.DirEntry[str]]]":
    """Yield the names of the shards of a table that have a record, each with the record's file, in
    no order; raises as :func:`list_shards`."""
    for entry in _scan(root, table):
        if not entry.name.endswith(".json") or entry.name.startswith("."):
            continue
        shard = entry.name.removesuffix(".json")
        if entry.is_symlink():
            inside(root, f"manifest/{table}/{entry.name}")
        if not is_name(shard):
            raise DamageError(f"{root}/manifest/{table}/{entry.name}: no shard can have this name")
        yield shard, entry


def list_shards(root: Path, table: str) -> list[str]:
    """Return the names of the shards of a table that have a record, in their order.

    Raises:
        DamageError: the directory of records cannot be read, or one of them is a link or has no
            shard's name.
    """
    return sorted(shard for shard, _ in record_entries(root, table))
