"""Rows as a file has them, and JSON and text read as their standards say, or refused with the
place."""

import json
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from featurestore.errors import PromptsError

_BOM = b"\xef\xbb\xbf"


class Row(NamedTuple):
    """A row of a file of prompts."""

    where: str
    """file and place, such as ``prompts.csv, line 3``: the beginning of every message about it"""
    number: int
    """of its line, item or row, from 1"""
    values: dict[str, Any]


def read_bytes(path: Path) -> bytes:
    """Return a file's bytes without a byte order mark; raises PromptsError."""
    try:
        return path.read_bytes().removeprefix(_BOM)
    except OSError as error:
        raise PromptsError(f"prompts file {path} cannot be read: {error.strerror}.") from error


def decode(path: Path, data: bytes, first_line: int = 1) -> str:
    """Return UTF-8 text.

    Raises:
        PromptsError: it is not UTF-8; the message names line and byte.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line, column = first_line + before.count(b"\n"), error.start - before.rfind(b"\n")
        utf16 = data[:2] in (b"\xff\xfe", b"\xfe\xff")
        found = "UTF-16" if utf16 else f"byte {data[error.start]:#04x} at byte {column} of it"
        raise PromptsError(
            f"{path}, line {line}: it is not UTF-8 text ({found}): save it as UTF-8."
        ) from error


def parse_json(where: str, text: str) -> Any:
    """Return what a JSON text says.

    Raises:
        PromptsError: it is not JSON (RFC 8259; NaN and Infinity are not), an object has a key
            twice, or it is nested too deeply.
    """

    def constant(name: str) -> NoReturn:
        raise PromptsError(f"{where}: not JSON ({name} is not a number that JSON has); use null.")

    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        body = dict(pairs)
        if len(body) < len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise PromptsError(f"{where}: the key {twice!r} is there twice: remove one of them.")
        return body

    try:
        return json.loads(text, object_pairs_hook=distinct, parse_constant=constant)
    except json.JSONDecodeError as error:
        at = (
            f"line {error.lineno}, column {error.colno}"
            if "\n" in text
            else f"column {error.colno}"
        )
        raise PromptsError(
            f'{where}: not JSON ({error.msg} at {at}); expected an object like {{"prompt": "…"}}.'
        ) from error
    except ValueError as error:  # an integer of more digits than Python converts
        raise PromptsError(f"{where}: not JSON that can be kept ({error}).") from error
    except RecursionError as error:
        raise PromptsError(f"{where}: nested too deeply; expected an object of texts.") from error
