"""``featurestore export``: selections, and a store or a decoder for other tools."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from featurestore.cli.options.gathering import given_options
from featurestore.cli.queries import BRANCH, ENGINE, running
from featurestore.cli.terminal.hints import say_next, warn_unencoded
from featurestore.cli.terminal.stopping import stoppable

if TYPE_CHECKING:
    from featurestore.selection import Selection
    from featurestore.store import Store


@click.command()
@click.argument("store", type=click.Path(path_type=Path))
@click.option("--sae", help="Name of the SAE.")
@click.option(
    "--concept",
    "concepts",
    multiple=True,
    help="FAMILY=CONCEPT, such as style=neon; may be repeated.",
)
@click.option("--by", "family", help="Instead: every concept of this family.")
@click.option(
    "--top",
    type=click.IntRange(1),
    help="Features per step: those with the largest positive scores.  [default: 2]",
)
@click.option(
    "--percentile",
    type=float,
    help="Instead: features above this percentile of all latents' scores, such as 99.99.",
)
@BRANCH
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="A file (.json, .csv, .parquet, .jsonl.zst or .md); of several concepts, a directory. "
    "Default: into the store.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["json", "csv", "parquet", "jsonl.zst", "md"]),
    default="json",
    show_default=True,
    help="Of the files in a directory.",
)
@ENGINE
@click.option(
    "--duckdb",
    "database",
    type=click.Path(path_type=Path),
    help="Instead: write a DuckDB database of views over the store, for any client.",
)
@click.option(
    "--iceberg",
    "warehouse",
    type=click.Path(path_type=Path),
    help="Instead: make an Iceberg catalog of the store's tables in this new directory (extra "
    "'iceberg').",
)
@click.option(
    "--decoder",
    type=click.Path(path_type=Path),
    help="Instead: write the rows of W_dec of --sae with concepts and statistics, as .parquet.",
)
def export(
    *, store: Path, sae: str | None, concepts: tuple[str, ...], family: str | None, top: int | None,
    percentile: float | None, branch: str, output: Path | None, form: str, database: Path | None,
    warehouse: Path | None, decoder: Path | None, engine: str,
) -> None:  # fmt: skip
    """Export the features that carry a concept: a selection, for 'generate --ablate' or for
    reading. Or the store, or an SAE's decoder, for other tools.

    A selection holds the features of every timestep with their scores and the means that ablation
    needs, and what identifies the model, the hook, the SAE and the store. Without -o it is kept in
    the table selections/SAE of the store.

    \b
    Example:
      featurestore export ./store --sae styles --concept style=neon --top 4 -o neon.json
      featurestore export ./store --sae styles --by style -o selections --format csv
      featurestore export ./store --duckdb store.duckdb
      featurestore export ./store --iceberg ./warehouse
      featurestore export ./store --sae styles --decoder styles.parquet
    """
    from featurestore.errors import UsageError
    from featurestore.store import Store

    opened = Store.open(store)
    instead = {"--duckdb": database, "--iceberg": warehouse, "--decoder": decoder}
    named = [option for option, value in instead.items() if value is not None]
    if len(named) > 1:
        raise UsageError(f"give one of {', '.join(named)}.")
    selecting = ("concepts", "family", "top", "percentile", "output", "form", "engine")
    idle = given_options(*selecting, *(() if decoder else ("sae", "branch"))) if named else []
    if idle:
        what = "an SAE's decoder" if decoder else "the whole store"
        raise UsageError(f"{named[0]} exports {what}: leave out {', '.join(idle)}.")
    if database is not None:
        _database(opened, database)
    elif warehouse is not None:
        _iceberg(opened, warehouse)
    elif decoder is not None:
        _decoder(opened, sae, decoder, branch)
    else:
        wanted = _wanted(sae, concepts, family)
        single = output is None or (family is None and len(concepts) == 1)
        said = output is not None and output.name.endswith(f".{form}")
        if given_options("form") and single and not said:
            raise UsageError(
                f"--format {form} is for the files in a directory, -o DIRECTORY; a single file has "
                f"the format that its suffix names."
            )
        _selections(
            opened, str(sae), *wanted, output=output, form=form, engine=engine, rule={"top": top, "percentile": percentile, "branch": branch},
        )  # fmt: skip


def _database(store: "Store", path: Path) -> None:
    from queries.connection.database import export_database

    with stoppable():
        views = export_database(store, path)
    click.echo(f"{len(views)} views → {path}; they read {store.root.resolve()} where it lies now.")


def _iceberg(store: "Store", warehouse: Path) -> None:
    from featurestore.cli.terminal.text import text_table
    from featurestore.sharing.iceberg import NAMESPACE, export_iceberg

    done = export_iceberg(store, warehouse)
    rows = [
        [f"{NAMESPACE}.{one.name}", f"{one.rows:,}", str(one.files), one.copied] for one in done
    ]
    click.echo(text_table(["table", "rows", "files", "copied, because"], rows))
    click.echo(
        f"→ {warehouse}/catalog.db; the other files are read in {store.root.resolve()} where it "
        f"lies now. Activations are left out: Iceberg has no float16."
    )


def _decoder(store: "Store", sae: str | None, path: Path, branch: str) -> None:
    from featurestore.errors import UsageError
    from queries.decoder import export_decoder

    if sae is None:
        raise UsageError("--decoder needs --sae.")
    if path.suffix != ".parquet":
        raise UsageError(f"{path}: the decoder is written as .parquet; the suffix says so.")
    warn_unencoded(store, sae)
    with stoppable():
        n = export_decoder(store, sae, path, branch)
    click.echo(f"{n:,} features → {path}")


def _wanted(
    sae: str | None, concepts: tuple[str, ...], family: str | None
) -> tuple[str, list[str] | None]:
    """Return the family and the concepts to select for; None: all of the family."""
    from featurestore.errors import UsageError
    from queries.selections import split_concept

    if not sae or bool(concepts) == bool(family):
        raise UsageError(
            "give --sae, and either --concept FAMILY=CONCEPT or --by FAMILY (or --duckdb, "
            "--iceberg or --decoder)."
        )
    if family is not None:
        return family, None
    wanted = [split_concept(text) for text in concepts]
    families = sorted({name for name, _ in wanted})
    if len(families) > 1:
        raise UsageError(f"--concept: expected one family, found {', '.join(families)}.")
    return families[0], [name for _, name in wanted]


def _selections(
    store: "Store", sae: str, family: str, names: list[str] | None, *, output: Path | None,
    form: str, engine: str, rule: dict,
) -> None:  # fmt: skip
    from featurestore.selection_files import check_place
    from queries.selections import select_all

    alone = names is not None and len(set(names)) == 1
    if output is not None:
        check_place(output if alone else output / f"selection.{form}")

    warn_unencoded(store, sae)
    with stoppable(), running(engine) as chosen:
        selections = select_all(store, sae, family, names, engine=chosen, progress=True, **rule)
    for selection in selections:
        where = _keep(store, selection, output, form=form, alone=alone)
        n, n_steps = selection.rows.num_rows, len(selection.timesteps)
        click.echo(
            f"{len(selection.features())} features in {n} rows over {n_steps} timesteps → {where}"
        )
    if output is not None and selections:
        model = (store.run or {}).get("model", "MODEL")
        say_next(
            "generate", "--model", model, "--prompt", "TEXT", "--ablate", where, "--out",
            "DIRECTORY",
        )  # fmt: skip


def _keep(
    store: "Store", selection: "Selection", output: Path | None, *, form: str, alone: bool
) -> str:
    """Write a selection to the file ``output``, to the directory ``output`` if it is not alone, or
    into the store."""
    from queries.selections import file_name, save_selection

    if output is None:
        return f"{store.root}/{save_selection(store, selection).files[0].path}"
    path = output if alone else output / f"{file_name(selection)}.{form}"
    selection.save(path)
    return str(path)
