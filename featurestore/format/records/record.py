"""Commit records: what a shard is, and that it exists (docs/format.md, section 2)."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore.format.canonical import sealed
from featurestore.format.contents import Contents
from featurestore.vocabulary import FORMAT


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
    def n_bytes(self) -> int:
        """The size of the files together, in bytes."""
        return sum(entry.bytes for entry in self.files)

    @property
    def version(self) -> int:
        """The format version of the record."""
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
        body = {own.name: getattr(self, own.name) for own in fields(self) if own.name != "contents"}
        body |= {"files": [asdict(entry) for entry in self.files], "made_by": dict(self.made_by)}
        if self.contents is not None:
            body["contents"] = self.contents.to_json()
        return sealed({"format": FORMAT, "format_version": self.version, **body})

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Return a field that a snapshot of records makes when it is asked for."""
            if "_later" not in self.__dict__:
                raise AttributeError(name)
            value = self.__dict__[name] = self.__dict__["_later"](name)
            return value
