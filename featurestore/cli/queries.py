"""``featurestore score``, ``sql`` and ``export``."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import pyarrow as pa

_STORE = click.argument("store", type=click.Path(path_type=Path))
_SAE = click.option("--sae", required=True, help="Name of the SAE.")
_BRANCH = click.option(
    "--branch", type=click.Choice(["cond", "uncond"]), default="cond", show_default=True, help="Half of guidance."
)
_ROWS_SHOWN = 40
_CELL = 60


@click.command()
@_STORE
@_SAE
@click.option("--by", "family", required=True, help="Concept family: a label column of the samples.")
@_BRANCH
@click.option(
    "--top", type=click.IntRange(1), default=5, show_default=True, help="Features shown a concept; all are kept."
)
def score(store: Path, sae: str, family: str, branch: str, top: int) -> None:
    """Score every feature for every concept of a family, keep the table scores/SAE, and show the best.

    The score is the feature's share of all activation in the concept's samples minus its share in the other concepts'
    samples, step by step; shown is its mean over the steps, and at how many steps it is among the concept's best.

    \b
    featurestore score ./store --sae styles --by style
    """
    from featurestore.store import Store
    from queries.importance import save_scores
    from queries.summary import best_features

    scores = save_scores(Store.open(store), sae, family, branch)
    click.echo(_as_text(best_features(scores, top), rows=None))
    click.echo(f"\n{scores.num_rows:,} scores kept in {store}/scores/{sae}.")


@click.command()
@_STORE
@click.argument("statement")
@click.option(
    "--format", "form", type=click.Choice(["table", "csv", "json", "parquet"]), default="table", show_default=True
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write to this file instead.")
def sql(store: Path, statement: str, form: str, output: Path | None) -> None:
    """Run one SELECT over STORE: the views samples, activations, codes, stats, scores, selections and saes.

    activations has a column hook; codes, stats, scores and selections have a column sae. The statement can read the store
    and nothing else, and changes nothing. 'describe stats' lists columns.

    \b
    featurestore sql ./store "select style, count(*) from samples group by style"
    featurestore sql ./store "select feature, sum(sum) from stats where step < 5 group by all" --format csv -o early.csv
    """
    from featurestore import durable
    from featurestore.errors import UsageError
    from featurestore.store import Store
    from queries.session import run_sql

    if form == "parquet" and output is None and sys.stdout.isatty():
        raise UsageError("--format parquet writes bytes: give -o FILE, or pipe the output.")
    data = _encode(run_sql(Store.open(store), statement), form)
    if output is None:
        click.echo(data, nl=False)
    else:
        durable.write_bytes(output, data)


@click.command()
@_STORE
@_SAE
@click.option("--concept", required=True, help="FAMILY=CONCEPT, such as style=neon.")
@click.option("--top", type=click.IntRange(1), help="Features a step with the largest positive scores.  [default: 2]")
@click.option(
    "--percentile", type=float, help="Instead: features above this percentile of all latents' scores, such as 99.99."
)
@_BRANCH
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help=".json, .csv, .parquet or .jsonl.zst; default: into the store.",
)
def export(
    store: Path, sae: str, concept: str, top: int | None, percentile: float | None, branch: str, output: Path | None
) -> None:
    """Export the features that carry a concept: a selection, for 'generate --ablate' or for reading.

    It holds the features of every timestep with their scores and the means that ablation needs, and what identifies the
    model, the hook, the SAE and the store. Without -o it is kept in the table selections/SAE of the store.

    \b
    featurestore export ./store --sae styles --concept style=neon --top 4 -o neon.json
    """
    from featurestore.store import Store
    from queries.importance import save_selection, select, split_concept

    opened = Store.open(store)
    family, name = split_concept(concept)
    selection = select(opened, sae, family, name, top, percentile, branch)
    if output is None:
        where = f"{store}/{save_selection(opened, selection).files[0].path}"
    else:
        selection.save(output)
        where = str(output)
    n = selection.rows.num_rows
    click.echo(f"{len(selection.features())} features in {n} rows over {len(selection.timesteps)} timesteps → {where}")


def _encode(table: "pa.Table", form: str) -> bytes:
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    from featurestore.errors import QueryError

    if form == "table":
        return f"{_as_text(table, _ROWS_SHOWN)}\n".encode()
    if form == "json":
        return f"{json.dumps(_json(table.to_pylist()), ensure_ascii=False, indent=1)}\n".encode()
    sink = pa.BufferOutputStream()
    try:
        if form == "parquet":
            pyarrow.parquet.write_table(table, sink)
        else:
            pyarrow.csv.write_csv(_flat(table), sink)
    except pa.ArrowException as error:
        raise QueryError(f"the result does not fit --format {form}: {error} Cast that column in the SELECT.") from error
    return sink.getvalue().to_pybytes()


def _flat(table: "pa.Table") -> "pa.Table":
    """Return the table with nested and binary columns as JSON text, as CSV has neither."""
    import pyarrow as pa

    def text(column: Any) -> Any:
        values = [None if v is None else json.dumps(_json(v), ensure_ascii=False) for v in column.to_pylist()]
        return pa.array(values, pa.string())

    odd = [pa.types.is_nested(column.type) or pa.types.is_binary(column.type) for column in table.columns]
    columns = [text(c) if is_odd else c for c, is_odd in zip(table.columns, odd, strict=True)]
    return pa.table(columns, names=table.column_names)


def _json(value: Any) -> Any:
    """Return a value as JSON has it: no infinity and no NaN, but null; numbers of any width as numbers."""
    import math
    from decimal import Decimal

    if isinstance(value, dict):
        return {str(key): _json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json(item) for item in value]
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, (int, str, type(None))) else _plain(value)


def _plain(value: Any) -> str:
    return f"<{len(value)} bytes>" if isinstance(value, bytes) else str(value)


def _as_text(table: "pa.Table", rows: int | None) -> str:
    """Return an aligned table; numbers to the right, long cells cut."""
    shown = table if rows is None else table.slice(0, rows)
    columns = [[_cell(value) for value in column.to_pylist()] for column in shown.columns]
    numeric = [str(column.type).startswith(("int", "uint", "float", "double", "decimal")) for column in table.columns]
    widths = [max(len(name), *map(len, cells), 0) for name, cells in zip(table.column_names, columns, strict=True)]

    def line(cells: list[str]) -> str:
        parts = zip(cells, widths, numeric, strict=True)
        return "  ".join(c.rjust(w) if right else c.ljust(w) for c, w, right in parts).rstrip()

    lines = [line(list(table.column_names)), line(["─" * width for width in widths])]
    lines += [line(list(row)) for row in zip(*columns, strict=True)]
    if shown.num_rows < table.num_rows:
        lines.append(f"… {table.num_rows - shown.num_rows:,} more of {table.num_rows:,} rows; --format csv shows all")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else "" if value is None else _plain(value)
    text = " ".join(text.split())
    return text if len(text) <= _CELL else f"{text[: _CELL - 1]}…"
