"""Files against their commit records: nothing is read that is not what was written."""

import hashlib
import os
import stat
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

from tqdm import tqdm

from featurestore.errors import DamageError, UsageError
from featurestore.format.contents import Part, hash_range
from featurestore.format.footers import check_footer
from featurestore.format.gate import inside
from featurestore.format.records import FileEntry, Record
from featurestore.format.verified import is_settled, is_to_come, key_of, known, remember, why_not
from featurestore.vocabulary import VERIFICATION

_SHOWN_BYTES = 8 * 10**9
_checked: set[bytes] = set()
_anew: dict[Path, str] = {}
_mode = ""
_Keyed = tuple[Record, FileEntry, bytes | None]
_Look = Callable[[Path, Record, FileEntry], str | None]


def forget() -> None:
    """Forget which files were checked: the next reader compares them anew."""
    _checked.clear()
    _anew.clear()


def take_compared_anew() -> dict[Path, str]:
    """Return, once, the stores whose files every process compares again, although it should
    remember them; store → which files, and why."""
    taken = dict(_anew)
    _anew.clear()
    return taken


def check_file(root: Path, entry: FileEntry) -> str | None:
    """Return what is wrong with a file (absent, a link, unreadable, size, SHA-256), or None."""
    try:
        path = inside(root, entry.path)
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb", buffering=0) as file:  # noqa: PTH123
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
    """Return what is wrong with a file of a shard: what :func:`check_file` finds, or its Parquet
    footer."""
    wrong = check_file(root, entry)
    if wrong is None and entry.path.endswith(".parquet"):
        wrong = check_footer(root / entry.path, record)
    return wrong


def set_verification(mode: str) -> None:
    """Say how readers of this process compare files with their records (``VERIFICATION`` in the
    vocabulary).

    ``cached``, the default: each file once, as far as this user's cache can tell that it has not
    changed since. ``always``: each file once in every process. ``never``: only whether it is there
    and has the size that its record says.

    Raises:
        UsageError: there is no such mode.
    """
    global _mode
    if mode not in VERIFICATION:
        raise UsageError(f"verification {mode!r}: expected one of {', '.join(VERIFICATION)}.")
    _mode = mode


def verification() -> str:
    """Return the mode that :func:`set_verification` set, or ``FEATURESTORE_VERIFY``, or
    ``cached``."""
    mode = _mode or os.environ.get("FEATURESTORE_VERIFY", "cached")
    if mode not in VERIFICATION:
        raise UsageError(
            f"FEATURESTORE_VERIFY is {mode!r}: expected one of {', '.join(VERIFICATION)}."
        )
    return mode


def check_shards(root: Path, records: Iterable[Record]) -> None:
    """Compare the files of shards with their records, each once unless it is replaced; see
    :func:`set_verification`.

    Above 8 GB with a progress bar.

    Raises:
        DamageError: a file is not what its record says; the first five such files are named.
    """
    mode = verification()
    pairs = [(record, entry) for record in records for entry in record.files]
    statuses = [_status(root, entry) for _, entry in pairs]
    keys = [s and key_of(s, _about(*pair)) for s, pair in zip(statuses, pairs, strict=True)]
    reason = why_not(root) if mode == "cached" and pairs else None
    remembers = mode == "cached" and bool(pairs) and reason is None
    if reason is not None:
        _anew[root] = f"all files that it reads with their records, for {reason}"
    if remembers:
        _checked.update(known([key for key in keys if key is not None and key not in _checked]))
    keyed = [
        (*pair, key)
        for pair, key in zip(pairs, keys, strict=True)
        if key is None or key not in _checked
    ]
    if not keyed:
        return
    look = _glance if mode == "never" else check_shard
    problems, sound = _compare(root, keyed, look)
    if mode != "never":
        _checked.update(sound)
    if remembers:
        # By the status of before the files were read: one that was written to meanwhile has another
        # now.
        now = {
            key
            for key, status in zip(keys, statuses, strict=True)
            if key and status and is_settled(status)
        }
        remember(key for key in sound if key in now)
        _note_to_come(root, statuses)
    if problems:
        more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
        raise DamageError(
            f"{root}: {'; '.join(problems[:5])}{more}. Run 'featurestore verify {root}'."
        )


