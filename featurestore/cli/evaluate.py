"""``featurestore evaluate``."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featurestore.cli.options import (
    ModelOptions,
    PromptOptions,
    RunOptions,
    Seeds,
    gathered,
    judge_option,
    mode_option,
    model_options,
    prompt_options,
    run_options,
)
from featurestore.cli.scores import scores_table, sequential_table
from featurestore.vocabulary import DEFAULT_STRENGTH, INTERVENTIONS, PROTOCOLS

if TYPE_CHECKING:
    from featurestore.selection import Selection
    from sae.evaluation.protocols import Search


class Numbers(click.ParamType):
    """``1`` or ``1,2,4``."""

    name = "numbers"

    def __init__(self, kind: type[int] | type[float]) -> None:
        self.kind = kind

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> list[float]:
        """Return the numbers in the order given."""
        if isinstance(value, list):
            return value
        try:
            return [self.kind(part) for part in str(value).split(",")]
        except ValueError:
            self.fail(f"{value!r}: expected numbers such as 1,2,4.", param, ctx)


@dataclass(frozen=True, kw_only=True)
class TargetOptions:
    """What the options of :func:`target_options` say: which selections are removed."""

    selections: tuple[Path, ...]
    store: Path | None
    saes: tuple[str, ...]
    concepts: tuple[str, ...]
    family: str | None
    top: list[int]

    def read(self) -> "list[list[Selection]]":
        """Return the files' selections, those of one concept together, or each that a store has for
        the options."""
        from featurestore.errors import UsageError
        from featurestore.selection import Selection
        from featurestore.store import Store
        from queries.selections import select_all, split_concept

        if bool(self.selections) == (self.store is not None):
            raise UsageError(
                "give either --ablate FILE, or --store with --sae and --concept or --by."
            )
        if self.store is None:
            groups: dict[tuple[str, str], list[Selection]] = {}
            for one in map(Selection.load, self.selections):
                groups.setdefault((one.family, one.concept), []).append(one)
            return list(groups.values())
        if not self.saes or bool(self.concepts) == bool(self.family):
            raise UsageError(
                "--store needs --sae, and either --concept FAMILY=CONCEPT or --by FAMILY."
            )
        wanted: dict[str, list[str]] = {}
        for name, concept in map(split_concept, self.concepts):
            wanted.setdefault(name, []).append(concept)
        opened = Store.open(self.store)
        return [
            [one]
            for name in sorted(wanted) or [str(self.family)]
            for sae in self.saes
            for n in self.top
            for one in select_all(opened, sae, name, wanted.get(name), top=n)
        ]


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """What the options of :func:`search_options` say: what settings are chosen by."""

    search_judges: tuple[str, ...]
    search_seeds: list[int] | None
    search_others: int
    search_attack: int | None
    search_attack_rounds: int

    def load(self, prompts: PromptOptions, device: str) -> "Search | None":
        """Return the search's judge and prompts; None if there is no search."""
        from featurestore.errors import UsageError
        from sae.evaluation.judge import load_judge
        from sae.evaluation.protocols import Search

        if bool(self.search_judges) != bool(self.search_seeds):
            raise UsageError("a search needs both --search-judge and --search-seeds.")
        if not self.search_seeds:
            if self.search_attack:
                raise UsageError(
                    "--search-attack is part of a search: give --search-judge and --search-seeds, "
                    "too."
                )
            return None
        judge = load_judge(self.search_judges, device)
        return Search(judge, prompts.file(self.search_seeds).prompts, self.search_others)


def target_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say which selections are removed; they arrive as ``targets``."""
    options = [
        click.option(
            "--ablate",
            "selections",
            multiple=True,
            type=click.Path(path_type=Path),
            help="A selection file; may be repeated.",
        ),
        click.option(
            "--store", type=click.Path(path_type=Path), help="Instead: a store, to select from."
        ),
        click.option(
            "--sae",
            "saes",
            multiple=True,
            help="With --store: an SAE's name; several are searched.",
        ),
        click.option(
            "--concept",
            "concepts",
            multiple=True,
            help="With --store: FAMILY=CONCEPT; may be repeated.",
        ),
        click.option("--by", "family", help="With --store, instead: every concept of this family."),
        click.option(
            "--top",
            type=Numbers(int),
            default="2",
            show_default=True,
            help="With --store: features per step; several are searched.",
        ),
    ]
    return gathered(command, "targets", TargetOptions, options)


def search_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say what settings are chosen by; they arrive as ``search``."""
    options = [
        click.option(
            "--search-judge",
            "search_judges",
            multiple=True,
            help="What settings are chosen by, and balanced by where several concepts are removed "
            "together.",
        ),
        click.option(
            "--search-seeds",
            type=Seeds(),
            help="Seeds of the search; none of those that are reported.",
        ),
        click.option(
            "--search-others",
            type=click.IntRange(1),
            default=40,
            show_default=True,
            help="Pictures per setting that do not ask for the target.",
        ),
        click.option(
            "--search-attack",
            type=click.IntRange(1),
            help="Attack so many pictures of a concept with tokens, and take the best setting of "
            "which none comes back.",
        ),
        click.option(
            "--search-attack-rounds",
            type=click.IntRange(1),
            default=50,
            show_default=True,
            help="Of 40 iterations each, as attack has them.",
        ),
    ]
    return gathered(command, "search", SearchOptions, options)


