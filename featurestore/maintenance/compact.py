"""Write the rows of many small shards into few large files, and retire the small ones when nobody
can need them (docs/format.md, section 2.3).

A compacted shard is committed like any other; from that moment its record says that the others
count no more. What is interrupted is taken up by the next call. Nothing that a question sees
changes: rows, their order, ids and values stay.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import pyarrow as pa

from featurestore.card import write_card
from featurestore.errors import TakenError
from featurestore.format import durable
from featurestore.format.canonical import canonical_json
from featurestore.format.contents import COMPACTED, REPLACES
from featurestore.format.footers import read_schema, read_table
from featurestore.format.gate import inside
from featurestore.format.ledger import update_ledger
from featurestore.format.parquet import layout
from featurestore.format.records import Record, compacted_shards
from featurestore.store import Store, shards

LEAST_BYTES, FULL_BYTES, MOST_BYTES = 128 * 10**6, 256 * 10**6, 512 * 10**6
"""a smaller shard is put together with its neighbours, until they have so many, and never more"""
_GROUP_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Compacted:
    """What became of a table."""

    table: str
    before: int
    """shards"""
    after: int
    retired: int
    """files that were removed"""
    waiting: int
    """replaced files that are still there, because somebody reads the store"""


def compact(
    store: Store, progress: Callable[[str], object] = lambda table: None
) -> list[Compacted]:
    """Compact ``samples``, ``codes`` and ``stats`` of a store; return what became of each table
    that was, or had files waiting.

    Every file is compared with its record before it is read. ``progress`` is called with the name
    of a table for each shard that is written.

    Raises:
        TakenError: another process compacts the store.
        DamageError: a file is not what its record says; what is whole stays as it is.
        DiskError: the operating system refused; the store is as sound as before.
    """
    claim = durable.Claim.take(store.root / ".work" / "claims" / "compact")
    if claim is None:
        raise TakenError(f"{store.root}: another process compacts it just now.")
    with claim:
        found = []
        for table in store.tables():
            if table.partition("/")[0] in ("samples", "codes", "stats"):
                found.append(_compact_table(store, table, progress))
        write_card(store)  # Also where an interrupted call came to the end but for it.
    return [one for one in found if one.before != one.after or one.retired or one.waiting]


def _compact_table(store: Store, table: str, progress: Callable[[str], object]) -> Compacted:
    before = store.records(table)
    for group in groups(store, before):
        _write(store, group)
        progress(table)
    retired, waiting = retire(store, table)
    return Compacted(table, len(before), len(store.records(table)), retired, waiting)


def groups(store: Store, records: Sequence[Record]) -> Iterator[list[Record]]:
    """Yield the neighbours that are to make one shard each, at least two."""
    group: list[Record] = []
    alike, size = None, 0
    for record in records:
        n_bytes = record.files[0].bytes
        small = n_bytes < LEAST_BYTES and (record.sample_ids != ())
        kind = _kind(store, record) if small else None
        if group and (kind != alike or size >= FULL_BYTES or size + n_bytes > MOST_BYTES):
            if len(group) > 1:
                yield group
            group, size = [], 0
        if small:
            group.append(record)
            alike, size = kind, size + n_bytes
    if len(group) > 1:
        yield group


def _kind(store: Store, record: Record) -> str:
    """Return what shards must have in common to become one."""
    made_by = {key: value for key, value in record.made_by.items() if key != "faults"}
    metadata = dict(read_schema(store.paths(record)[0]).metadata or {})
    metadata.pop(REPLACES, None)
    told = {key.decode(): value.decode() for key, value in metadata.items()}
    return canonical_json([record.schema, made_by, told])


def _write(store: Store, group: Sequence[Record]) -> Record:
    store.check(group)
    replaced = [name for record in group for name in record.covers]
    names = hashlib.sha256("".join(f"{name}\n" for name in replaced).encode()).hexdigest()[:16]
    first = group[0].shard.rpartition("-with-")[0] if _is_compacted(group[0]) else group[0].shard
    faults = {k: v for record in group for k, v in record.made_by.get("faults", {}).items()}
    made_by = {**group[0].made_by, **({"faults": faults} if faults else {})}
    ids = tuple(i for record in group for i in record.sample_ids)
    new = shards.NewShard(
        group[0].table, f"{first}-with-{names}", ids, made_by, tuple(dict.fromkeys(replaced))
    )
    schema = read_schema(store.paths(group[0])[0])
    about = {**(schema.metadata or {}), REPLACES: canonical_json(list(new.replaces)).encode()}
    schema = schema.with_metadata(about)
    return shards.write_shard(store.root, new, schema, partial(_copy, store, group, schema))


def _is_compacted(record: Record) -> bool:
    return COMPACTED.fullmatch(record.shard) is not None


def _copy(store: Store, group: Sequence[Record], schema: pa.Schema, file: "pa.NativeFile") -> None:
    layout.write_parts(file, schema, _parts(store, group, schema))


def _parts(store: Store, group: Sequence[Record], schema: pa.Schema) -> Iterator[pa.Table]:
    """Yield the rows of shards, one after another, in row groups of a size that reads well."""
    held: list[pa.Table] = []
    n_bytes = 0
    for record in group:
        rows = read_table(store.paths(record)[0]).replace_schema_metadata(schema.metadata)
        held.append(rows)
        n_bytes += rows.nbytes
        if n_bytes >= _GROUP_BYTES:
            yield pa.concat_tables(held)
            held, n_bytes = [], 0
    if held:
        yield pa.concat_tables(held)


def retire(store: Store, table: str) -> tuple[int, int]:
    """Remove the records and files of shards that others replaced, unless somebody may be reading
    them; return how many files were removed, and how many wait."""
    old = []
    for name in compacted_shards(store.root, table):
        record = store.record(table, name)
        for shard in record.contents.replaces if record is not None and record.contents else ():
            location, path = f"manifest/{table}/{shard}.json", f"{table}/{shard}.parquet"
            if any(inside(store.root, one).exists() for one in (location, path)):
                old.append((location, path))
    if not old:
        return 0, 0
    with store.alone() as alone:
        if not alone:
            return 0, len(old)
        # Records first: a file without one is a leftover, not a loss.
        durable.remove_all(inside(store.root, location) for location, _ in old)
        update_ledger(store.root, frozenset(location for location, _ in old))
        durable.remove_all(inside(store.root, path) for _, path in old)
    return len(old), 0
