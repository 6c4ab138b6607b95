"""``featurestore score`` and ``sql``."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from featurestore.cli.terminal.hints import say_next, warn_unencoded
from featurestore.cli.terminal.stopping import stoppable
from featurestore.cli.terminal.tables import OutputOptions, as_text, output_options
from featurestore.vocabulary import BRANCHES, ENGINES

if TYPE_CHECKING:
    from queries.engine import Engine

_STORE = click.argument("store", type=click.Path(path_type=Path))
_SAE = click.option("--sae", required=True, help="Name of the SAE.")
BRANCH = click.option(
    "--branch",
    type=click.Choice(BRANCHES),
    default="cond",
    show_default=True,
    help="Half of guidance.",
)

ENGINE = click.option(
    "--engine",
    type=click.Choice(ENGINES),
    default="duckdb",
    show_default=True,
    help="Spark: as its configuration says, with the extra 'spark' and Java 17.",
)


@contextlib.contextmanager
def running(engine: str) -> "Iterator[Engine | None]":
    """Yield the engine of ``--engine``; None is DuckDB."""
    from featurestore.errors import UsageError

    if engine == "duckdb":
        yield None
        return
    try:
        from queries.spark import Spark, spark_session
    except ImportError as error:
        raise UsageError(
            f"--engine spark needs {error.name}: pip install 'featurestore[spark]'."
        ) from error
    with spark_session() as session:
        yield Spark(session)


@click.command()
@_STORE
@_SAE
@click.option(
    "--by", "family", required=True, help="Concept family: a label column of the samples."
)
@BRANCH
@click.option(
    "--top",
    type=click.IntRange(1),
    default=5,
    show_default=True,
    help="Features shown per concept; all are kept.",
)
@ENGINE
def score(*, store: Path, sae: str, family: str, branch: str, top: int, engine: str) -> None:
    """Score every feature for every concept of a family, keep the table scores/SAE, and show the
    best.

    The score is the feature's share of all activation in the concept's samples minus its share in
    the other concepts' samples, step by step; shown is its mean over the steps, and at how many
    steps it is among the concept's best.

    \b
    Example:
      featurestore score ./store --sae styles --by style
    """
    from featurestore.store import Store
    from queries import score as run_score

    opened = Store.open(store)
    warn_unencoded(opened, sae)
    with stoppable(), running(engine) as chosen:
        record, best = run_score(opened, sae, family, branch, top=top, engine=chosen, progress=True)
    click.echo(as_text(best, rows=None))
    click.echo(f"\n{record.rows:,} scores kept in {store}/scores/{sae}.")
    if best.num_rows:
        first = best["concept"][0].as_py()
        say_next(
            "export", store, "--sae", sae, "--concept", f"{family}={first}", "-o", "SELECTION.json"
        )


@click.command()
@_STORE
@click.argument("statement", required=False)
@output_options
def sql(store: Path, statement: str | None, out: OutputOptions) -> None:
    """Run one SELECT over STORE, or open a prompt: the views samples, codes, stats, scores and
    others.

    Also activations (column hook), sums, totals, selections and saes; what belongs to an SAE has a
    column sae. labels has a row per label; labelled_activations, labelled_codes and labelled_stats
    have a column per concept family. The statement can read the store and nothing else, and changes
    nothing. 'describe stats' lists columns. At the prompt, or piped in, a statement ends with ';'
    and may take several lines; Ctrl-D leaves.

    \b
    Example:
      featurestore sql ./store "select style, count(*) from samples group by style"
      featurestore sql ./store "select feature, sum(sum) from stats where step < 5 group by all" -o early.csv
      featurestore sql ./store
    """
    from featurestore.cli.terminal.prompt import prompt
    from featurestore.errors import UsageError
    from featurestore.store import Store
    from queries import sql as run_sql

    if statement is None and out.output is not None:
        raise UsageError("-o FILE needs a statement; a prompt shows its answers.")
    out = out.resolved()
    if statement is None:
        prompt(Store.open(store), out)
        return
    with stoppable(out.timeout):
        answer = run_sql(Store.open(store), statement, memory_limit=out.memory)
    out.show(answer)
