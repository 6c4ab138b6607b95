"""``docs/cli.md`` from the help texts, so that the page cannot drift: a test compares them."""

import sys
from pathlib import Path

import click

from featurestore.cli import COMMANDS, cli
from featurestore.format import durable

_HEAD = "# The command line\n\nMade from the help texts by `make docs`.\n"


def reference() -> str:
    """Return the page."""
    context = click.Context(cli, info_name="featurestore", terminal_width=110, **cli.context_settings)
    parts = [_HEAD, _block(cli, context)]
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None
        own = click.Context(command, info_name=name, parent=context, terminal_width=110)
        parts += [f"## {name}\n", _block(command, own)]
        for inner in command.commands.values() if isinstance(command, click.Group) else ():
            below = click.Context(inner, info_name=inner.name, parent=own, terminal_width=110)
            parts += [f"### {name} {inner.name}\n", _block(inner, below)]
    return "\n".join(parts)


def _block(command: click.Command, context: click.Context) -> str:
    return f"```\n{command.get_help(context)}\n```\n"


if __name__ == "__main__":
    durable.write_bytes(Path(sys.argv[1]), reference().encode())
