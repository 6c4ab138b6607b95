"""Several options of a command as one object."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import click
from click.core import ParameterSource


def gathered(
    command: Callable[..., Any],
    name: str,
    kind: Callable[..., Any],
    options: Sequence[Callable[..., Any]],
) -> Callable[..., Any]:
    """Add options to a command, which receives their values as one object: ``name=kind(…)``.

    ``kind`` is a dataclass with one field per option.
    """
    fields = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]

    @functools.wraps(command)
    def with_object(**values: Any) -> Any:
        taken = {field: values.pop(field) for field in fields}
        return command(**values, **{name: kind(**taken)})

    added: Callable[..., Any] = with_object
    for option in reversed(options):
        added = option(added)
    return added


def given_options(*names: str) -> list[str]:
    """Return those of the running command's options, named as its function has them, that the user
    gave; as they are written."""
    context = click.get_current_context()
    return [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name in names
        and context.get_parameter_source(parameter.name) is not ParameterSource.DEFAULT
    ]


def given(**values: Any) -> dict[str, Any]:
    """Return the values that are not None."""
    return {name: value for name, value in values.items() if value is not None}
