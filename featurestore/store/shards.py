"""Write and commit shards: files first, their record last (docs/format.md, section 3)."""

from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa

from featurestore.errors import RunError, TableError, TakenError
from featurestore.format import durable, footers, schemas
from featurestore.format.canonical import same_model, same_signs
from featurestore.format.contents import COMPACTED, describe
from featurestore.format.gate import inside, short
from featurestore.format.parquet.in_place import TensorFile
from featurestore.format.records import (
    FileEntry,
    Record,
    any_shard,
    check_record,
    compacted_shards,
    is_name,
    is_table,
    list_shards,
    read_record,
    shard_files,
)
from featurestore.vocabulary import TEXT_ENCODERS


class NewShard(NamedTuple):
    """A shard that is to be written: its name, its samples, and what made it."""

    table: str
    shard: str
    sample_ids: tuple[int, ...]
    made_by: Mapping[str, Any]
    replaces: tuple[str, ...] = ()
    """shards of the table whose rows these are"""


def find_record(root: Path, table: str, shard: str) -> Record | None:
    """Return a shard's commit record, or None; raises DamageError."""
    if not (is_table(table) and is_name(shard)):
        return None  # a user may ask for any
    path = inside(root, f"manifest/{table}/{shard}.json")
    return read_record(root, table, shard) if path.exists() else None


def find_done(root: Path, table: str, shard: str) -> Record | None:
    """Return the commit record of a shard, or else of the compacted one that holds its rows."""
    own = find_record(root, table, shard)
    # In this order: a compacted shard is there before what it replaces goes.
    if own is not None:
        return own
    for name in compacted_shards(root, table):
        if shard in _replaced_by(root, table, name):
            return read_record(root, table, name)
    return None


@lru_cache(maxsize=1024)
def _replaces(root: Path, table: str, shard: str, _state: tuple[int, int]) -> frozenset[str]:
    """Return the shards whose rows a compacted one holds; ``_state`` is of its record's file."""
    contents = read_record(root, table, shard).contents
    return frozenset(contents.replaces if contents is not None else ())


def first_names(root: Path, table: str) -> set[str]:
    """Return the names of a table's shards as they were first committed; reads the records of
    compacted shards only."""
    compacted = compacted_shards(root, table)
    names = set(list_shards(root, table)).difference(compacted)
    for shard in compacted:
        names |= _replaced_by(root, table, shard)
    return {name for name in names if not COMPACTED.fullmatch(name)}


def _replaced_by(root: Path, table: str, shard: str) -> frozenset[str]:
    status = inside(root, f"manifest/{table}/{shard}.json").stat()
    return _replaces(root, table, shard, (status.st_ino, status.st_mtime_ns))


def write_shard(
    root: Path, new: NewShard, schema: pa.Schema, write: Callable[[BinaryIO], object]
) -> Record:
    """Write a shard's file by ``write(file)`` and commit it; one that exists is left as it is.

    Raises:
        TableError: the table's other shards have other columns.
        TakenError: another process has just committed it with other bytes.
        DiskError: the operating system refused; nothing was committed.
    """
    existing = find_done(root, new.table, new.shard)
    if existing is not None:
        return existing
    check_schema(root, new.table, schema)
    (path,) = shard_files(new.table, new.shard)
    with claim(root, new.table, new.shard):
        existing = find_done(root, new.table, new.shard)
        if existing is not None:
            _check_same(root, existing, durable.hash_only(write), new.shard)
            return existing
        written = durable.place_file(inside(root, path), write)
        return commit(root, _record(root, new, schema, written))


def place_shard(root: Path, new: NewShard, file: TensorFile) -> Record:
    """Commit a shard whose file is written, once all of its rows were put; raises as
    :func:`write_shard`."""
    existing = find_done(root, new.table, new.shard)
    if existing is not None:
        return existing
    written = file.seal()
    with claim(root, new.table, new.shard):
        existing = find_done(root, new.table, new.shard)
        if existing is not None:
            _check_same(root, existing, written, new.shard)
            return existing
        file.place()
        return commit(root, _record(root, new, file.schema, written))


def _record(root: Path, new: NewShard, schema: pa.Schema, written: durable.Written) -> Record:
    """Return the record of a shard whose file is at its place."""
    (name,) = shard_files(new.table, new.shard)
    path = inside(root, name)
    with durable.disk_errors(path):
        contents = describe(path, samples=new.table == "samples", replaces=new.replaces)
    return Record(
        table=new.table,
        shard=new.shard,
        schema=schemas.schema_id(schema),
        rows=sum(part.rows for part in contents.parts),
        sample_ids=new.sample_ids,
        files=(FileEntry(name, written.bytes, written.sha256),),
        made_by=new.made_by,
        contents=contents,
    )


