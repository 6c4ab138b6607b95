"""``featurestore info``, ``verify``, ``repair`` and ``compact``."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from featurestore.format.records import Record
    from featurestore.store import Store


_INDENT = 19
"""characters before the value of a run's setting"""


@click.command()
@click.argument("store", type=click.Path(path_type=Path))
def info(store: Path) -> None:
    """Say what is in STORE: its run, its tables, its SAEs.

    \b
    Example:
      featurestore info ./store
    """
    from featurestore.cli.terminal.text import human_bytes, text_table
    from featurestore.store import Store

    opened = Store.open(store)
    tables = {table: opened.records(table) for table in opened.tables()}
    click.echo(f"{opened.root}  ({_format(opened, tables.values())}, run {opened.run_id})")
    for key, value in sorted((opened.run or {}).items()):
        click.echo(f"  {key:{_INDENT - 3}} {_short(value)}")
    rows = []
    for table, records in tables.items():
        n, size = sum(r.rows for r in records), sum(r.n_bytes for r in records)
        rows.append([table, f"{n:,}", f"{len(records):,}", human_bytes(size)])
    click.echo(
        "\n" + text_table(["table", "rows", "shards", "size"], rows, [False, True, True, True])
    )
    _saes(opened)


def _format(store: "Store", tables: "Iterable[Sequence[Record]]") -> str:
    """Return the format version of a store, and that of shards that have another."""
    versions = Counter(record.version for records in tables for record in records)
    n_shards = versions.total()
    others = "".join(
        f", {n:,} of {n_shards:,} shards format {version}"
        for version, n in sorted(versions.items())
        if version != store.version
    )
    return f"format {store.version}{others}"


def _saes(store: "Store") -> None:
    from featurestore.cli.terminal.text import text_table
    from featurestore.saes import encoded_share, load_config

    rows = []
    for record in store.records("saes"):
        config, share = load_config(store, record.shard), encoded_share(store, record.shard)
        sizes = [str(config[key]) for key in ("d_in", "n_latents", "k")]
        rows.append(
            [record.shard, config["hook"], *sizes, f"{share.n_encoded:,} of {share.n_samples:,}"]
        )
    if rows:
        names = ["SAE", "hook", "d_in", "latents", "k", "samples encoded"]
        click.echo("\n" + text_table(names, rows, [False, False, True, True, True, True]))


@click.command()
@click.argument("store", type=click.Path(path_type=Path))
@click.option("--deep", is_flag=True, help="Also read every value.")
def verify(store: Path, deep: bool) -> None:
    """Check STORE against its commit records; list every problem, exit 1 if data is damaged.

    \b
    Example:
      featurestore verify ./store
      featurestore verify ./store --deep
    """
    from tqdm import tqdm

    from featurestore.cli.terminal.values import visible
    from featurestore.maintenance.verify import verify as check
    from featurestore.store import Store

    opened = Store.open(store)
    checked: list[str] = []
    with tqdm(desc="verify", unit=" records", disable=None) as bar:

        def progress(path: str) -> None:
            checked.append(path)
            bar.update()

        problems = check(opened, deep, progress)
    for problem in problems:
        state = "damaged " if problem.damage else "leftover"
        click.echo(f"{state}  {visible(f'{problem.path}: {problem.what}')}")
    n_damaged = sum(problem.damage for problem in problems)
    if n_damaged:
        click.echo(
            f"'featurestore repair {store}' mends what can be mended, and says how to get back "
            f"the rest."
        )
    depth = "every value" if deep else "every file's SHA-256"
    click.echo(
        f"{n_damaged} damaged, {len(problems) - n_damaged} leftover ({depth} checked, "
        f"{len(checked)} records)."
    )
    raise SystemExit(1 if n_damaged else 0)


@click.command()
@click.argument("store", type=click.Path(path_type=Path))
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@click.option("--deep", is_flag=True, help="Also look at every value.")
def repair(store: Path, dry_run: bool, deep: bool) -> None:
    """Mend STORE where files were lost or changed. Nothing is deleted.

    What follows from something else is made anew. What does not is set aside in STORE/.set-aside,
    and the command that makes it again is named. Leftovers of killed runs are removed.

    \b
    Example:
      featurestore repair ./store --dry-run
      featurestore repair ./store
    """
    from featurestore.cli.terminal.values import visible
    from featurestore.maintenance.repair import repair as mend

    steps = mend(store, deep, dry_run)
    for step in steps:
        advice = f"; {step.advice}" if step.advice else ""
        click.echo(f"{step.does:10}  {visible(f'{step.path}: {step.found}{advice}')}")
    left = sum(step.does == "left" for step in steps)
    done = "would be dealt with" if dry_run else "dealt with"
    click.echo(f"{len(steps) - left} problems {done}, {left} left.")
    raise SystemExit(1 if left else 0)


@click.command()
@click.argument("store", type=click.Path(path_type=Path))
def compact(store: Path) -> None:
    """Put the many small shards of samples, codes and statistics of STORE into few large files.

    Nothing that a question sees changes: rows, their order, ids and values stay. Small shards that
    lie side by side become files of 256 to 512 MB, the last of a table as large as it comes. Others
    may read and write meanwhile; the small files go when no command and no program of this library
    has the store open, at the latest with the next call. It needs as much free disk as the table
    that it is at.

    \b
    Example:
      featurestore compact ./store
    """
    from tqdm import tqdm

    from featurestore.maintenance.compact import compact as run
    from featurestore.store import Store

    with tqdm(desc="compact", unit=" shards", disable=None) as bar:
        found = run(Store.open(store), lambda table: bar.update())
    for one in found:
        click.echo(f"{one.table}: {one.before:,} shards are {one.after:,} now.")
    waiting = sum(one.waiting for one in found)
    if waiting:
        click.echo(
            f"{waiting:,} files that count no more stay until nobody reads the store: run the "
            f"same command again."
        )
    if not found:
        click.echo("Nothing to compact.")


def _short(value: object) -> str:
    from featurestore.cli.terminal.text import cut, terminal_width
    from featurestore.cli.terminal.values import visible

    return cut(visible(str(value)), min(88, (terminal_width() or 107) - _INDENT))
