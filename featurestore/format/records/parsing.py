"""Records and marks as they are read: their fields are checked before anything believes them."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from featurestore.errors import DamageError, TableError, VersionError
from featurestore.format.canonical import unsealed
from featurestore.format.contents import COMPACTED, parse_contents
from featurestore.format.gate import (
    MAX_INT,
    Field,
    MalformedError,
    closed,
    distinct_numbers,
    inside,
    list_of,
    read_inside,
    read_placed,
    real,
    text,
    whole,
)
from featurestore.format.records.places import MARK, is_name, is_table, shard_files
from featurestore.format.records.record import FileEntry, Record
from featurestore.vocabulary import FORMAT, FORMAT_VERSION, READ_VERSIONS

MAX_RECORD_BYTES = 64 * 2**20

_SHA256 = text("[0-9a-f]{64}", "64 hexadecimal digits")
_RUN = {
    "model": text(),
    "model_hash": text(optional=True),
    "scheduler": Field(lambda value: isinstance(value, (dict, str)), "an object", True),
    "n_steps": whole(1, 2**31 - 1, optional=True),
    "guidance": real(1e38, optional=True),
    "negative_prompt": text(optional=True),
    "dtype": text(optional=True),
    "start": Field(lambda value: isinstance(value, dict), "an object", True),
}
"""settings of a run that are read again; others may stand beside them"""


def _is_run(run: Any) -> bool:
    if not isinstance(run, dict) or not run:
        return run is None or run == {}
    return all(
        field.fits(run[key]) if key in run else field.optional for key, field in _RUN.items()
    )


_MADE_BY = {
    "faults": Field(lambda value: isinstance(value, dict), "an object", True),
    "mask_from": list_of(text(), "a list of words", optional=True),
    "settings": Field(lambda value: isinstance(value, dict), "an object", True),
    "words": list_of(text(), "a list of words", optional=True),
}
"""of what made a shard, that which is read again; other things may stand beside it"""


def _is_made_by(value: Any) -> bool:
    return isinstance(value, dict) and all(
        field.fits(value[key]) for key, field in _MADE_BY.items() if key in value
    )


_MARK_FIELDS = {
    "run": Field(_is_run, "an object or null, with a model's name and numbers where numbers belong")
}
_FIELDS = {
    "table": Field(lambda table: isinstance(table, str) and is_table(table), "a table's name"),
    "shard": Field(lambda shard: isinstance(shard, str) and is_name(shard), "a shard's name"),
    "schema": text("([0-9a-f]{16})?", "16 hexadecimal digits"),
    "rows": whole(0),
    "sample_ids": distinct_numbers(MAX_INT, "a list of distinct sample ids"),
    "files": Field(lambda files: isinstance(files, list) and bool(files), "a list of files"),
    "made_by": Field(_is_made_by, "an object, with words and settings where those belong"),
}
_LATER_FIELDS = {"contents": Field(lambda body: isinstance(body, dict), "an object", True)}
_FILE_FIELDS = {"path": text(), "bytes": whole(0), "sha256": _SHA256}


def parse_record(body: Mapping[str, Any], version: int = FORMAT_VERSION) -> Record:
    """Return the record that a sealed file's fields describe.

    Raises:
        MalformedError: they do not describe one: a field is missing, unknown, of another type or
            out of range, or a path is not the one that follows from the table and the shard.
    """
    known = _FIELDS if version == 1 else _FIELDS | _LATER_FIELDS
    fields = closed(dict(body), known)
    files = tuple(FileEntry(**closed(entry, _FILE_FIELDS)) for entry in fields["files"])
    table, shard = fields["table"], fields["shard"]
    _check_paths(table, shard, [entry.path for entry in files])
    if bool(fields["schema"]) == (table == "saes"):
        raise MalformedError(f"schema is {fields['schema']!r}, which does not go with {table!r}")
    contents = fields.pop("contents", None)
    if contents is not None:
        if table == "saes":
            raise MalformedError("an SAE's record has contents")
        contents = parse_contents(contents, rows=fields["rows"], n_bytes=files[0].bytes)
        if (
            bool(contents.replaces) != bool(COMPACTED.fullmatch(shard))
            or shard in contents.replaces
        ):
            raise MalformedError(f"its name {shard[:80]!r} does not go with the shards it replaces")
    changed = {"files": files, "sample_ids": tuple(fields["sample_ids"]), "contents": contents}
    return Record(**{**fields, **changed})


def check_record(record: Record) -> None:
    """Refuse a record that no reader would take, before it is written.

    Raises:
        TableError: it is not one.
    """
    try:
        fields = {name: getattr(record, name) for name in _FIELDS}
        fields |= {
            "files": [asdict(entry) for entry in record.files],
            "sample_ids": list(record.sample_ids),
            "made_by": dict(record.made_by),
        }
        if record.contents is not None:
            fields["contents"] = record.contents.to_json()
        parse_record(fields)
    except MalformedError as error:
        raise TableError(f"{record.table}/{record.shard} cannot be committed: {error}.") from error


def _check_paths(table: str, shard: str, paths: list[str]) -> None:
    allowed = shard_files(table, shard)
    needed = allowed[:2] if table == "saes" else allowed
    for path in paths:
        if path not in allowed:
            raise MalformedError(
                f"path is {path[:80]!r}, expected {' or '.join(map(repr, allowed))}"
            )
    if len(set(paths)) < len(paths) or not set(needed) <= set(paths):
        raise MalformedError(f"its files are {', '.join(paths)}, expected {', '.join(needed)}")


def parse_sealed(data: bytes, path: Path | str) -> tuple[dict[str, Any], int]:
    """Return the fields of a file of sealed JSON, after its checksum and its format, and its
    version; ``path`` is its own.

    Raises:
        DamageError: it is not what was written.
        VersionError: it has another format version.
    """
    try:
        body = unsealed(data)
    except MalformedError as error:
        raise DamageError(f"{path}: changed since it was written ({error})") from error
    if body is None or body.pop("format", None) != FORMAT:
        raise DamageError(f"{path}: changed since it was written (its checksum does not match)")
    version = body.pop("format_version", None)
    if type(version) is not int or version not in READ_VERSIONS:
        raise VersionError(
            f"{path}: format version {version!r}, this program reads version "
            f"{' and '.join(map(str, READ_VERSIONS))}: "
            f"install the featurestore release that wrote it."
        )
    return body, version


class Mark(NamedTuple):
    """What marks a directory as a store."""

    run: dict[str, Any] | None
    version: int


def read_mark(root: Path) -> Mark:
    """Return the run settings and the format version in a store's mark.

    Raises:
        DamageError: it is not what was written.
        VersionError: it has another format version.
    """
    path = root / MARK
    try:
        fields, version = parse_sealed(read_inside(root, MARK, MAX_RECORD_BYTES), path)
        body = closed(fields, _MARK_FIELDS)
    except MalformedError as error:
        raise DamageError(f"{path}: {error}") from error
    return Mark(body["run"], version)


def read_record(root: Path, table: str, shard: str) -> Record:
    """Read a shard's commit record, which is valid at its own place only.

    Raises:
        DamageError: it is not what was written, or not a record of this shard.
        VersionError: it has another format version.
    """
    return read_placed_record(inside(root, f"manifest/{table}/{shard}.json"), table, shard)


def read_placed_record(path: Path | str, table: str, shard: str) -> Record:
    """Read a shard's commit record in a directory that was looked at; raises as
    :func:`read_record`."""
    return record_from(read_placed(path, MAX_RECORD_BYTES), path, table, shard)


def record_from(data: bytes, path: Path | str, table: str, shard: str) -> Record:
    """Return the record that ``path`` holds, as :func:`read_record` does; raises as it does."""
    try:
        record = parse_record(*parse_sealed(data, path))
    except MalformedError as error:
        raise DamageError(f"{path}: not a commit record: {error}") from error
    if (record.table, record.shard) != (table, shard):
        raise DamageError(f"{path}: is the record of {record.location}, not of what lies here")
    return record