class PartCheck:
    """Compares the row groups of a shard's file with its record, each when it is first read.

    Made once what must be read to know of them is compared: the footer, and what stands before
    their tensors.

    Raises:
        DamageError: a part is not what the record says, here and where it is called.
    """

    def __init__(self, root: Path, record: Record) -> None:
        (self._entry,), self._root = record.files, root
        parts = record.contents.parts if record.contents is not None else ()
        status = _status(root, self._entry)
        about = _about(record, self._entry)
        whole = status and key_of(status, about)
        self._remembers = bool(
            status and verification() == "cached" and why_not(root) is None and is_settled(status)
        )
        _note_to_come(root, [status])
        keys = [status and key_of(status, about + b" part %d" % i) for i in range(len(parts))]
        if self._remembers:
            found = [key for key in (whole, *keys) if key is not None and key not in _checked]
            _checked.update(known(found))
        if not parts or verification() == "never" or whole is None or whole in _checked:
            check_shards(root, [record])
            self._left: dict[int, tuple[Part, int, bytes]] = {}
            return
        begins = [0, *record.contents.ends] if record.contents is not None else []
        self._whole = whole
        self._left = {
            i: (part, begin, key)
            for i, (part, begin, key) in enumerate(zip(parts, begins, keys, strict=False))
            if key and key not in _checked
        }
        self._groups = [i for i, part in enumerate(parts) if part.rows]
        if status is not None and status.st_size != self._entry.bytes:
            check_shards(root, [record])
        for i in [i for i, part in enumerate(parts) if not part.rows]:
            self._check_part(i)
        wrong = check_footer(inside(root, self._entry.path), record)
        if wrong:
            self._refuse(wrong)

    def __call__(self, group: int) -> None:
        """Compare a row group, unless it was."""
        if self._left:
            self._check_part(self._groups[group])

    def _check_part(self, number: int) -> None:
        if number not in self._left:
            return
        part, begin, key = self._left[number]
        try:
            digest = hash_range(inside(self._root, self._entry.path), begin, begin + part.bytes)
        except OSError as error:
            self._refuse(f"cannot be read ({error.strerror})")
        if digest != part.sha256:
            self._refuse(
                f"was changed between byte {begin} and {begin + part.bytes}: their SHA-256 is "
                f"{digest[:12]}…, its record says {part.sha256[:12]}…"
            )
        self._left.pop(number, None)
        new = [key] if self._left else [key, self._whole]
        _checked.update(new)
        if self._remembers:
            remember(new)

    def _refuse(self, what: str) -> NoReturn:
        raise DamageError(
            f"{self._root}: {self._entry.path} {what}. Run 'featurestore verify {self._root}'."
        )


def _note_to_come(root: Path, statuses: Iterable[os.stat_result | None]) -> None:
    """Note files that were compared and cannot be remembered, because the clock went back."""
    if any(status is not None and is_to_come(status) for status in statuses):
        _anew[root] = (
            "those files with their records whose times are still to come, for the clock of this "
            "machine, or of the one that wrote them, went back"
        )


def _compare(root: Path, keyed: list[_Keyed], look: _Look) -> tuple[list[str], list[bytes]]:
    """Return what is wrong, and the keys of what is sound."""
    n_bytes = sum(entry.bytes for _, entry, _ in keyed)
    problems: list[str] = []
    sound: list[bytes] = []
    with (
        ThreadPoolExecutor(min(len(keyed), os.cpu_count() or 1)) as pool,
        tqdm(
            total=n_bytes,
            unit="B",
            unit_scale=True,
            desc="check",
            disable=n_bytes < _SHOWN_BYTES or None,
        ) as bar,
    ):
        found = pool.map(lambda one: look(root, one[0], one[1]), keyed)
        for (_, entry, key), wrong in zip(keyed, found, strict=True):
            bar.update(entry.bytes)
            if wrong:
                problems.append(f"{entry.path} {wrong}")
            elif key:
                sound.append(key)
    return problems, sound


def _glance(root: Path, record: Record, entry: FileEntry) -> str | None:
    """Return what is wrong with a file that shows without reading it."""
    status = _status(root, entry)
    if status is None or not stat.S_ISREG(status.st_mode) or status.st_size != entry.bytes:
        return check_file(root, entry)
    return None


def _about(record: Record, entry: FileEntry) -> bytes:
    """Return what a file is compared with."""
    return repr((record.table, record.schema, record.rows, entry.sha256)).encode()


def _status(root: Path, entry: FileEntry) -> os.stat_result | None:
    """Return a file's status; None if it cannot be looked at."""
    try:
        return inside(root, entry.path).lstat()
    except (OSError, DamageError):
        return None
