"""The command line: thin commands over the libraries, imported only when one of them runs."""

import contextlib
import importlib
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import NoReturn

import click

from featurestore import __version__
from featurestore.cli.terminal.hints import compared_anew_is_said
from featurestore.cli.terminal.stopping import INTERRUPTED, pipes_may_close, terminable
from featurestore.errors import FeatureStoreError, nearest
from featurestore.vocabulary import VERIFICATION

COMMANDS = {
    "prompts": "featurestore.cli.prompts",
    "plan": "featurestore.cli.plan",
    "collect": "featurestore.cli.collect",
    "relabel": "featurestore.cli.relabel",
    "train": "featurestore.cli.train",
    "train-live": "featurestore.cli.live",
    "encode": "featurestore.cli.sae",
    "sae": "featurestore.cli.sae",
    "score": "featurestore.cli.queries",
    "query": "featurestore.cli.questions",
    "sql": "featurestore.cli.queries",
    "plot": "featurestore.cli.questions",
    "explore": "featurestore.cli.explore",
    "export": "featurestore.cli.export",
    "generate": "featurestore.cli.generate",
    "judge": "featurestore.cli.judge",
    "evaluate": "featurestore.cli.evaluate",
    "attack": "featurestore.cli.attack",
    "harden": "featurestore.cli.harden",
    "costs": "featurestore.cli.costs",
    "info": "featurestore.cli.store",
    "verify": "featurestore.cli.store",
    "repair": "featurestore.cli.store",
    "compact": "featurestore.cli.store",
    "pack": "featurestore.cli.share",
    "unpack": "featurestore.cli.share",
    "push": "featurestore.cli.share",
    "pull": "featurestore.cli.share",
    "doctor": "featurestore.cli.doctor",
    "demo": "featurestore.cli.demo",
}
"""command → the module that defines a function of that name, "-" being "_"; the order of the help
text: that of the work"""


class LazyGroup(click.Group):
    """A group that imports a command's module when the command is named."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order of the work."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, or None."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(COMMANDS[cmd_name])
        command = getattr(module, cmd_name.replace("-", "_"))
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or say which are near."""
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            raise click.UsageError(f"No such command {args[0]!r}.{nearest(args[0], COMMANDS)}", ctx)
        return super().resolve_command(ctx, args)


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__)
@click.option(
    "--verify",
    type=click.Choice(VERIFICATION),
    help="Compare files with their records: once for as long as they do not change, once in every "
    "process, or not at all.  [default: cached]",
)
def cli(verify: str | None) -> None:
    """Which SAE features of a diffusion model carry a concept, when, and what happens without them.

    A store is a directory of Parquet files. The usual way: collect activations, train an SAE,
    encode, score, export a selection of features, generate without them.

    \b
    featurestore demo                      all of it in a few minutes, on a small model that is included
    featurestore collect --help            where a study of your own begins
    """
    if verify is not None:
        from featurestore.format.checksums import set_verification

        set_verification(verify)


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line: errors are one line on stderr and exit status 1, usage errors exit with
    2.

    SIGTERM does what Ctrl-C does, and exits with 143 instead of 130.
    """
    with pipes_may_close(), terminable() as terminated, _plain_warnings(), compared_anew_is_said():
        try:
            # None: in colour if the output is a terminal.
            color = False if os.environ.get("NO_COLOR") else None
            status = cli.main(
                args=args, prog_name="featurestore", standalone_mode=False, color=color
            )
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)
        except (click.Abort, KeyboardInterrupt):
            click.echo(INTERRUPTED, err=True)
            sys.exit(143 if terminated else 130)
        except FeatureStoreError as error:
            _fail(str(error))
        except OSError as error:
            if not isinstance(error.filename, (str, bytes, os.PathLike)):
                raise
            # A path that a user, or a file, named: too long, or without the right to look there.
            _fail(f"{os.fsdecode(error.filename)}: the system refuses it ({error.strerror}).")
    sys.exit(status if isinstance(status, int) else 0)


def _fail(message: str) -> NoReturn:
    """Say an error in one line, in which a terminal finds nothing to obey, and exit with 1."""
    from featurestore.cli.terminal.values import visible

    click.echo(f"Error: {visible(message)}", err=True)
    sys.exit(1)


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Show a warning as one line, without the place in the code that gave it."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *args, **kwargs: (
        f"Warning: {' '.join(str(message).split())}\n"
    )
    try:
        yield
    finally:
        warnings.formatwarning = before
