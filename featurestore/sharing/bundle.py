"""A store as one file, ``.tar.zst``, for people without a hub (docs/sharing.md)."""

import contextlib
import functools
import hashlib
import io
import os
import shutil
import stat
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

import zstandard

from featurestore.errors import DamageError, NotAStoreError, ShareError, VersionError
from featurestore.format import durable
from featurestore.format.canonical import canonical_json
from featurestore.format.gate import (
    Field,
    MalformedError,
    closed,
    inside,
    parse_json,
    short,
    text,
    whole,
)
from featurestore.format.records import FileEntry
from featurestore.sharing.snapshot import (
    MAX_LIST_BYTES,
    check_contents,
    data_files,
    is_shared,
    record_files,
    refuse_existing,
)
from featurestore.sharing.tar import Member, members
from featurestore.store import Store

FORMAT = "featurestore-bundle"
VERSION = 2
"""version 1 had no croissant.json; both are read"""
LIST = "bundle.json"
_LEVEL = 1
_THREADS = 2
_CHUNK = 2**20
_MAX_WINDOW = 2**27
"""bytes that a decompressor may keep; `pack` needs 512 kB, other levels of zstd up to 128 MB"""
_LIST_BYTES_PER_BYTE = 16
"""The list is mostly checksums, which do not compress: half of each line's 64 digits remain."""
Progress = Callable[[int], object]


def pack(store: Store, out: Path, progress: Progress = lambda n: None) -> durable.Written:
    """Write a store's committed files into one file; the same store gives the same bytes.
    ``progress`` gets bytes read.

    Raises:
        DamageError: a file is not what its record says; nothing was written.
        DiskError: the operating system refused.
    """
    entries = [*data_files(store), *record_files(store)]
    listed = [{"path": e.path, "bytes": e.bytes, "sha256": e.sha256} for e in entries]
    head = (
        canonical_json({"format": FORMAT, "format_version": VERSION, "files": listed}) + "\n"
    ).encode()

    def write(file: BinaryIO) -> None:
        compressor = zstandard.ZstdCompressor(level=_LEVEL, threads=_THREADS, write_checksum=True)
        with compressor.stream_writer(file, closefd=False) as packed, _tar(packed) as tar:
            tar.addfile(_member(LIST, len(head)), io.BytesIO(head))
            for entry in entries:
                _add(tar, store.root, entry, progress)

    return durable.write_file(out, write)


def _tar(stream: Any) -> tarfile.TarFile:
    return tarfile.open(
        fileobj=cast(Any, stream), mode="w|", format=tarfile.PAX_FORMAT, bufsize=_CHUNK
    )


