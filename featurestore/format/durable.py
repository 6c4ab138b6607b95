"""The one module that writes to disk: files that are whole or absent, also after a power cut (docs/format.md, section 3)."""

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from featurestore.errors import DiskError

TEMPORARY_SUFFIX = ".tmp"
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Written(NamedTuple):
    """What was written: the size and the SHA-256 of the bytes handed to the operating system."""

    bytes: int
    sha256: str


class _HashingFile:
    """A binary file that hashes what is written to it; append-only, so the hash is that of the file."""

    def __init__(self) -> None:
        self.file: BinaryIO | None = None
        self._hash = hashlib.sha256()
        self.size = 0
        self.closed = False

    def write(self, data: bytes) -> int:
        assert self.file is not None, "opened"
        view = memoryview(data).cast("B")
        self.size += len(view)
        self._hash.update(view)
        self.file.write(view)
        return len(view)

    def tell(self) -> int:
        return self.size

    def flush(self) -> None:
        assert self.file is not None, "opened"
        self.file.flush()

    def close(self) -> None:
        """Leave the file open: the caller flushes, syncs and closes it."""

    def readable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def write_file(path: Path, write: Callable[[BinaryIO], object]) -> Written:
    """Write a file through ``write(file)`` so that ``path`` holds all of it or what it held before.

    The directory is created if it is missing. ``write`` may only append.

    Raises:
        DiskError: the operating system refused; the temporary file is gone.
    """
    hashing = _HashingFile()
    with disk_errors(path, lambda: hashing.size), _temporary(path) as (temporary, file):
        hashing.file = file
        write(cast(BinaryIO, hashing))
        _sync(file)
        temporary.replace(path)
        _sync_directory(path.parent)
        return Written(hashing.size, hashing.hexdigest())


def write_bytes(path: Path, data: bytes) -> Written:
    """Write ``data`` as :func:`write_file` does."""
    return write_file(path, lambda file: file.write(data))


def create_once(path: Path, data: bytes) -> bool:
    """Create ``path`` with ``data`` if it does not exist, atomically among all processes; return whether it was created.

    Raises:
        DiskError: the operating system refused, or the file system has no hard links.
    """
    with disk_errors(path), _temporary(path) as (temporary, file):
        file.write(data)
        _sync(file)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        _sync_directory(path.parent)
        return True


def remove(path: Path) -> None:
    """Remove a file if it exists, and sync its directory."""
    with disk_errors(path):
        path.unlink(missing_ok=True)
        if path.parent.is_dir():
            _sync_directory(path.parent)


def make_directory(path: Path) -> None:
    """Create a directory and its parents, each synced into its own parent."""
    with disk_errors(path):
        _make_directory(path)


def _make_directory(path: Path) -> None:
    missing = [p for p in (path, *path.parents) if not p.exists()]
    for directory in reversed(missing):
        directory.mkdir(exist_ok=True)
        _sync_directory(directory.parent)


def rename_directory(source: Path, target: Path) -> None:
    """Rename, within its parent, a directory whose files are durable: by :func:`write_file`, or :func:`sync_tree`."""
    with disk_errors(target):
        source.rename(target)
        _sync_directory(target.parent)


def sync_tree(path: Path) -> None:
    """Make durable what another program wrote into a directory."""
    with disk_errors(path):
        for directory, _, names in os.walk(path):
            for name in names:
                with Path(directory, name).open("rb") as file:
                    os.fsync(file.fileno())
            _sync_directory(Path(directory))


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[tuple[Path, BinaryIO]]:
    _make_directory(path.parent)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}{TEMPORARY_SUFFIX}")
    try:
        with temporary.open("xb") as file:
            yield temporary, file
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def disk_errors(path: Path, n_bytes: Callable[[], int] = lambda: 0) -> Iterator[None]:
    """Turn an OSError of the block into a DiskError about ``path``, of which ``n_bytes()`` were to be written so far."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        advice = _advice(path, n_bytes()) if error.errno in _FULL else ""
        raise DiskError(f"cannot write {path}: {reason}; nothing half-written is left.{advice}") from error


def _advice(path: Path, needed: int) -> str:
    at_least = f" It needs at least {needed:,} bytes" if needed else " It needs space"
    existing = next(parent for parent in path.absolute().parents if parent.exists())
    free = shutil.disk_usage(existing).free
    return f"{at_least}, {free:,} are free: free some and run the same command again, it goes on where it stopped."


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
