"""Configurations of other libraries' SAEs, parsed into checked, frozen types.

A configuration comes from whoever made the checkpoint, so it is read as data of a stranger: JSON of
a bounded size and depth, and of each field that matters the type and the range. A field that
nothing here knows may change the function: it is refused, unless a format says that it may be
there.
"""

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_type_hints

from featurestore.errors import SAEError
from featurestore.format.gate import Field, MalformedError, parse_json, read_regular, short, text

Config = TypeVar("Config")

MAX_BYTES = 2**20
MAX_D_IN = 2**20
MAX_LATENTS = 2**26
_SHOWN = 8


def size(most: int, least: int = 1) -> Field:
    """Return a field that holds an integer of a range."""
    return Field(
        lambda value: type(value) is int and least <= value <= most,
        f"an integer of at least {least} and at most {most:,}",
    )


D_IN, LATENTS = size(MAX_D_IN), size(MAX_LATENTS)
YES_NO = Field(lambda value: type(value) is bool, "true or false")
WORD = text(r"[^\x00-\x1f]{1,200}", "a text of at most 200 characters")
OBJECT = Field(lambda value: isinstance(value, dict), "an object")


def or_null(field: Field) -> Field:
    """Return a field that may also hold null."""
    return Field(lambda value: value is None or field.fits(value), f"{field.expected}, or null")


def read_fields(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; where the path is a link, in what it points at.

    Raises:
        SAEError: the file is missing, or has more than 1 MiB.
    """
    try:
        fields = parse_json(read_bytes(path, MAX_BYTES))
    except MalformedError as error:
        raise SAEError(f"{path} is no JSON: {error}.") from error
    if not isinstance(fields, dict):
        raise SAEError(f"{path} holds {type(fields).__name__}, expected an object.")
    return fields


def read_bytes(path: Path, limit: int = 2**63) -> bytes:
    """Return the bytes of a regular file of a checkpoint; a pipe is not waited for.

    Raises:
        SAEError: it cannot be read, is something else, or has more than ``limit`` bytes.
    """
    try:
        return read_regular(path.resolve(), limit)  # the hub's cache holds links
    except OSError as error:
        raise SAEError(f"{path} cannot be read: {error.strerror}.") from error
    except MalformedError as error:
        raise SAEError(f"{path} cannot be read: {error}.") from error


def parse(
    path: Path,
    fields: Mapping[str, Any],
    kind: type[Config],
    others: Collection[str] | None = (),
) -> Config:
    """Return a configuration as the frozen dataclass ``kind``, each of whose fields is
    ``Annotated`` with what it must be; one without a default must be there.

    ``others``: fields that may be there and do not matter; None: any. A float without a fraction is
    an integer, as JSON has it.

    Raises:
        SAEError: a field is missing, unknown, or not what it must be; the first is named.
    """
    hints = get_type_hints(kind, include_extras=True)
    known = {field.name: field.default for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if others is not None:
        check_known(path, fields, {*known, *others})
    values: dict[str, Any] = {}
    for name, default in known.items():
        (fits,) = hints[name].__metadata__
        if name in fields:
            values[name] = _integral(fields[name])
            if not fits.fits(values[name]):
                found = short(values[name])
                raise SAEError(f"{path} has {name} = {found}, expected {fits.expected}.")
        elif default is dataclasses.MISSING:
            raise SAEError(f"{path} has no {name}, expected {fits.expected}.")
    return kind(**values)


def required(path: Path, name: str, value: int | None) -> int:
    """Return a field that only some architectures need, and this one does.

    Raises:
        SAEError: it is missing, or null.
    """
    if value is None:
        raise SAEError(f"{path} has no {name}, expected {LATENTS.expected}.")
    return value


def check_known(path: Path, fields: Collection[str], known: Collection[str]) -> None:
    """Refuse fields that this project does not know.

    Raises:
        SAEError: there are some: they may change the function.
    """
    unknown = sorted(set(fields) - set(known))
    if unknown:
        raise SAEError(
            f"{path} has fields that are not known and may change the function: {listed(unknown)}."
        )


def listed(names: Collection[str]) -> str:
    """Return what an error shows of a file's names: the first eight, each cut at 60 characters."""
    shown = [name[:60] for name in sorted(names)[:_SHOWN]]
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return f"{shown}{more}"


def refuse(path: Path, name: str, value: object, why: str) -> NoReturn:
    """Refuse what a file says.

    Raises:
        SAEError: always.
    """
    raise SAEError(f"{path} has {name} = {short(value)}, which cannot be honoured: {why}.")


def _integral(value: Any) -> Any:
    return int(value) if type(value) is float and value.is_integer() else value
