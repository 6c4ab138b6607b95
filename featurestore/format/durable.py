"""The one module that writes to disk: files that are whole or absent, also after a power cut
(docs/format.md, section 3).

Nothing committed is ever replaced: a name is claimed before bytes are placed under it, and whoever
asks for a committed file to be written is refused. A temporary file is locked for as long as it is
written, so that the next writer can tell what a killed process left from what another is writing
just now.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from featurestore.errors import DiskError
from featurestore.format.gate import inside
from featurestore.format.records import MARK, SAE_FILES
from featurestore.vocabulary import PLAIN_TABLES, TABLE_KINDS

TEMPORARY = re.compile(r"\.(.+)\.[0-9a-z]+\.(?:tmp|unpacking)")
"""names of what is being written: a file, or the directory of a store that is being unpacked"""
LEDGER = "SHA256SUMS"
_READ_BYTES = 2**20
_FULL = (errno.ENOSPC, errno.EDQUOT)


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
    _refuse_in_store(path)
    return _write(path, write)


def place_file(path: Path, write: Callable[[BinaryIO], object]) -> Written:
    """Write a file that a record is to name, as :func:`write_file` does; the caller holds the
    shard's claim.

    Raises:
        DiskError: the operating system refused, or the shard is committed.
    """
    _refuse_committed(path)
    return _write(path, write)


def _write(path: Path, write: Callable[[BinaryIO], object]) -> Written:
    hashing = _HashingFile()
    with disk_errors(path, lambda: hashing.size), _temporary(path) as (temporary, file):
        hashing.file = file
        write(cast(BinaryIO, hashing))
        _sync(file)
        temporary.replace(path)
        _sync_directory(path.parent)
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
            _make_directory(scratch, sync=False)  # Nothing there is promised to stay.
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
            _sync(self._file)

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
        _refuse_committed(self.path)
        with disk_errors(self.path, lambda: self.size):
            _make_directory(self.path.parent)
            self._temporary.replace(self.path)
            _sync_directory(self.path.parent)

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


def hash_only(write: Callable[[BinaryIO], object]) -> Written:
    """Return what :func:`write_file` would return, writing nothing."""
    hashing = _HashingFile()
    with open(os.devnull, "wb") as file:  # noqa: PTH123
        hashing.file = file
        write(cast(BinaryIO, hashing))
    return Written(hashing.size, hashing.hexdigest())


class Claim:
    """A name that this process holds, in a file; the system drops it when the process ends in
    whatever way."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path, self._descriptor = path, descriptor

    @classmethod
    def take(cls, path: Path, wait: bool = False) -> "Claim | None":
        """Claim a name; if a living process holds it, wait for it, or return None.

        Raises:
            DiskError: the operating system refused, or the file system has no locks.
        """
        with disk_errors(path):
            _check_links(path)
            _make_directory(path.parent, sync=False)  # a claim need not outlive its process
            while True:
                descriptor = os.open(
                    path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644
                )
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                    # Who held it before has removed the file: then this lock is on a name that
                    # nobody sees.
                    if _is_at(descriptor, path):
                        return cls(path, descriptor)
                except BlockingIOError:
                    os.close(descriptor)
                    return None
                except BaseException:
                    os.close(descriptor)
                    raise
                os.close(descriptor)

    def release(self) -> None:
        """Let go of the name."""
        with contextlib.suppress(OSError):
            self._path.unlink()
        os.close(self._descriptor)

    def __enter__(self) -> "Claim":
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def clear_dead(directory: Path, name: str | None = None) -> list[str]:
    """Remove what killed processes left half-written in a directory; return the names.

    ``name``: only what was to become the file of that name. What a living process writes is locked,
    and stays.
    """
    removed = []
    try:
        with os.scandir(directory) as found:
            entries = [entry for entry in found if TEMPORARY.fullmatch(entry.name)]
    except OSError:
        return []
    for entry in entries:
        match = TEMPORARY.fullmatch(entry.name)
        if match and (name is None or match[1] == name) and _remove_dead(Path(entry.path)):
            removed.append(entry.name)
    return removed


