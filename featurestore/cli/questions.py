"""``featurestore query`` and ``plot``."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from featurestore.cli.queries import BRANCH, ENGINE, running
from featurestore.cli.terminal.hints import say_next, warn_unencoded
from featurestore.cli.terminal.stopping import stoppable
from featurestore.cli.terminal.tables import OutputOptions, output_options
from featurestore.vocabulary import PLOTS

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
    *, store: Path | None, name: str | None, parameters: tuple[str, ...], other: Path | None,
    show_list: bool, engine: str, out: OutputOptions,
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
    opened, asked = Store.open(store), _parsed(parameters)
    _warn(opened, asked)
    second = None if other is None else Store.open(other)
    if engine == "spark":
        option = "--memory" if out.memory else "--timeout" if out.timeout else None
        if option is not None:
            raise UsageError(f"{option} is for DuckDB; Spark has a configuration of its own.")
    with stoppable(out.timeout), running(engine) as chosen:
        table = ask(opened, name, asked, other=second, memory_limit=out.memory, engine=chosen)
    out.show(table)


@click.command()
@click.argument("store", type=click.Path(path_type=Path))
@click.option("--sae", required=True, help="Name of the SAE.")
@click.option("--concept", help="FAMILY=CONCEPT, such as style=neon: lines, heatmap, interval.")
@click.option("--feature", type=click.IntRange(0), help="A feature: profile, map.")
@click.option("--by", "family", help="A family of concepts: overlap.")
@click.option(
    "--kind",
    type=click.Choice(list(PLOTS)),
    help="What is drawn, see above.  [default: lines, profile or overlap, as --concept, --feature "
    "or --by is given; without any of them fvu]",
)
@click.option(
    "--top",
    type=click.IntRange(1),
    help="Features with the largest mean scores, or per step of interval and overlap; pictures of "
    "map.  [default: 10; interval: 2; map: 4]",
)
@BRANCH
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="A .png or .svg file."
)
@ENGINE
def plot(
    *, store: Path, sae: str, concept: str | None, feature: int | None, family: str | None,
    kind: str | None, top: int | None, branch: str, output: Path, engine: str,
) -> None:  # fmt: skip
    """Draw a concept, a feature, a family of concepts or an SAE over the timesteps.

    \b
    lines     --concept   score of its best features
    heatmap   --concept   the same as a map of feature × timestep
    interval  --concept   the best of each step, with 95 % intervals over the samples
    overlap   --by        how many features every two concepts share
    profile   --feature   how often and how strongly it fires
    map       --feature   where in the pictures that have most of it
    fvu                   what the SAE leaves unexplained

    \b
    Example:
      featurestore plot ./store --sae styles --concept style=neon -o neon.png
      featurestore plot ./store --sae styles --concept style=neon --kind heatmap --top 30 -o neon.svg
      featurestore plot ./store --sae styles --feature 41 --kind map -o 41.png
      featurestore plot ./store --sae styles --kind fvu -o fvu.png
    """
    from featurestore.store import Store
    from queries import plots
    from queries.selections import split_concept

    kind = _kind(kind, {"concept": concept, "feature": feature, "family": family})
    opened = Store.open(store)
    if kind == "fvu":
        click.echo(f"{plots.plot_fvu(opened, sae, output)} timesteps → {output}")
        say_next("explore", store)
        return
    warn_unencoded(opened, sae)
    limit = {} if top is None else {"top": top}
    with stoppable(), running(engine) as chosen:
        if concept is not None:
            limit = limit or ({"top": 2} if kind == "interval" else {})
            of, name = split_concept(concept)
            n = plots.plot(
                opened, sae, of, name, path=output, kind=kind, branch=branch, engine=chosen, **limit
            )
        elif family is not None:
            n = plots.plot_overlap(
                opened, sae, family, output, branch=branch, engine=chosen, **limit
            )
        elif kind == "map":
            assert feature is not None
            n = plots.plot_map(opened, sae, feature, output, branch=branch, engine=chosen, **limit)
        else:
            assert feature is not None
            n = plots.plot_profile(opened, sae, feature, output, branch=branch, engine=chosen)
    click.echo(f"{n} {_COUNTED[kind]} → {output}")
    if concept is not None:
        say_next("export", store, "--sae", sae, "--concept", concept, "-o", "SELECTION.json")
    elif family is not None:
        say_next("export", store, "--sae", sae, "--by", family, "-o", "DIRECTORY")
    else:
        say_next("explore", store)


_COUNTED = {
    "lines": "features", "heatmap": "features", "interval": "features", "overlap": "concepts",
    "profile": "timesteps", "map": "pictures",
}  # fmt: skip


def _kind(kind: str | None, given: Mapping[str, object]) -> str:
    """Return the kind of plot, after comparing it with what it is to be drawn for.

    Raises:
        UsageError: it is drawn for something else, or for more than one thing.
    """
    from featurestore.errors import UsageError

    named = [name for name, value in given.items() if value is not None]
    if kind is None and len(named) < 2:
        return (
            {"concept": "lines", "feature": "profile", "family": "overlap"}[named[0]]
            if named
            else "fvu"
        )
    options = {
        "concept": "--concept",
        "feature": "--feature",
        "family": "--by",
        "sae": "no more than --sae",
    }
    found = " and ".join(options[name] for name in named) or options["sae"]
    if kind is None:
        raise UsageError(f"give one of --concept, --feature and --by, not {found}.")
    if named != [PLOTS[kind]] and not (PLOTS[kind] == "sae" and not named):
        raise UsageError(f"--kind {kind} is drawn for {options[PLOTS[kind]]}; given: {found}.")
    return kind


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
