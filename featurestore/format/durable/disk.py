"""The operating system: what it refuses, in our words, and what it is made to keep."""

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from featurestore.errors import DiskError

_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def disk_errors(path: Path, n_bytes: Callable[[], int] = lambda: 0) -> Iterator[None]:
    """Turn an OSError of the block into a DiskError about ``path``; ``n_bytes()`` says how much was
    to be written to it so far."""
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
    free = shutil.disk_usage(nearest_existing(path.parent)).free
    return (
        f"{at_least}, {free:,} are free: free some and run the same command again, it goes on "
        f"where it stopped."
    )


def nearest_existing(path: Path) -> Path:
    """Return a path if something is there, or else the nearest directory above it that exists."""
    return next(p for p in (path, *path.absolute().parents) if p.exists())


def sync_file(file: BinaryIO) -> None:
    """Have the disk keep what was written to a file."""
    file.flush()
    os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Have the disk keep which names a directory holds."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_missing(path: Path, sync: bool = True) -> None:
    """Make a directory and those above it that are missing, each synced into its own parent."""
    missing = [p for p in (path, *path.parents) if not p.exists()]
    for directory in reversed(missing):
        directory.mkdir(exist_ok=True)
        if sync:
            sync_directory(directory.parent)