def _check_same(root: Path, existing: Record, written: durable.Written, shard: str) -> None:
    """Refuse other bytes than those of a shard that exists; of one that was compacted since, bytes
    cannot be compared."""
    if existing.shard == shard and written.sha256 != existing.files[0].sha256:
        raise TakenError(_taken(root, existing))


def check_run(root: Path, mine: Mapping[str, Any], run: Mapping[str, Any]) -> None:
    """Refuse a run for the store of another.

    Raises:
        RunError: a setting differs; it is named.
    """
    for key in sorted(set(mine) | set(run)):
        found, wanted = mine.get(key), run.get(key)
        if key == TEXT_ENCODERS:
            _check_encoders(root, found, wanted)
        elif found != wanted and not (key == "model_hash" and same_model(str(found), str(wanted))):
            alike = same_signs(str(mine.get("model_hash")), str(run.get("model_hash")))
            rounded = (
                " (the same model in another precision)"
                if alike and key in ("dtype", "model_hash")
                else ""
            )
            raise RunError(
                f"{root} holds a run with {key} = {found!r}, this one has {wanted!r}{rounded}: use "
                f"the same settings or another --store. Nothing was changed."
            )


def _check_encoders(root: Path, mine: Any, run: Any) -> None:
    """Refuse other text encoders; what does not say which it has, as programs before 0.2 did not,
    may have any."""
    if mine is None or run is None:
        return
    mine, run = (one if isinstance(one, Mapping) else {} for one in (mine, run))
    for name in sorted({*mine, *run}):
        found, wanted = str(mine.get(name, "")), str(run.get(name, ""))
        if not same_model(found, wanted):
            here, there = (f"{name} {x[:20]}…" if x else f"no {name}" for x in (found, wanted))
            rounded = " (the same in another precision)" if same_signs(found, wanted) else ""
            raise RunError(
                f"{root} holds a run with {here}, this one has {there}{rounded}: use the "
                f"same text encoder or another --store. Nothing was changed."
            )


def claim(root: Path, table: str, shard: str) -> durable.Claim:
    """Wait until no other process is committing a shard, and keep others from it while the
    block runs.

    Raises:
        TableError: no table, or no shard, can have that name.
        DiskError: the operating system refused, or the file system has no locks.
    """
    check_names(table, shard)
    taken = durable.Claim.take(root / ".work" / "claims" / table / shard, wait=True)
    assert taken is not None, "waited for"
    return taken


def check_names(table: str, shard: str) -> None:
    """Refuse a shard that cannot exist.

    Raises:
        TableError: no table, or no shard, can have that name.
    """
    if not (is_table(table) and is_name(shard)):
        raise TableError(
            f"shard {short(shard)} of table {short(table)} cannot exist: expected the table "
            f"samples, labels, saes or KIND/NAME, and names of at most 200 letters, digits, '_', "
            f"'-' and '.'."
        )


def _taken(root: Path, record: Record) -> str:
    return (
        f"{root}: another process has just committed shard {record.shard!r} of {record.table!r} "
        f"with other contents. What it committed stays; nothing of this one was written."
    )


def commit(root: Path, record: Record) -> Record:
    """Create a commit record; whoever writes the shard's files holds its claim.

    Raises:
        TakenError: another process committed the shard with other files.
    """
    data = record.to_bytes()
    check_record(record)
    if durable.create_once(inside(root, record.location.as_posix()), data):
        return record
    found = read_record(root, record.table, record.shard)
    if found.files != record.files:
        raise TakenError(_taken(root, found))
    return found


def check_schema(root: Path, table: str, schema: pa.Schema) -> None:
    """Refuse rows of this schema for a table whose shards have another.

    Raises:
        TableError: the columns differ; it names them.
    """
    shard = any_shard(root, table)
    if shard is None:
        return
    found = read_record(root, table, shard)  # any: all have one schema, and there are many
    if found.schema == schemas.schema_id(schema):
        return
    path = inside(root, found.files[0].path)
    there = {f.name: f.type for f in footers.read_schema(path)}
    new = {f.name: f.type for f in schema}
    changed = sorted(k for k in set(there) | set(new) if there.get(k) != new.get(k))
    detail = "; ".join(
        f"{k}: {there.get(k, 'absent')} there, {new.get(k, 'absent')} here" for k in changed
    )
    raise TableError(
        f"table {table!r} of {root} has other columns ({detail}). Nothing was changed."
    )
