"""What a damaged store still tells: whose samples they are, and the record that a whole file
had."""

import hashlib
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pyarrow.parquet as pq

from featurestore import __version__
from featurestore.errors import DamageError, VersionError
from featurestore.format import footers, schemas
from featurestore.format.canonical import run_id, sample_id
from featurestore.format.checksums import check_shard
from featurestore.format.contents import describe, read_replaced
from featurestore.format.gate import inside
from featurestore.format.parquet.structure import check_structure
from featurestore.format.records import FileEntry, Record, list_shards, read_record, shard_files
from featurestore.store import Store

_MOST_SHARD_SAMPLES = 256
"""pictures per shard that a lost record of ``samples`` is tried with, where no other tells them"""


def _id_of(run: dict, row: dict) -> int:
    """Return the id that a run's settings give a sample, whose row says what it has of its own."""
    shared = run.get("start", {})
    starts = {
        kind: row[name]
        for kind, (name, _) in schemas.START_COLUMNS.items()
        if name in row and row[name] != shared.get(kind)
    }
    guidance = None if row["guidance"] == run.get("guidance") else row["guidance"]
    return sample_id(run_id(run), row["prompt"], row["seed"], guidance, starts=starts)


def gives_ids(root: Path, run: dict) -> bool:
    """Say whether a run's settings give the ids of the first shard of samples that is whole."""
    for shard in list_shards(root, "samples"):
        try:
            record = read_record(root, "samples", shard)
        except (DamageError, VersionError):
            continue
        if check_shard(root, record, record.files[0]) is None:
            table = footers.read_table(root / record.files[0].path)
            starts = [n for n, _ in schemas.START_COLUMNS.values() if n in table.column_names]
            named = ["sample_id", "prompt", "seed", "guidance", *starts]
            rows = table.select(named).to_pylist()
            return all(_id_of(run, row) == row["sample_id"] for row in rows)
    return False


def rebuilt_record(store: Store, table: str, shard: str, digest: str) -> Record | None:
    """Return the record of a whole file if it can be told, byte for byte: the ledger has its
    SHA-256."""
    if table == "saes" or not digest:
        return None
    (name,) = shard_files(table, shard)
    found = _read(store.root, name)
    if found is None:
        return None
    entry, schema, rows, ids = found
    others = list(_relatives(store, table, shard))
    choices = [
        tuple(dict.fromkeys(ids)),
        (),
        *(other.sample_ids for other in others if other.shard == shard),
    ]
    makers = [{"featurestore": __version__}, *(dict(other.made_by) for other in others)]
    if table == "samples":
        sizes = (0, *range(len(ids), _MOST_SHARD_SAMPLES + 1))
        makers += [{"featurestore": __version__, "shard_samples": size} for size in sizes]
    path = store.root / name
    try:
        told = describe(path, samples=table == "samples", replaces=read_replaced(path))
    except footers.MALFORMED:  # a column of it cannot be read: it is not whole
        return None
    for sample_ids, made_by, contents in product(dict.fromkeys(choices), makers, (told, None)):
        record = Record(table, shard, schema, rows, sample_ids, (entry,), made_by, contents)
        if hashlib.sha256(record.to_bytes()).hexdigest() == digest:
            return record
    return None


def _read(root: Path, name: str) -> tuple[FileEntry, str, int, list[int]] | None:
    """Return what a record says of a Parquet file, from the file: its entry, schema, rows and
    samples."""
    try:
        path = inside(root, name)
        with path.open("rb") as stream:
            entry = FileEntry(
                name, path.stat().st_size, hashlib.file_digest(stream, "sha256").hexdigest()
            )
        schema = footers.read_schema(path)
        with footers.reading(path), pq.ParquetFile(path) as file:
            check_structure(path)
            columns = ["sample_id"] if "sample_id" in schema.names else []
            ids = file.read(columns=columns)["sample_id"].to_pylist() if columns else []
            return entry, schemas.schema_id(schema), file.metadata.num_rows, ids
    except (OSError, DamageError):
        return None


def _relatives(store: Store, table: str, shard: str) -> Iterator[Record]:
    """Yield the readable records that may tell what a lost one said: of the same table, and of the
    same shard elsewhere."""
    for other in [table, *(t for t in store.tables() if t != table)]:
        for name in list_shards(store.root, other):
            if other != table and name != shard:
                continue
            try:
                yield read_record(store.root, other, name)
            except (DamageError, VersionError):
                continue
