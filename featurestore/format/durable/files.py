"""Files that are whole or absent, also after a power cut (docs/format.md, section 3)."""

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from featurestore.format.durable.claims import clear_once, is_at
from featurestore.format.durable.directories import remove_empty
from featurestore.format.durable.disk import disk_errors, make_missing, sync_directory, sync_file
from featurestore.format.durable.places import refuse_committed, refuse_in_store

_READ_BYTES = 2**20


class Written(NamedTuple):
    """What was written: the size and the SHA-256 of the bytes handed to the operating system."""

    bytes: int
    sha256: str


class _HashingFile:
    """A binary file that hashes what is written to it; append-only, so the hash is that of the
    file."""

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
        DiskError: the operating system refused, and the temporary file is gone; or ``path`` is one
            where a store has its records and data.
    """
    refuse_in_store(path)
    return _write(path, write)


def check_file(path: Path) -> None:
    """Refuse a path where :func:`write_file` could not write, before what is to stand there is
    computed for long; nothing is left there.

    Raises:
        DiskError: as :func:`write_file`.
    """
    refuse_in_store(path)
    with disk_errors(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        missing = [parent for parent in path.parents if not parent.exists()]
        with _temporary(path):
            pass
    remove_empty(*missing)


def place_file(path: Path, write: Callable[[BinaryIO], object]) -> Written:
    """Write a file that a record is to name, as :func:`write_file` does; the caller holds the
    shard's claim.

    Raises:
        DiskError: the operating system refused, or the shard is committed.
    """
    refuse_committed(path)
    return _write(path, write)


def _write(path: Path, write: Callable[[BinaryIO], object]) -> Written:
    hashing = _HashingFile()
    with disk_errors(path, lambda: hashing.size), _temporary(path) as (temporary, file):
        hashing.file = file
        write(cast(BinaryIO, hashing))
        sync_file(file)
        temporary.replace(path)
        sync_directory(path.parent)
        return Written(hashing.size, hashing.hexdigest())


class AnyOrderFile:
    """A file that is written in any order: whole at its path after :meth:`seal` and :meth:`place`,
    else not there.

    Until then it lies in the directory ``scratch`` of the same file system. Not for several threads
    at once.

    Raises:
        DiskError: the operating system refused; :meth:`close` removes the temporary file.
    """

    def __init__(self, path: Path, scratch: Path) -> None:
        self.path, self.size = path, 0
        self._stack = contextlib.ExitStack()
        with disk_errors(path):
            make_missing(scratch, sync=False)  # Nothing there is promised to stay.
            self._temporary, self._file = self._stack.enter_context(_temporary(scratch / path.name))

    def put(self, offset: int, data: bytes | memoryview) -> None:
        """Write ``data`` at an offset."""
        self.size = max(self.size, offset + len(data))
        with disk_errors(self.path, lambda: self.size):
            self._file.seek(offset)
            self._file.write(data)

    def settle(self) -> None:
        """Have the disk take what was written so far, so that little is left for the end."""
        with disk_errors(self.path, lambda: self.size):
            sync_file(self._file)

    def read(self, start: int, end: int) -> Iterator[memoryview]:
        """Yield what was written between two offsets, in parts that are valid until the next."""
        with disk_errors(self.path), self._temporary.open("rb", buffering=0) as file:
            self._file.flush()
            file.seek(start)
            buffer = memoryview(bytearray(_READ_BYTES))
            while start < end:
                n = file.readinto(buffer[: end - start])
                if not n:
                    raise OSError(errno.EIO, "the end of the file came too soon")
                yield buffer[:n]
                start += n

    def seal(self) -> Written:
        """Hash and sync what was written."""
        hashed = hashlib.sha256()
        for part in self.read(0, self.size):
            hashed.update(part)
        self.settle()
        return Written(self.size, hashed.hexdigest())

    def place(self) -> None:
        """Move the file, once sealed, to its path.

        Raises:
            DiskError: the operating system refused, or the path is a committed file.
        """
        refuse_committed(self.path)
        with disk_errors(self.path, lambda: self.size):
            make_missing(self.path.parent)
            self._temporary.replace(self.path)
            sync_directory(self.path.parent)

    def close(self) -> None:
        """Remove the temporary file, unless it was moved."""
        with disk_errors(self.path):
            self._stack.close()


def write_bytes(path: Path, data: bytes) -> Written:
    """Write ``data`` as :func:`write_file` does."""
    return write_file(path, lambda file: file.write(data))


def create_once(path: Path, data: bytes) -> bool:
    """Create ``path`` with ``data`` if it does not exist, atomically among all processes; return
    whether it was created.

    Raises:
        DiskError: the operating system refused, or the file system has no hard links.
    """
    with disk_errors(path), _temporary(path) as (temporary, file):
        file.write(data)
        sync_file(file)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        sync_directory(path.parent)
        return True


def remove(path: Path) -> None:
    """Remove a file if it exists, and sync its directory."""
    with disk_errors(path):
        path.unlink(missing_ok=True)
        if path.parent.is_dir():
            sync_directory(path.parent)


def remove_all(paths: Iterable[Path]) -> None:
    """Remove files, those that exist, and then sync each directory once."""
    directories = set()
    for path in paths:
        with disk_errors(path):
            path.unlink(missing_ok=True)
        directories.add(path.parent)
    for directory in sorted(directories):
        with disk_errors(directory):
            if directory.is_dir():
                sync_directory(directory)


def hash_only(write: Callable[[BinaryIO], object]) -> Written:
    """Return what :func:`write_file` would return, writing nothing."""
    hashing = _HashingFile()
    with open(os.devnull, "wb") as file:  # noqa: PTH123
        hashing.file = file
        write(cast(BinaryIO, hashing))
    return Written(hashing.size, hashing.hexdigest())


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[tuple[Path, BinaryIO]]:
    if not path.name:  # "." or "/": no file can lie beside it under a name of its own
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    make_missing(path.parent)
    clear_once(path)
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
        try:
            with temporary.open("xb") as file:
                with contextlib.suppress(OSError):  # a file system without locks
                    fcntl.flock(file, fcntl.LOCK_EX)
                if not is_at(file.fileno(), temporary):
                    continue  # taken for dead in the moment before it was locked
                yield temporary, file
                return
        finally:
            temporary.unlink(missing_ok=True)
