"""Who is writing what: names that a process holds while it lives, and what a dead one left.

A temporary file is locked for as long as it is written, so that the next writer can tell what a
killed process left from what another is writing just now.
"""

import contextlib
import fcntl
import os
import re
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path

from featurestore.format.durable.disk import disk_errors, make_missing
from featurestore.format.durable.places import check_links, store_of

TEMPORARY = re.compile(r"\.(.+)\.[0-9a-z]+\.(?:tmp|unpacking)")
"""names of what is being written: a file, or the directory of a store that is being unpacked"""


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
            check_links(path)
            make_missing(path.parent, sync=False)  # a claim need not outlive its process
            while True:
                descriptor = os.open(
                    path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644
                )
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                    # Who held it before has removed the file: then this lock is on a name that
                    # nobody sees.
                    if is_at(descriptor, path):
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


class Reading:
    """A store that is being read: as long as this exists, nobody takes away files of it that others
    have replaced.

    A shared lock on the store's mark; nothing is written. On a file system without locks nothing
    is held.
    """

    def __init__(self, mark: Path) -> None:
        self._descriptor = os.open(mark, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        self._close = weakref.finalize(self, os.close, self._descriptor)
        with contextlib.suppress(OSError):
            fcntl.flock(self._descriptor, fcntl.LOCK_SH)

    @contextlib.contextmanager
    def alone(self) -> Iterator[bool]:
        """Keep others from beginning to read while the block runs; yield False if somebody reads
        already, or nobody can tell."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
        finally:
            with contextlib.suppress(OSError):
                fcntl.flock(self._descriptor, fcntl.LOCK_SH)


def is_at(descriptor: int, path: Path) -> bool:
    """Say whether an open file is still the one at a path."""
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
        if not is_at(descriptor, path):
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


def clear_once(path: Path) -> None:
    """Clear the directory that ``path`` is to be written into, once in a process: all of it in a
    store."""
    status = path.parent.stat()
    if (status.st_dev, status.st_ino) not in _cleared:
        _cleared.add((status.st_dev, status.st_ino))
        clear_dead(path.parent, None if store_of(path) else path.name)
