"""The gate: nothing from a disk is used before it is known to be what it should be.

Two questions, for everything that another process, or another person, may have written. *Where* may
be read: below the store's root, without a symbolic link on the way, regular files of a bounded
size. *What* may be in it: JSON as the standard says, of a bounded depth, with a closed set of
fields, each of one type and range (docs/format.md, section 2).
"""

import json
import math
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from featurestore.errors import DamageError

MAX_DEPTH = 32
"""of nested lists and objects"""
MAX_INT = 2**63 - 1
_NO_FOLLOW = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class MalformedError(ValueError):
    """What is wrong with some contents; whoever knows where they come from says so around it."""


def parse_json(data: bytes | str) -> Any:
    """Return the value of a JSON text.

    Raises:
        MalformedError: it is not JSON in UTF-8, says a key twice, is nested too deeply, or holds a
            number that is not finite or half of a surrogate pair.
    """
    try:
        text = data if isinstance(data, str) else data.decode()
        value = json.loads(
            text, object_pairs_hook=_object, parse_constant=_constant, parse_float=_float
        )
    except MalformedError:
        raise
    except RecursionError as error:
        raise MalformedError(f"it is nested more than {MAX_DEPTH} deep") from error
    except UnicodeDecodeError as error:
        raise MalformedError(f"byte {error.start} is not UTF-8") from error
    except ValueError as error:
        raise MalformedError(f"it is not JSON ({error})") from error
    # A record in ASCII has fewer brackets than may be nested: there is nothing to look for.
    plain = text.isascii() and "\\u" not in text
    if not plain or text.count("{") + text.count("[") >= MAX_DEPTH:
        _check_tree(value)
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise MalformedError(f"the key {twice[:60]!r} stands there twice")
    return found


def _constant(name: str) -> Any:
    raise MalformedError(f"{name} is not a number that JSON knows")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise MalformedError(f"the number {text[:40]} is too large")
    return value


def _check_tree(value: Any) -> None:
    """Refuse what is nested too deeply, and text that is not Unicode; without recursion."""
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise MalformedError(f"it is nested more than {MAX_DEPTH} deep")
        below: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                below += [*one, *one.values()]
            elif isinstance(one, list):
                below += one
            elif isinstance(one, str) and not one.isascii():
                _check_text(one)
        level = below


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise MalformedError(f"a text holds {half}, half of a surrogate pair") from error


class Field(NamedTuple):
    """What one field of an object must be."""

    fits: Callable[[Any], bool]
    expected: str
    optional: bool = False


def whole(least: int, most: int = MAX_INT, optional: bool = False) -> Field:
    """Return a field that holds a whole number of a range; ``true`` and 1.0 are not whole
    numbers."""
    return Field(
        lambda value: type(value) is int and least <= value <= most,
        f"a whole number from {least} to {most}",
        optional,
    )


def distinct_numbers(most: int, said: str) -> Field:
    """Return a field that holds a list of whole numbers from 0, none of them twice."""
    return Field(
        lambda value: (
            isinstance(value, list)
            and set(map(type, value)) <= {int}
            and (not value or (min(value) >= 0 and max(value) <= most))
            and len(set(value)) == len(value)
        ),
        said,
    )


def real(limit: float, optional: bool = False) -> Field:
    """Return a field that holds a finite number of at most ``limit`` in magnitude."""
    return Field(
        lambda value: type(value) in (int, float) and abs(value) <= limit,
        f"a number of at most {limit:g} in magnitude",
        optional,
    )


def text(pattern: str = r"(?s).*", said: str = "text", optional: bool = False) -> Field:
    """Return a field that holds text that matches a pattern from end to end; ``said`` describes
    it."""
    compiled = re.compile(pattern)
    return Field(
        lambda value: isinstance(value, str) and compiled.fullmatch(value) is not None,
        said,
        optional,
    )


def one_of(values: tuple[str, ...], optional: bool = False) -> Field:
    """Return a field that holds one of some texts."""
    return Field(lambda value: value in values, f"one of {', '.join(values)}", optional)


def list_of(item: Field, said: str, distinct: bool = False, optional: bool = False) -> Field:
    """Return a field that holds a list of one kind of thing."""

    def fits(value: Any) -> bool:
        return (
            isinstance(value, list)
            and all(item.fits(one) for one in value)
            and not (distinct and len(set(value)) < len(value))
        )

    return Field(fits, said, optional)


