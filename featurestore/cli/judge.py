"""``featurestore judge``."""

import json
from pathlib import Path

import click

from featurestore.cli.options import judge_option
from featurestore.cli.terminal.hints import say_next
from featurestore.cli.terminal.scores import scores_table


@click.command()
@click.argument("pictures", type=click.Path(path_type=Path))
@judge_option
@click.option(
    "--target",
    "targets",
    multiple=True,
    required=True,
    help="FAMILY=CONCEPT that was removed; may be repeated.",
)
@click.option(
    "--names",
    multiple=True,
    help="What the files' names hold, such as {style}_{object}_seed{seed}; may be repeated.",
)
@click.option(
    "--reference",
    type=click.Path(path_type=Path),
    help="A folder of pictures to measure the distance from.",
)
@click.option("--device", default="cpu", show_default=True, help="Where the judge runs.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Also write the figures as JSON."
)
def judge(
    *, pictures: Path, judges: tuple[str, ...], targets: tuple[str, ...], names: tuple[str, ...],
    reference: Path | None, device: str, output: Path | None,
) -> None:  # fmt: skip
    """Score a folder of pictures that were generated while concepts were removed.

    What each was asked to show is read from the folder's generated.jsonl, or from the files' names.

    \b
    Example:
      featurestore judge after --judge minicanvas --target style=neon
      featurestore judge pictures --judge style50 --judge class20 --target "style=Van_Gogh" \\
          --names "{style}_{object}_seed{seed}" --names "{object}_seed{seed}"
    """  # fmt: skip
    from featurestore.format import durable
    from queries.selections import split_concept
    from sae.evaluation import score_folder
    from sae.evaluation.judge import load_judge
    from sae.evaluation.measures.accuracy import grouped
    from sae.evaluation.report import summary

    if output is not None:
        durable.check_file(output)
    removed = grouped(split_concept(text, "--target") for text in targets)
    network = load_judge(judges, device)
    outcome = score_folder(
        pictures, judge=network, targets=removed, names=names, reference=reference
    )
    figures = summary([outcome])
    click.echo(scores_table([(", ".join(targets), figures)], network.name))
    if output is not None:
        durable.write_bytes(output, (json.dumps(figures, indent=1) + "\n").encode())
    asked = [word for name in judges for word in ("--judge", name)]
    words = ("--model", "MODEL", "--prompts", "FILE", *asked, "--ablate", "SELECTION.json")
    say_next("evaluate", *words, "--out", "OUT")