def _remove_dead(path: Path) -> bool:
    """Remove a temporary file or directory unless somebody holds its lock; say whether it was."""
    try:
        kind = os.O_DIRECTORY if path.is_dir() else os.O_RDWR
        descriptor = os.open(path, kind | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_at(descriptor, path):
            return False
        # Removed under the lock: its writer, who may be waiting for it, then sees that it is gone.
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        return True
    except OSError:  # held, or a file system without locks: nobody can tell
        return False
    finally:
        os.close(descriptor)


_cleared: set[tuple[int, int]] = set()


def _clear_once(path: Path) -> None:
    """Clear the directory that ``path`` is to be written into, once in a process: all of it in a
    store."""
    status = path.parent.stat()
    if (status.st_dev, status.st_ino) not in _cleared:
        _cleared.add((status.st_dev, status.st_ino))
        clear_dead(path.parent, None if _store_of(path) else path.name)


def _store_of(path: Path) -> tuple[Path, Path] | None:
    """Return the root of the store that a path lies in, and the path below it; None elsewhere."""
    absolute = Path(os.path.abspath(path))  # noqa: PTH100
    for root in absolute.parents:
        if os.path.lexists(root / MARK):
            return root, absolute.relative_to(root)
    return None


def _check_links(path: Path) -> None:
    """Refuse, in a store, a path behind a symbolic link: it would be written somewhere else."""
    if (found := _store_of(path)) is not None:
        inside(found[0], found[1].parent.as_posix())


def _refuse_committed(path: Path) -> None:
    _check_links(path)
    found = _store_of(path)
    if found is not None and path.exists() and _is_committed(*found):
        raise DiskError(
            f"{path} is committed to the store {found[0]}, where nothing is ever replaced."
        )


def _refuse_in_store(path: Path) -> None:
    """Refuse to write, whoever asks, where a store has its records and data: what is there may be,
    or become, committed."""
    _check_links(path)
    # The second is another one where a link of the user's own leads into a store.
    for one in (path, path.parent.resolve() / path.name):
        found = _store_of(one)
        if found is not None and _is_shared(found[1]):
            raise DiskError(
                f"{path} lies where the store {found[0]} has its own files, of which none is ever "
                f"replaced: "
                f"name another file."
            )


def _is_shared(relative: Path) -> bool:
    """Say whether a path below a store's root is one for records or data."""
    first = relative.parts[0]
    if first == "saes":
        return len(relative.parts) != 3 or relative.name in SAE_FILES
    return first in ("manifest", *PLAIN_TABLES, *TABLE_KINDS)


def _is_committed(root: Path, relative: Path) -> bool:
    """Say whether a path below a store's root is a record, the mark, or a file that a record
    names."""
    first, *rest = relative.parts
    if first == "manifest":
        return relative.name != LEDGER
    if first == "saes":
        return (
            len(rest) == 2
            and rest[1] in SAE_FILES
            and (root / f"manifest/saes/{rest[0]}.json").exists()
        )
    return (
        relative.suffix == ".parquet"
        and (root / "manifest" / relative.with_suffix(".json")).exists()
    )


def make_directory(path: Path) -> None:
    """Create a directory and its parents, each synced into its own parent."""
    with disk_errors(path):
        _check_links(path)
        _make_directory(path)


def _make_directory(path: Path, sync: bool = True) -> None:
    missing = [p for p in (path, *path.parents) if not p.exists()]
    for directory in reversed(missing):
        directory.mkdir(exist_ok=True)
        if sync:
            _sync_directory(directory.parent)


@contextlib.contextmanager
def new_directory(path: Path, suffix: str) -> Iterator[Path]:
    """Make a hidden directory beside ``path``, locked while the block runs; what of it is left then
    is removed.

    The block renames it to ``path`` when it is whole. What killed processes left of the kind is
    removed first.
    """
    with disk_errors(path):
        _make_directory(path.parent)
        clear_dead(path.parent)
        partial = path.with_name(f".{path.name}.{secrets.token_hex(6)}.{suffix}")
        partial.mkdir()
        descriptor = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield partial
    finally:
        os.close(descriptor)
        shutil.rmtree(partial, ignore_errors=True)


def remove_tree(path: Path) -> None:
    """Remove a directory under a store's ``.work``, if it is there; nothing of it was promised."""
    _check_links(path)
    shutil.rmtree(path, ignore_errors=True)


def remove_empty(*directories: Path) -> None:
    """Remove directories, one after another, as far as they are empty."""
    with contextlib.suppress(OSError):
        for directory in directories:
            directory.rmdir()


def link_file(source: Path, target: Path) -> None:
    """Make ``target`` another name of a file, or a link to it where the file system has no hard
    links."""
    with disk_errors(target):
        _make_directory(target.parent, sync=False)
        try:
            os.link(source, target, follow_symlinks=False)
        except OSError:
            target.symlink_to(source.absolute())


def set_aside(path: Path, target: Path) -> None:
    """Move a file, a link or a directory to a name that is not taken, so that it is nowhere, or
    whole at either."""
    with disk_errors(target):
        _make_directory(target.parent)
        assert not os.path.lexists(target), "chosen so"
        path.rename(target)
        _sync_directory(target.parent)
        _sync_directory(path.parent)


def rename_directory(source: Path, target: Path) -> None:
    """Rename, within its parent, a directory whose files are durable: by :func:`write_file`, or
    :func:`sync_tree`."""
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
    _clear_once(path)
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
        try:
            with temporary.open("xb") as file:
                with contextlib.suppress(OSError):  # a file system without locks
                    fcntl.flock(file, fcntl.LOCK_EX)
                if not _is_at(file.fileno(), temporary):
                    continue  # taken for dead in the moment before it was locked
                yield temporary, file
                return
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def disk_errors(path: Path, n_bytes: Callable[[], int] = lambda: 0) -> Iterator[None]:
    """Turn an OSError of the block into a DiskError about ``path``, of which ``n_bytes()`` were to
    be written so far."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        advice = _advice(path, n_bytes()) if error.errno in _FULL else ""
        raise DiskError(
            f"cannot write {path}: {reason}; nothing half-written is left.{advice}"
        ) from error


def _advice(path: Path, needed: int) -> str:
    at_least = f" It needs at least {needed:,} bytes" if needed else " It needs space"
    existing = next(parent for parent in path.absolute().parents if parent.exists())
    free = shutil.disk_usage(existing).free
    return (
        f"{at_least}, {free:,} are free: free some and run the same command again, it goes on "
        f"where it stopped."
    )


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