OBJECT = Field(lambda value: isinstance(value, dict), "an object")


def closed(body: Any, fields: Mapping[str, Field]) -> dict[str, Any]:
    """Return an object that has these fields, each as it must be, and no others.

    Raises:
        MalformedError: it does not; the first wrong field is named, with what was found and
            expected.
    """
    if not isinstance(body, dict):
        raise MalformedError(f"{short(body)} stands where an object is expected")
    if body.keys() != fields.keys():
        missing = [name for name, field in fields.items() if name not in body]
        if lacking := [name for name in missing if not fields[name].optional]:
            raise MalformedError(f"it lacks {', '.join(lacking)}")
    for name, value in body.items():
        if name not in fields:
            raise MalformedError(f"it has a field {name[:60]!r}, which nothing knows")
        if not fields[name].fits(value):
            raise MalformedError(f"{name} is {short(value)}, expected {fields[name].expected}")
    return body


def short(value: Any) -> str:
    """Return what an error shows of a value: at most 60 characters of it."""
    shown = repr(value) if not isinstance(value, (dict, list)) else f"a {type(value).__name__}"
    return shown if len(shown) <= 60 else f"{shown[:59]}…"


def inside(root: Path, relative: str | PurePosixPath) -> Path:
    """Return the path of a file below a store's root, after looking for links on the way; it may be
    absent.

    ``relative`` is one that this project made, or that a checked record names.

    Raises:
        DamageError: it is, or lies behind, a symbolic link.
    """
    path, names = os.fspath(root), os.fspath(relative)
    assert not names.startswith("/"), "checked before"
    for part in names.split("/"):
        assert part != "..", "checked before"
        if part in ("", "."):
            continue
        path = os.path.join(path, part)  # noqa: PTH118
        if os.path.islink(path):  # noqa: PTH114
            raise DamageError(
                f"{path} is a symbolic link: a store holds its files itself, and no link is "
                f"followed. Put what it points at in its place."
            )
    return Path(path)


def read_inside(root: Path, relative: str | PurePosixPath, limit: int) -> bytes:
    """Return the bytes of a regular file below a store's root.

    Raises:
        DamageError: it is missing, cannot be read, is not a regular file, lies behind a symbolic
            link, or has more than ``limit`` bytes.
    """
    return read_placed(inside(root, relative), limit)


def read_placed(path: Path | str, limit: int) -> bytes:
    """Return the bytes of a regular file at whose directory :func:`inside` has looked; raises as
    :func:`read_inside`, and reads no link."""
    try:
        return read_regular(path, limit)
    except MalformedError as error:
        raise DamageError(f"{path}: {error}") from error
    except OSError as error:
        raise DamageError(f"{path}: cannot be read ({error.strerror})") from error


def read_regular(path: Path | str, limit: int) -> bytes:
    """Return the bytes of a regular file that has at most ``limit`` of them; a pipe is not waited
    for.

    Raises:
        MalformedError: it is something else, or larger.
        OSError: it cannot be read.
    """
    descriptor = os.open(path, _NO_FOLLOW)
    with open(descriptor, "rb") as file:  # noqa: PTH123
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise MalformedError("it is not a regular file")
        data = file.read(status.st_size + 1) if status.st_size <= limit else b""
    if status.st_size > limit or len(data) > limit:
        raise MalformedError(f"it has {status.st_size:,} bytes, at most {limit:,} are expected")
    return data


def entries(root: Path, relative: str | PurePosixPath) -> list[os.DirEntry[str]]:
    """Return what a directory below a store's root holds, by name; nothing if it is absent.

    Raises:
        DamageError: it cannot be read, or lies behind a symbolic link.
    """
    return sorted(scan(root, relative), key=lambda entry: entry.name)


def scan(root: Path, relative: str | PurePosixPath) -> Iterator[os.DirEntry[str]]:
    """Yield what :func:`entries` returns, in no order, as it is found; raises as it does."""
    path = inside(root, relative)
    try:
        with os.scandir(path) as found:
            yield from found
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise DamageError(f"{path}: cannot be read ({error.strerror})") from error
