"""``featurestore prompts``."""

import functools
import json
from typing import TYPE_CHECKING

import click

from featurestore.cli.options import PromptOptions, Seeds, column_options
from featurestore.cli.terminal.hints import say_next

if TYPE_CHECKING:
    from featurestore.prompts import Prompt, PromptFile

_CONCEPTS = 12


@click.command()
@functools.partial(column_options, source=click.argument("source", metavar="FILE"))
@click.option("--seeds", type=Seeds(), default="0", show_default=True, help="As for collect.")
@click.option("--rows", type=click.IntRange(1), default=5, show_default=True, help="Rows shown.")
@click.option("-o", "--output", metavar="FILE", help="Also write it as JSONL, one line per sample.")
def prompts(prompts: PromptOptions, seeds: list[int], rows: int, output: str | None) -> None:
    """Show what FILE is understood as: its columns, first rows and labels, and what looks like a
    slip.

    FILE is JSONL, CSV, TSV, JSON, text (a prompt per line) or Parquet, by its suffix, or a data
    set: a directory or OWNER/NAME (OWNER/NAME:CONFIG) of the hub. collect, train-live, generate,
    evaluate and relabel take the same file and the same options.

    \b
    Example:
      featurestore prompts i2p.csv --seed-column sd_seed --guidance-column sd_guidance_scale \\
          --split-label categories --label hard
      featurestore prompts prompts.jsonl
    """
    from pathlib import Path

    from featurestore.format import durable
    from featurestore.prompts import label_warnings

    if output is not None:
        durable.check_file(Path(output))
    file = prompts.file(seeds)
    _show(file, rows)
    for warning in label_warnings(file.prompts):
        click.echo(f"Warning: {warning}")
    _hints(file)
    if output is not None:
        lines = [f"{json.dumps(_body(prompt), ensure_ascii=False)}\n" for prompt in file.prompts]
        durable.write_bytes(Path(output), "".join(lines).encode())
        click.echo(f"{len(lines):,} lines → {output}")
    about = ("--model", "MODEL", "--hook", "HOOK", "--store", "STORE")
    say_next("collect", *about, "--prompts", str(prompts.source))


def _show(file: "PromptFile", rows: int) -> None:
    import pyarrow as pa

    from featurestore.cli.terminal.tables import as_text
    from featurestore.prompts import label_counts

    repeats = f", {file.n_repeats:,} repeats left out" if file.n_repeats else ""
    click.echo(f"{file.n_rows:,} rows, {len(file.prompts):,} samples{repeats}.\n")
    click.echo(
        as_text(
            pa.table({"column": list(file.columns), "taken as": list(file.columns.values())}), None
        )
    )
    first = [{"line": prompt.line, **_body(prompt)} for prompt in file.prompts[:rows]]
    click.echo(f"\n{as_text(pa.Table.from_pylist(first), None)}")
    for family, counts in label_counts(file.prompts).items():
        shown = [
            f"{'(none)' if name is None else repr(name)} {n:,}"
            for name, n in counts.most_common(_CONCEPTS)
        ]
        more = f", … {len(counts) - _CONCEPTS:,} more" if len(counts) > _CONCEPTS else ""
        click.echo(f"\n{family}: {', '.join(shown)}{more}")
    click.echo("")


def _body(prompt: "Prompt") -> dict[str, str | int | float | None]:
    own = {} if prompt.guidance is None else {"guidance": prompt.guidance}
    return {"prompt": prompt.prompt, "seed": prompt.seed, **own, **prompt.labels}


def _hints(file: "PromptFile") -> None:
    """Name the columns that look like a seed or a guidance scale and are not taken as one."""
    for word, option in (("seed", "--seed-column"), ("guidance", "--guidance-column")):
        near = [
            name for name, role in file.columns.items() if word in name.lower() and role != word
        ]
        if near and word not in file.columns.values():
            click.echo(
                f"Note: column {near[0]!r} is not taken as a {word}: {option} {near[0]} makes it "
                f"one."
            )