def _member(path: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(path)
    member.size, member.mode = size, 0o644
    return member


class _Checked:
    """A file that is hashed while it is read."""

    def __init__(self, file: BinaryIO, progress: Progress) -> None:
        self._file, self._progress = file, progress
        self.hash = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.hash.update(data)
        self._progress(len(data))
        return data


def _add(tar: tarfile.TarFile, root: Path, entry: FileEntry, progress: Progress) -> None:
    path = inside(root, entry.path)
    if not path.is_file() or path.stat().st_size != entry.bytes:
        raise DamageError(
            f"{path} is missing or has another size than its record says: run 'featurestore "
            f"verify {root}'."
        )
    with path.open("rb") as file:
        checked = _Checked(file, progress)
        tar.addfile(_member(entry.path, entry.bytes), cast(BinaryIO, checked))
    if checked.hash.hexdigest() != entry.sha256:
        raise DamageError(
            f"{path} was changed since it was written: run 'featurestore verify {root}'."
        )


def unpack(bundle: Path, out: Path, progress: Progress = lambda n: None) -> Store:
    """Write the store of a bundle to a new directory, whole or not at all. ``progress`` gets bytes
    written.

    Nothing of the bundle is held in memory but its list, and that only as far as a bundle of its
    size can have one.

    Raises:
        ShareError: the file is no bundle, is cut short, holds anything but what its list says, or
            what it holds is no store; or ``out`` exists.
        DiskError: the operating system refused, or the disk has not enough space.
    """
    refuse_existing(out)
    try:
        with _opened(bundle) as file, durable.new_directory(out, "unpacking") as partial:
            listed = _unpack(file, partial, progress)
            store = Store.open(partial)
            check_contents(store, listed)
            if out.exists():
                out.rmdir()
            durable.rename_directory(partial, out)
            return Store(out, store.run)
    except (tarfile.TarError, zstandard.ZstdError, EOFError, UnicodeError) as error:
        raise ShareError(
            f"{bundle} is no bundle, or cut short ({error}): nothing was written to {out}."
        ) from error
    except _WrongError as error:
        raise ShareError(f"{bundle}: {error}; nothing was written to {out}.") from error
    except (DamageError, VersionError, NotAStoreError) as error:
        raise ShareError(
            f"{bundle} holds no sound store ({error}); nothing was written to {out}."
        ) from error


@contextlib.contextmanager
def _opened(bundle: Path) -> Iterator[BinaryIO]:
    try:
        regular = stat.S_ISREG(bundle.stat().st_mode)
        file = bundle.open("rb") if regular else None
    except OSError as error:
        raise ShareError(f"{bundle} cannot be read: {error.strerror}.") from error
    if file is None:
        raise ShareError(f"{bundle} is not a file: expected what 'featurestore pack' writes.")
    with file:
        yield file


class _WrongError(Exception):
    """What is wrong with a bundle."""


def _unpack(file: BinaryIO, directory: Path, progress: Progress) -> dict[str, FileEntry]:
    """Write a bundle's files into a directory; return what its list says of each."""
    size = os.fstat(file.fileno()).st_size
    with zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW).stream_reader(file) as stream:
        found = members(stream)
        expected = _listed(
            next(found, None), min(MAX_LIST_BYTES, _LIST_BYTES_PER_BYTE * size + _CHUNK)
        )
        _check_space(directory, sum(entry.bytes for entry in expected))
        for entry in expected:
            member = next(found, None)
            if member is None:
                raise _WrongError(f"it ends before {entry.path}")
            if member.name != entry.path or member.size != entry.bytes:
                raise _WrongError(
                    f"it holds {member.name[:80]!r} where its list says {entry.path!r} of "
                    f"{entry.bytes} bytes"
                )
            checked = _Checked(cast(BinaryIO, member.content), progress)
            copy = functools.partial(shutil.copyfileobj, cast(BinaryIO, checked), length=_CHUNK)
            written = durable.place_file(directory / entry.path, copy)
            if written.sha256 != entry.sha256:
                raise _WrongError(f"{entry.path} is not what was packed: its SHA-256 differs")
        if (extra := next(found, None)) is not None:
            raise _WrongError(f"it holds {extra.name[:80]!r}, which its list does not name")
    return {entry.path: entry for entry in expected}


def _check_space(directory: Path, needed: int) -> None:
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise _WrongError(f"it holds {needed:,} bytes, {free:,} are free on the disk")


_LIST = {
    "format": text(),
    "format_version": whole(0),
    "files": Field(lambda f: isinstance(f, list), "a list"),
}
_ENTRY = {
    "path": text(),
    "bytes": whole(0),
    "sha256": text("[0-9a-f]{64}", "64 hexadecimal digits"),
}


def _listed(first: Member | None, limit: int) -> list[FileEntry]:
    if first is None or first.name != LIST:
        raise _WrongError("it does not begin with the list of a bundle")
    if first.size > limit:
        raise _WrongError(
            f"its list has {first.size:,} bytes, a bundle of this size has at most {limit:,}"
        )
    try:
        body = parse_json(first.content.read())
        if (
            isinstance(body, dict)
            and body.get("format") == FORMAT
            and body.get("format_version") not in range(1, VERSION + 1)
        ):
            found = f"a {FORMAT} of version {short(body.get('format_version'))}"
            raise _WrongError(f"{found}; this program reads 1 to {VERSION}")
        entries = [FileEntry(**closed(entry, _ENTRY)) for entry in closed(body, _LIST)["files"]]
    except MalformedError as error:
        raise _WrongError(f"it does not begin with the list of a bundle: {error}") from error
    if body["format"] != FORMAT:
        raise _WrongError("it does not begin with the list of a bundle")
    for entry in entries:
        if not is_safe(entry.path):
            raise _WrongError(f"its list names {entry.path[:80]!r}, which leads out of it")
    if len({entry.path for entry in entries}) < len(entries):
        raise _WrongError("its list names a file twice")
    for entry in entries:
        if not is_shared(entry.path):
            raise _WrongError(f"its list names {entry.path[:80]!r}, which is no file of a store")
    return entries


def is_safe(path: str) -> bool:
    """Say whether a path read from somewhere else stays below the directory that it is joined
    to."""
    parts = PurePosixPath(path).parts
    return bool(parts) and parts[0] != "/" and ".." not in parts and "\0" not in path
