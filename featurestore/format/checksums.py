"""Files against their commit records: nothing is read that is not what was written."""

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from featurestore.errors import DamageError
from featurestore.format.records import FileEntry

_SHOWN_BYTES = 8 * 10**9
_checked: set[tuple[str, int, int, int, str]] = set()


def check_file(root: Path, entry: FileEntry) -> str | None:
    """Return what is wrong with a file (absent, size, SHA-256), or None."""
    path = root / entry.path
    if not path.is_file():
        return "is missing"
    size = path.stat().st_size
    if size != entry.bytes:
        return f"has {size} bytes, its record says {entry.bytes}"
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return (
        None
        if digest == entry.sha256
        else f"was changed: its SHA-256 is {digest[:12]}…, its record says {entry.sha256[:12]}…"
    )


def check_files(root: Path, entries: Iterable[FileEntry]) -> None:
    """Compare files with their records, each once in a process unless it is replaced; above 8 GB with a progress bar.

    Raises:
        DamageError: a file is not what its record says; the first five such files are named.
    """
    keyed = [(entry, key) for entry in entries if (key := _key(root, entry)) not in _checked]
    if not keyed:
        return
    n_bytes = sum(entry.bytes for entry, _ in keyed)
    problems: list[str] = []
    with (
        ThreadPoolExecutor(min(len(keyed), os.cpu_count() or 1)) as pool,
        tqdm(total=n_bytes, unit="B", unit_scale=True, desc="check", disable=n_bytes < _SHOWN_BYTES or None) as bar,
    ):
        found = pool.map(lambda pair: check_file(root, pair[0]), keyed)
        for (entry, key), wrong in zip(keyed, found, strict=True):
            bar.update(entry.bytes)
            if wrong:
                problems.append(f"{entry.path} {wrong}")
            elif key:
                _checked.add(key)
    if problems:
        more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
        raise DamageError(f"{root}: {'; '.join(problems[:5])}{more}. Run 'featurestore verify {root}'.")


def _key(root: Path, entry: FileEntry) -> tuple[str, int, int, int, str] | None:
    """Return what a file that was checked is known by; None if it is missing."""
    path = root / entry.path
    if not path.is_file():
        return None
    stat = path.stat()
    return str(path.resolve()), stat.st_ino, stat.st_size, stat.st_mtime_ns, entry.sha256