@click.command()
@model_options
@prompt_options()
@judge_option
@target_options
@click.option(
    "--multiplier",
    "multipliers",
    type=Numbers(float),
    default=f"{DEFAULT_STRENGTH:g}",
    show_default=True,
    help="Strength; several are searched.",
)
@click.option(
    "--threshold",
    "thresholds",
    type=Numbers(float),
    default="1",
    show_default=True,
    help="Activations above this many times their feature's mean are edited, 0: all; several are "
    "searched.",
)
@click.option(
    "--intervention",
    type=click.Choice(list(INTERVENTIONS)),
    default="paper",
    show_default=True,
)
@mode_option
@click.option(
    "--protocol",
    type=click.Choice(PROTOCOLS),
    default="each",
    show_default=True,
    help="Remove one concept at a time, one after another without putting any back, or all at once.",
)
@search_options
@click.option(
    "--reference",
    type=click.Path(path_type=Path),
    help="Pictures to measure the distance from.  [default: the untouched model's]",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="Directory for the outcomes; a second run goes on in it.",
)
@run_options
def evaluate(
    model: ModelOptions,
    prompts: PromptOptions,
    judges: tuple[str, ...],
    targets: TargetOptions,
    multipliers: list[float],
    thresholds: list[float],
    intervention: str,
    mode: str,
    protocol: str,
    search: SearchOptions,
    reference: Path | None,
    out: Path,
    run: RunOptions,
) -> None:
    """Measure unlearning as UnlearnCanvas does: remove concepts, generate every prompt with every
    seed, judge.

    UA: pictures asked for a removed concept that do not show it. IRA: other concepts of its family
    kept. CRA: other families
    kept, on the same pictures, and, as SAeUron's released scorer has it, on prompts that name no
    concept of the family. In brackets: 95 % intervals over seeds and pictures. Everything is kept
    in evaluation.json.

    \b
    Example:
      featurestore evaluate --model minicanvas --prompts prompts.jsonl --seeds 100-104 --judge minicanvas \\
          --ablate neon.json --ablate sketch.json --multiplier -1 --out styles
      featurestore evaluate --model minicanvas --prompts prompts.jsonl --seeds 100-104 --judge minicanvas \\
          --store demo/store --sae styles --by style --top 2,4 --multiplier=-1,-5 \\
          --search-judge minicanvas:selection --search-seeds 50-52 --out searched
    """  # fmt: skip
    from sae.evaluation import evaluate as measure
    from sae.evaluation.accuracy import targets_text
    from sae.evaluation.attack import AttackSettings
    from sae.evaluation.judge import check_labels, load_judge
    from sae.evaluation.protocols import requests

    judge_device = "cpu" if model.device == "auto" else model.device
    searched = search.load(prompts, judge_device)
    wanted = requests(
        targets.read(), kind=intervention, strengths=multipliers, thresholds=thresholds
    )
    judging = load_judge(judges, judge_device)
    asked = prompts.read(run.seeds)
    check_labels(judging, [*(p.labels for p in asked), *({r.family: r.concept} for r in wanted)])
    loaded = model.load()
    body = measure(
        loaded,
        wanted,
        prompts=asked,
        judge=judging,
        out=out,
        run=run.settings(loaded),
        protocol=protocol,
        search=searched,
        search_attack=AttackSettings(rounds=search.search_attack_rounds)
        if search.search_attack
        else None,
        search_pictures=search.search_attack or 0,
        reference=reference,
        mode=mode,
        batch_size=run.batch_size,
        say=lambda line: click.echo(f"— {line}", err=True),
    )
    named = [(targets_text(row["targets"]), row) for row in body["removals"]]
    average = [("average", body["average"])] if body["average"] and len(named) > 1 else []
    click.echo(scores_table([*named, *average], judging.name))
    if protocol == "sequential":
        click.echo(sequential_table(body["removals"]))
