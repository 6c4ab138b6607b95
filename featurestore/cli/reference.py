"""``docs/cli.md`` from the help texts, so that the page cannot drift: a test compares them."""

import sys
from pathlib import Path

import click

from featurestore.cli import COMMANDS, cli
from featurestore.format import durable

_HEAD = """# The command line

For those who look a command or an option up: all help texts, one after another. After this page you
can also have your shell complete them. Made by `make docs`.

The shell completes commands and options after one line in its start file:

| shell | file | line |
|---|---|---|
| bash 4.4 or later | `~/.bashrc` | `eval "$(_FEATURESTORE_COMPLETE=bash_source featurestore)"` |
| zsh | `~/.zshrc` | `eval "$(_FEATURESTORE_COMPLETE=zsh_source featurestore)"` |
| fish | `~/.config/fish/completions/featurestore.fish` | `_FEATURESTORE_COMPLETE=fish_source featurestore \\| source` |

`NO_COLOR=1` turns colour off. Exit status: 0 done, 1 an error (one line on stderr), 2 a wrong option, 130 Ctrl-C, 143 SIGTERM.
"""


def reference() -> str:
    """Return the page."""
    context = click.Context(
        cli, info_name="featurestore", terminal_width=110, **cli.context_settings
    )
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
    return f"```text\n{command.get_help(context)}\n```\n"


if __name__ == "__main__":
    durable.write_bytes(Path(sys.argv[1]), reference().encode())
