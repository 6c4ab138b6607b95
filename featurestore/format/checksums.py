"""Files against their commit records: nothing is read that is not what was written."""

import hashlib
import os
import stat
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from featurestore.errors import DamageError
from featurestore.format.footers import check_footer
from featurestore.format.gate import inside
from featurestore.format.records import FileEntry, Record

_SHOWN_BYTES = 8 * 10**9
_READ_BYTES = 2**20
Key = tuple[str, int, int, int, int, int, str]
_checked: set[Key] = set()


def forget() -> None:
    """Forget which files were checked: the next reader compares them anew."""
    _checked.clear()


def check_file(root: Path, entry: FileEntry) -> str | None:
    """Return what is wrong with a file (absent, a link, unreadable, size, SHA-256), or None."""
    try:
        path = inside(root, entry.path)
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb", buffering=0) as file:  # noqa: PTH123 - a descriptor
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                return "is not a regular file"
            if status.st_size != entry.bytes:
                return f"has {status.st_size} bytes, its record says {entry.bytes}"
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except (FileNotFoundError, NotADirectoryError):
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except DamageError as error:
        return str(error).partition(" ")[2].removesuffix(".")
    if digest != entry.sha256:
        return f"was changed: its SHA-256 is {digest[:12]}…, its record says {entry.sha256[:12]}…"
    return None


def check_shard(root: Path, record: Record, entry: FileEntry) -> str | None:
    """Return what is wrong with a file of a shard: what :func:`check_file` finds, or its Parquet footer."""
    wrong = check_file(root, entry)
    if wrong is None and entry.path.endswith(".parquet"):
        wrong = check_footer(root / entry.path, record)
    return wrong


def check_shards(root: Path, records: Iterable[Record]) -> None:
    """Compare the files of shards with their records, each once in a process unless it is replaced.

    Above 8 GB with a progress bar.

    Raises:
        DamageError: a file is not what its record says; the first five such files are named.
    """
    pairs = [(record, entry) for record in records for entry in record.files]
    keyed = [
        (record, entry, key) for record, entry in pairs if (key := _key(root, entry)) is None or key not in _checked
    ]
    if not keyed:
        return
    n_bytes = sum(entry.bytes for _, entry, _ in keyed)
    problems: list[str] = []
    with (
        ThreadPoolExecutor(min(len(keyed), os.cpu_count() or 1)) as pool,
        tqdm(total=n_bytes, unit="B", unit_scale=True, desc="check", disable=n_bytes < _SHOWN_BYTES or None) as bar,
    ):
        found = pool.map(lambda one: check_shard(root, one[0], one[1]), keyed)
        for (_, entry, key), wrong in zip(keyed, found, strict=True):
            bar.update(entry.bytes)
            if wrong:
                problems.append(f"{entry.path} {wrong}")
            elif key:
                _checked.add(key)
    if problems:
        more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
        raise DamageError(f"{root}: {'; '.join(problems[:5])}{more}. Run 'featurestore verify {root}'.")


def _key(root: Path, entry: FileEntry) -> Key | None:
    """Return what a file that was checked is known by; None if it cannot be looked at."""
    try:
        path = inside(root, entry.path)
        status = path.lstat()
    except (OSError, DamageError):
        return None
    times = status.st_mtime_ns, status.st_ctime_ns
    return str(path.absolute()), status.st_dev, status.st_ino, status.st_size, *times, entry.sha256
