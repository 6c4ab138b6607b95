"""``featurestore relabel``."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from featurestore.cli.options import PromptOptions, prompt_options

if TYPE_CHECKING:
    from featurestore.maintenance.relabel import Relabelled

_SHOWN = 20


@click.command()
@click.argument("store", type=click.Path(path_type=Path))
@prompt_options()
@click.option("--dry-run", is_flag=True, help="Show what would change; write nothing.")
def relabel(store: Path, prompts: PromptOptions, dry_run: bool) -> None:
    """Give the samples of STORE the labels of a corrected file of prompts.

    A row changes every sample of its prompt, or the one with its seed if it has one. A family that
    the file does not have becomes null in these samples; samples that the file does not have keep
    their labels. What was collected stays as it is. The former labels are kept in the table labels;
    scores that were kept must be computed again.

    \b
    Example:
      featurestore relabel ./store --prompts corrected.jsonl --dry-run
      featurestore relabel ./store --prompts corrected.jsonl
    """
    from featurestore.maintenance.relabel import relabel as change
    from featurestore.maintenance.relabel import stored_seeds
    from featurestore.store import Store

    opened = Store.open(store)
    done = change(opened, prompts.read(stored_seeds(opened)), dry_run=dry_run)
    _show_changes(done)
    outside = (
        f" {done.n_unmatched:,} others are not in the file: their labels stay."
        if done.n_unmatched
        else ""
    )
    click.echo(f"{done.n_samples:,} of {done.n_matched:,} samples get other labels.{outside}")
    if dry_run:
        click.echo("Nothing was written.")
    elif done.version is not None:
        click.echo(f"Version {done.version} of the labels kept in {store}/labels.")
        for sae, family in done.outdated:
            click.echo(
                f"scores/{sae} was computed from the former labels: featurestore score {store} "
                f"--sae {sae} --by {family}"
            )


def _show_changes(done: "Relabelled") -> None:
    import pyarrow as pa

    from featurestore.cli.terminal.tables import as_text

    if done.changes:
        rows = [
            {
                "family": change.family,
                "before": _shown(change.before),
                "after": _shown(change.after),
                "samples": n,
            }
            for change, n in done.changes.most_common(_SHOWN)
        ]
        click.echo(as_text(pa.Table.from_pylist(rows), None))
        more = len(done.changes) - _SHOWN
        click.echo(f"… {more:,} more changes\n" if more > 0 else "")


def _shown(concept: str | None) -> str:
    return "(none)" if concept is None else repr(concept)
