"""The prompt of ``featurestore sql``: statements over several lines, errors that do not end it."""

import re
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from featurestore.cli.terminal.tables import OutputOptions
    from featurestore.store import Store

_LITERALS = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|--[^\n]*|/\*.*?\*/""", re.DOTALL)
_LEAVE = ("exit", "quit", ".exit", ".quit")


def prompt(store: "Store", out: "OutputOptions") -> None:
    """Answer the statements typed at a terminal, or piped in, until the input ends. An error is
    shown and changes nothing.

    At a terminal Ctrl-C ends a statement; SIGTERM ends all.
    """
    from featurestore.cli.terminal.stopping import Terminated, stoppable
    from featurestore.cli.terminal.values import visible
    from featurestore.errors import FeatureStoreError
    from queries import sql

    if sys.stdin.isatty():
        import readline

        readline.set_history_length(1000)
        click.echo(
            "A statement ends with ';'. 'show tables;' lists the views, 'describe stats;' "
            "columns. Ctrl-D leaves."
        )
    for statement in _statements():
        try:
            with stoppable(out.timeout):
                answer = sql(store, statement, memory_limit=out.memory)
            out.show(answer)
        except KeyboardInterrupt as stop:
            if isinstance(stop, Terminated) or not sys.stdin.isatty():
                raise
            click.echo("Interrupted.", err=True)
        except FeatureStoreError as error:
            click.echo(f"Error: {visible(str(error))}", err=True)


def _statements() -> Iterator[str]:
    """Yield each statement without its ';'. Ctrl-C drops what was typed of one."""
    from featurestore.cli.terminal.stopping import Terminated

    lines: list[str] = []
    while True:
        try:
            line = input(
                ("featurestore> " if not lines else "         ...> ") if sys.stdin.isatty() else ""
            )
        except KeyboardInterrupt as stop:
            if isinstance(stop, Terminated) or not sys.stdin.isatty():
                raise
            click.echo()
            lines = []
            continue
        except EOFError:
            break
        if not lines and line.strip().rstrip(";").lower() in _LEAVE:
            return
        lines += [line] if lines or line.strip() else []
        if _is_whole("\n".join(lines)):
            yield "\n".join(lines).rstrip().removesuffix(";")
            lines = []
    if sys.stdin.isatty():
        click.echo()
    elif lines:
        yield "\n".join(lines)


def _is_whole(text: str) -> bool:
    """Return whether a ';' ends the text, outside of comments and of quotes that are still open."""
    bare = _LITERALS.sub("", text).rstrip()
    return bare.endswith(";") and not any(mark in bare for mark in ("'", '"', "/*"))
