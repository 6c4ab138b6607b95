"""Commit records: what a shard is and that it exists, their snapshot, labels corrected later."""

from featurestore.format.records.parsing import (
    MAX_RECORD_BYTES,
    check_record,
    read_mark,
    read_record,
    record_from,
)
from featurestore.format.records.places import (
    MARK,
    SAE_FILES,
    any_shard,
    compacted_shards,
    is_name,
    is_table,
    list_shards,
    list_tables,
    shard_files,
    stranger,
)
from featurestore.format.records.record import FileEntry, Record

__all__ = [
    "MARK",
    "MAX_RECORD_BYTES",
    "SAE_FILES",
    "FileEntry",
    "Record",
    "any_shard",
    "check_record",
    "compacted_shards",
    "is_name",
    "is_table",
    "list_shards",
    "list_tables",
    "read_mark",
    "read_record",
    "record_from",
    "shard_files",
    "stranger",
]
