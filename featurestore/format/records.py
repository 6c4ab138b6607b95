"""Commit records: what a shard is, and that it exists (docs/format.md, section 2)."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from featurestore.errors import DamageError, VersionError
from featurestore.format.canonical import sealed, unsealed
from featurestore.vocabulary import FORMAT, FORMAT_VERSION


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

    @property
    def location(self) -> Path:
        """Where the record lies, relative to the store."""
        return Path("manifest", *self.table.split("/"), f"{self.shard}.json")

    def to_bytes(self) -> bytes:
        """Return the record as it is stored."""
        return sealed({"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self)})


def read_sealed(path: Path) -> dict[str, Any]:
    """Read a file of sealed JSON and check its checksum, its format and its version.

    Raises:
        DamageError: it is not what was written.
        VersionError: it has another format version.
    """
    try:
        body = unsealed(path.read_bytes())
    except OSError as error:
        raise DamageError(f"{path}: cannot be read ({error.strerror})") from error
    if body is None or body.pop("format", None) != FORMAT:
        raise DamageError(f"{path}: changed since it was written (its checksum does not match)")
    version = body.pop("format_version", None)
    if version != FORMAT_VERSION:
        raise VersionError(
            f"{path}: format version {version!r}, this program reads version {FORMAT_VERSION}: "
            f"install the featurestore release that wrote it."
        )
    return body


def read_record(path: Path) -> Record:
    """Read a commit record.

    Raises:
        DamageError: it is not what was written.
        VersionError: it has another format version.
    """
    body = read_sealed(path)
    try:
        files = tuple(FileEntry(**entry) for entry in body.pop("files"))
        return Record(files=files, sample_ids=tuple(body.pop("sample_ids")), **body)
    except (KeyError, TypeError) as error:
        raise DamageError(f"{path}: not a commit record ({error})") from error
