"""A store as one file, ``.tar.zst``, for people without a hub (docs/sharing.md)."""

import functools
import hashlib
import io
import json
import secrets
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, cast

import zstandard

from featurestore.errors import DamageError, ShareError
from featurestore.format import durable
from featurestore.format.canonical import canonical_json
from featurestore.format.records import FileEntry
from featurestore.sharing.snapshot import data_files, is_safe, record_files
from featurestore.store import Store

FORMAT = "featurestore-bundle"
VERSION = 1
LIST = "bundle.json"
_LEVEL = 1
_THREADS = 2
_CHUNK = 2**20
Progress = Callable[[int], object]


def pack(store: Store, out: Path, progress: Progress = lambda n: None) -> durable.Written:
    """Write a store's committed files into one file; the same store gives the same bytes. ``progress`` gets bytes read.

    Raises:
        DamageError: a file is not what its record says; nothing was written.
        DiskError: the operating system refused.
    """
    entries = [*data_files(store), *record_files(store)]
    listed = [{"path": e.path, "bytes": e.bytes, "sha256": e.sha256} for e in entries]
    head = (canonical_json({"format": FORMAT, "format_version": VERSION, "files": listed}) + "\n").encode()

    def write(file: BinaryIO) -> None:
        compressor = zstandard.ZstdCompressor(level=_LEVEL, threads=_THREADS, write_checksum=True)
        with compressor.stream_writer(file, closefd=False) as packed, _tar(packed, "w|") as tar:
            tar.addfile(_member(LIST, len(head)), io.BytesIO(head))
            for entry in entries:
                _add(tar, store.root, entry, progress)

    return durable.write_file(out, write)


def _tar(stream: Any, mode: str) -> tarfile.TarFile:
    return tarfile.open(fileobj=cast(Any, stream), mode=cast(Any, mode), format=tarfile.PAX_FORMAT, bufsize=_CHUNK)


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
    path = root / entry.path
    if not path.is_file() or path.stat().st_size != entry.bytes:
        raise DamageError(
            f"{path} is missing or has another size than its record says: run 'featurestore verify {root}'."
        )
    with path.open("rb") as file:
        checked = _Checked(file, progress)
        tar.addfile(_member(entry.path, entry.bytes), cast(BinaryIO, checked))
    if checked.hash.hexdigest() != entry.sha256:
        raise DamageError(f"{path} was changed since it was written: run 'featurestore verify {root}'.")


def unpack(bundle: Path, out: Path, progress: Progress = lambda n: None) -> Store:
    """Write the store of a bundle to a new directory, whole or not at all. ``progress`` gets bytes written.

    Raises:
        ShareError: the file is no bundle, is cut short, or holds anything but what its list says; or ``out`` exists.
        DiskError: the operating system refused.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ShareError(f"{out} exists: name a new directory.")
    partial = out.with_name(f".{out.name}.{secrets.token_hex(6)}.unpacking")
    try:
        with bundle.open("rb") as file:
            _unpack(file, partial, progress)
        store = Store.open(partial)
        if out.exists():
            out.rmdir()
        durable.make_directory(out.parent)
        durable.rename_directory(partial, out)
        return Store(out, store.run)
    except FileNotFoundError as error:
        raise ShareError(f"{bundle} cannot be read: {error.strerror}.") from error
    except (tarfile.TarError, zstandard.ZstdError, EOFError) as error:
        raise ShareError(f"{bundle} is no bundle, or cut short ({error}): nothing was written to {out}.") from error
    except _WrongError as error:
        raise ShareError(f"{bundle}: {error}; nothing was written to {out}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


class _WrongError(Exception):
    """What is wrong with a bundle."""


def _unpack(file: BinaryIO, directory: Path, progress: Progress) -> None:
    with zstandard.ZstdDecompressor().stream_reader(file) as stream, _tar(stream, "r|") as tar:
        expected = _listed(tar, tar.next())
        for entry in expected:
            member = tar.next()
            if member is None:
                raise _WrongError(f"it ends before {entry.path}")
            if member.name != entry.path or not member.isreg() or member.size != entry.bytes:
                raise _WrongError(f"it holds {member.name!r} where its list says {entry.path!r} of {entry.bytes} bytes")
            content = tar.extractfile(member)
            assert content is not None, "a regular file"
            checked = _Checked(cast(BinaryIO, content), progress)
            copy = functools.partial(shutil.copyfileobj, cast(BinaryIO, checked), length=_CHUNK)
            written = durable.write_file(directory / entry.path, copy)
            if written.sha256 != entry.sha256:
                raise _WrongError(f"{entry.path} is not what was packed: its SHA-256 differs")
        if (extra := tar.next()) is not None:
            raise _WrongError(f"it holds {extra.name!r}, which its list does not name")


def _listed(tar: tarfile.TarFile, first: tarfile.TarInfo | None) -> list[FileEntry]:
    content = tar.extractfile(first) if first is not None and first.name == LIST and first.isreg() else None
    try:
        body = json.loads(content.read()) if content is not None else {}
        if body["format"] != FORMAT or body["format_version"] != VERSION:
            raise _WrongError(
                f"a {body['format']} of version {body['format_version']}; this program reads version {VERSION}"
            )
        entries = [FileEntry(str(e["path"]), int(e["bytes"]), str(e["sha256"])) for e in body["files"]]
    except (KeyError, TypeError, ValueError) as error:
        raise _WrongError("it does not begin with the list of a bundle") from error
    paths = [entry.path for entry in entries]
    unsafe = [path for path in paths if not is_safe(path)]
    if unsafe or len(set(paths)) < len(paths):
        raise _WrongError(
            f"its list names {unsafe[0]!r}, which leads out of it" if unsafe else "its list names a file twice"
        )
    return entries
