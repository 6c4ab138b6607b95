"""``featurestore query`` and ``plot``."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from featurestore.cli.hints import warn_unencoded
from featurestore.cli.queries import ENGINE, running
from featurestore.cli.stopping import stoppable
from featurestore.cli.tables import OutputOptions, output_options
from featurestore.vocabulary import BRANCHES

if TYPE_CHECKING:
    from featurestore.store import Store


@click.command()
@click.argument("store", type=click.Path(path_type=Path), required=False)
@click.argument("name", required=False)
@click.option(
    "-p",
    "parameters",
    multiple=True,
    metavar="KEY=VALUE",
    help="A parameter of the question; repeated.",
)
@click.option("--other", type=click.Path(path_type=Path), help="The other store of compare_stores.")
@click.option(
    "--list", "show_list", is_flag=True, help="List the questions; with NAME, explain one."
)
@ENGINE
@output_options
def query(
    store: Path | None, name: str | None, parameters: tuple[str, ...], other: Path | None, show_list: bool,
    engine: str, out: OutputOptions,
) -> None:  # fmt: skip
    """Ask STORE a question of the library, by NAME.

    The questions are the files queries/sql/*.sql: scores, selections, profiles, cards, comparisons.
    --sae and --by of other commands are the parameters sae and family here; where there is only
    one, it need not be named.

    \b
    Example:
      featurestore query --list
      featurestore query --list bootstrap
      featurestore query ./store timestep_profile -p sae=styles -p feature=41
      featurestore query ./store overlap -p concept=neon -p other_concept=sketch -o overlap.csv
    """
    from featurestore.errors import UsageError
    from featurestore.store import Store
    from queries import ask

    if show_list:
        if name is None and store is not None and not store.is_dir():
            name = str(store)  # a question alone; with a store alone, all are listed
        click.echo(_explained(name) if name else _listed())
        return
    if store is None or name is None:
        raise UsageError(
            "expected STORE and NAME; 'featurestore query --list' shows the questions."
        )
    out = out.resolved()
    _warn(Store.open(store), _parsed(parameters))
    second = None if other is None else Store.open(other)
    if engine == "spark":
        option = "--memory" if out.memory else "--timeout" if out.timeout else None
        if option is not None:
            raise UsageError(f"{option} is of DuckDB: Spark has a configuration of its own.")
    with stoppable(out.timeout), running(engine) as chosen:
        asked = _parsed(parameters)
        table = ask(
            Store.open(store), name, asked, other=second, memory_limit=out.memory, engine=chosen
        )
    out.show(table)


@click.command()
@click.argument("store", type=click.Path(path_type=Path))
@click.option("--sae", required=True, help="Name of the SAE.")
@click.option("--concept", required=True, help="FAMILY=CONCEPT, such as style=neon.")
@click.option(
    "--kind",
    type=click.Choice(["lines", "heatmap"]),
    default="lines",
    show_default=True,
    help="Score over timesteps a feature, or a map of feature × timestep.",
)
@click.option(
    "--top",
    type=click.IntRange(1),
    default=10,
    show_default=True,
    help="Features with the largest mean scores.",
)
@click.option(
    "--branch",
    type=click.Choice(BRANCHES),
    default="cond",
    show_default=True,
    help="Half of guidance.",
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="A .png or .svg file."
)
@ENGINE
def plot(
    store: Path, sae: str, concept: str, kind: str, top: int, branch: str, output: Path, engine: str
) -> None:
    """Draw the importance of a concept's best features over the timesteps.

    \b
    Example:
      featurestore plot ./store --sae styles --concept style=neon -o neon.png
      featurestore plot ./store --sae styles --concept style=neon --kind heatmap --top 30 -o neon.svg
    """
    from featurestore.store import Store
    from queries import plot as draw
    from queries.selections import split_concept

    family, name = split_concept(concept)
    opened = Store.open(store)
    warn_unencoded(opened, sae)
    with stoppable(), running(engine) as chosen:
        n = draw(
            opened, sae, family, name, output, kind=kind, top=top, branch=branch, engine=chosen
        )
    click.echo(f"{n} features → {output}")


def _warn(store: "Store", parameters: Mapping[str, object]) -> None:
    """Warn of samples that the question's SAE, or the only one of the store, has not encoded."""
    known = store.names("codes")
    named = parameters.get("sae") or (known[0] if len(known) == 1 else None)
    if named in known:
        warn_unencoded(store, str(named))


def _parsed(parameters: tuple[str, ...]) -> dict[str, str | int | float | None]:
    from featurestore.errors import UsageError

    values: dict[str, str | int | float | None] = {}
    for text in parameters:
        key, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"-p {text!r}: expected KEY=VALUE, such as -p feature=41.")
        if key in values:
            raise UsageError(f"-p {key} is given twice.")
        values[key] = value
    return values


def _listed() -> str:
    from queries.questions import questions

    lines = []
    for asked in questions().values():
        needed = [name if p.required else f"[{name}]" for name, p in asked.parameters.items()]
        lines += [f"{asked.name}({', '.join(needed)})", f"    {asked.summary}"]
    return "\n".join(lines)


def _explained(name: str) -> str:
    from queries.questions import find_question

    asked = find_question(name)
    lines = [asked.documentation, "", "Give with -p:"]
    for parameter in asked.parameters.values():
        default = "" if parameter.default is None else f"  [default: {parameter.default}]"
        lines.append(f"  {parameter.name:14} {parameter.help}{default}")
    return "\n".join([*lines, "", asked.example])
