"""Commit records: what a shard is, and that it exists (docs/format.md, section 2)."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from featurestore.errors import DamageError, TableError, VersionError
from featurestore.format.canonical import sealed, unsealed
from featurestore.format.contents import COMPACTED, Contents, parse_contents
from featurestore.format.gate import (
    MAX_INT,
    OBJECT,
    Field,
    MalformedError,
    closed,
    entries,
    inside,
    list_of,
    read_inside,
    real,
    scan,
    text,
    whole,
)
from featurestore.format.schemas import NAME
from featurestore.vocabulary import (
    FORMAT,
    FORMAT_VERSION,
    PLAIN_TABLES,
    READ_VERSIONS,
    TABLE_KINDS,
)

MARK = PurePosixPath("manifest/store.json")
SAE_FILES = ("config.json", "sae.safetensors", "metrics.json")
"""of ``saes/<name>``; the last is optional"""
MAX_RECORD_BYTES = 64 * 2**20
_MAX_NAME = 200


@dataclass(frozen=True)
class FileEntry:
    """A file of a shard."""

    path: str
    """relative to the store, with forward slashes"""
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Record:
    """The commit record of a shard."""

    table: str
    shard: str
    schema: str
    rows: int
    sample_ids: tuple[int, ...]
    files: tuple[FileEntry, ...]
    made_by: Mapping[str, Any] = field(default_factory=dict)
    contents: Contents | None = field(default_factory=lambda: None)
    """None in records of version 1, and of SAEs"""

    @property
    def location(self) -> Path:
        """Where the record lies, relative to the store."""
        return Path("manifest", *self.table.split("/"), f"{self.shard}.json")

    @property
    def version(self) -> int:
        """The format version that the record is of."""
        later = self.__dict__.get("_later")
        told = self.contents is not None if later is None else later.told
        return 2 if told else 1

    @property
    def covers(self) -> tuple[str, ...]:
        """The names of the shards whose rows these are: its own, or those that it replaces."""
        if "-with-" not in self.shard or self.contents is None:
            return (self.shard,)
        return (*self.contents.replaces, self.shard)

    def to_bytes(self) -> bytes:
        """Return the record as it is stored: one of version 1 as version 1 had it."""
        fields = {name: getattr(self, name) for name in _FIELDS}
        fields |= {"files": [asdict(entry) for entry in self.files], "made_by": dict(self.made_by)}
        if self.contents is not None:
            fields["contents"] = self.contents.to_json()
        return sealed({"format": FORMAT, "format_version": self.version, **fields})

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Return a field that a snapshot of records makes when it is asked for."""
            if "_later" not in self.__dict__:
                raise AttributeError(name)
            value = self.__dict__[name] = self.__dict__["_later"](name)
            return value


def is_name(name: str) -> bool:
    """Say whether a text can name a table's second part, or a shard."""
    return len(name) <= _MAX_NAME and NAME.fullmatch(name) is not None


def is_table(table: str) -> bool:
    """Say whether a text names a table: ``samples``, ``labels``, ``saes``, or a kind and a name."""
    kind, slash, name = table.partition("/")
    return table in (*PLAIN_TABLES, "saes") or bool(slash and kind in TABLE_KINDS and is_name(name))


def shard_files(table: str, shard: str) -> tuple[str, ...]:
    """Return the only paths that a shard's files can have, relative to the store."""
    if table == "saes":
        return tuple(f"saes/{shard}/{name}" for name in SAE_FILES)
    return (f"{table}/{shard}.parquet",)


_SHA256 = text("[0-9a-f]{64}", "64 hexadecimal digits")
_RUN = {
    "model": text(),
    "model_hash": text(optional=True),
    "scheduler": Field(lambda value: isinstance(value, (dict, str)), "an object", True),
    "n_steps": whole(1, 2**31 - 1, optional=True),
    "guidance": real(1e38, optional=True),
    "negative_prompt": text(optional=True),
    "dtype": text(optional=True),
}
"""settings of a run that are read again; others may stand beside them"""


def _is_run(run: Any) -> bool:
    if not isinstance(run, dict) or not run:
        return run is None or run == {}
    return all(
        field.fits(run[key]) if key in run else field.optional for key, field in _RUN.items()
    )


_MARK_FIELDS = {
    "run": Field(_is_run, "an object or null, with a model's name and numbers where numbers belong")
}
_FIELDS = {
    "table": Field(lambda table: isinstance(table, str) and is_table(table), "a table's name"),
    "shard": Field(lambda shard: isinstance(shard, str) and is_name(shard), "a shard's name"),
    "schema": text("([0-9a-f]{16})?", "16 hexadecimal digits"),
    "rows": whole(0),
    "sample_ids": list_of(whole(0, MAX_INT), "a list of distinct sample ids", distinct=True),
    "files": Field(lambda files: isinstance(files, list) and bool(files), "a list of files"),
    "made_by": OBJECT,
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
            told = record.contents.to_json()
            fields["contents"] = {**told, "replaces": list(told["replaces"])}
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


def parse_sealed(data: bytes, path: Path) -> tuple[dict[str, Any], int]:
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
    location = PurePosixPath("manifest", table, f"{shard}.json")
    return record_from(read_inside(root, location, MAX_RECORD_BYTES), root / location, table, shard)


def record_from(data: bytes, path: Path, table: str, shard: str) -> Record:
    """Return the record that ``path`` holds, as :func:`read_record` does; raises as it does."""
    try:
        record = parse_record(*parse_sealed(data, path))
    except MalformedError as error:
        raise DamageError(f"{path}: not a commit record: {error}") from error
    if (record.table, record.shard) != (table, shard):
        raise DamageError(f"{path}: is the record of {record.location}, not of what lies here")
    return record


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
                    f"knows. "
                    f"Run 'featurestore repair {root}', which sets it aside."
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
    directory = PurePosixPath("manifest", table)
    for entry in scan(root, directory):
        if (shard := _shard_of(root, directory, entry)) is not None:
            return shard
    return None


def compacted_shards(root: Path, table: str) -> list[str]:
    """Return the names of the shards of a table that hold the rows of others."""
    names = (entry.name for entry in scan(root, PurePosixPath("manifest", table)))
    return sorted(
        name[:-5]
        for name in names
        if name.endswith(".json") and "-with-" in name and COMPACTED.fullmatch(name[:-5])
    )


def _shard_of(root: Path, directory: PurePosixPath, entry: "os.DirEntry[str]") -> str | None:
    """Return the shard whose record a directory's entry is, or None."""
    if not entry.name.endswith(".json") or entry.name.startswith("."):
        return None
    shard = entry.name.removesuffix(".json")
    if entry.is_symlink():
        inside(root, directory / entry.name)
    if not is_name(shard):
        raise DamageError(f"{root / directory / entry.name}: no shard can have this name")
    return shard


def list_shards(root: Path, table: str) -> Iterator[str]:
    """Yield the names of the shards of a table that have a record, in their order.

    Raises:
        DamageError: the directory of records cannot be read, or one of them is a link or has no
            shard's name.
    """
    directory = PurePosixPath("manifest", table)
    for entry in entries(root, directory):
        if (shard := _shard_of(root, directory, entry)) is not None:
            yield shard
