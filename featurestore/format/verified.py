"""What was compared with its record before, by this user: verification is paid once
(docs/reliability.md).

A small SQLite file outside of any store. An entry is a hash over device, inode, size, modification
and change time of a file, in nanoseconds, and the record that it was compared with: whatever writes
to a file, or replaces it, changes one of them. Nothing in it is needed: missing, damaged, locked or
another user's, files are compared again.
"""

import contextlib
import hashlib
import os
import sqlite3
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path

_TRUSTED = {
    "ext2",
    "ext3",
    "ext4",
    "xfs",
    "btrfs",
    "zfs",
    "f2fs",
    "bcachefs",
    "jfs",
    "tmpfs",
    "overlay",
    "apfs",
}
"""file systems whose inodes stay and whose change times nobody sets"""
_SETTLED_NS = 3 * 10**9
"""A younger file may change again within the clock's grain: it is not remembered."""
_AT_ONCE = 500


def cache_directory() -> Path:
    """Return the directory of what this user's programs may forget: ``FEATURESTORE_CACHE``, or that
    of the system; for a user without a home, such as one of a container, one of its own in the
    directory for temporary files."""
    named = os.environ.get("FEATURESTORE_CACHE")
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111
    if base.startswith("~"):
        return Path(tempfile.gettempdir(), f"featurestore-{os.geteuid()}")
    return Path(base, "featurestore")


def key_of(status: os.stat_result, record: bytes) -> bytes:
    """Return the key of a file of this status that was compared with a record."""
    numbers = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
    return hashlib.sha256(repr(numbers).encode() + record).digest()


def settled_before() -> int:
    """Return the time, in nanoseconds, before which a file must have changed last for a later
    change of it to show."""
    return time.time_ns() - _SETTLED_NS


def is_settled(status: os.stat_result, now_ns: int | None = None) -> bool:
    """Say whether a later change of a file must show; one from the future, after a clock went back,
    is not old enough."""
    limit = settled_before() if now_ns is None else now_ns - _SETTLED_NS
    return max(status.st_mtime_ns, status.st_ctime_ns) <= limit


def is_to_come(status: os.stat_result) -> bool:
    """Say whether a file was changed at a time that is still to come: the clock went back."""
    return max(status.st_mtime_ns, status.st_ctime_ns) > time.time_ns()


@cache
def why_not(root: Path) -> str | None:
    """Return why what was compared in a directory cannot be remembered, or None."""
    kind = _file_system(root.resolve())
    if kind not in _TRUSTED:
        return f"on the file system {kind} an unchanged file cannot be told from a changed one"
    directory = cache_directory()
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = directory.lstat()
    except OSError as error:
        return f"{directory} cannot be used ({error.strerror})"
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        return f"{directory} is not a directory that only you can write to"
    return None


def _file_system(path: Path) -> str:
    """Return the name of the kind of file system that a directory lies on."""
    try:
        lines = (
            Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        )
    except OSError:
        return "apfs" if sys.platform == "darwin" else "of unknown kind"
    best, kind = "", "of unknown kind"
    for line in lines:
        before, _, after = line.partition(" - ")
        point = before.split(" ")[4].replace("\\040", " ")
        if (path.is_relative_to(point)) and len(point) >= len(best):
            best, kind = point, after.split(" ")[0]
    return kind


def known(keys: Sequence[bytes]) -> set[bytes]:
    """Return those of the keys that were remembered."""
    found: set[bytes] = set()

    def look(database: sqlite3.Connection) -> None:
        for first in range(0, len(keys), _AT_ONCE):
            part = keys[first : first + _AT_ONCE]
            places = ",".join("?" * len(part))
            found.update(
                key
                for (key,) in database.execute(
                    f"select key from verified where key in ({places})", part
                )
            )

    _use(look)
    return found


def remember(keys: Iterable[bytes]) -> None:
    """Remember keys; of several processes that do so at once, each adds its own."""
    rows = [(key,) for key in keys]
    _use(lambda database: database.executemany("insert or ignore into verified values (?)", rows))


def _use(work: Callable[[sqlite3.Connection], object]) -> None:
    """Let ``work`` use the cache in one transaction, if there is one; a damaged one is made anew
    next time."""
    path = cache_directory() / "verified-1.sqlite"
    try:
        if path.is_symlink():
            return
        with contextlib.closing(sqlite3.connect(path, timeout=5)) as database, database:
            database.execute(
                "create table if not exists verified (key blob primary key) without rowid"
            )
            work(database)
    except sqlite3.OperationalError:  # locked, full or read-only: nothing of it is needed
        return
    except sqlite3.DatabaseError:
        path.unlink(missing_ok=True)
