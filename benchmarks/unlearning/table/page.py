"""``docs/results.md`` from the outcomes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from benchmarks.record import machine
from benchmarks.unlearning.pace import Pace
from benchmarks.unlearning.table.amounts import suffix
from benchmarks.unlearning.table.hardened import HARDENED
from benchmarks.unlearning.table.pictures import draw, draw_attacked
from benchmarks.unlearning.table.run import Run
from benchmarks.unlearning.table.searching import BEYOND_K, CROSSING, EXCHANGED, HELD, TOWARD
from benchmarks.unlearning.table.tables import (
    attacks_table,
    concepts_table,
    methods_table,
    removals_table,
)
from featurestore.format import durable
from sae.evaluation.measures.accuracy import accuracy
from sae.evaluation.outcomes import Outcome

PUBLISHED = {
    "style": {
        "SAeUron": (95.80, 99.10, 99.40),
        "ESD": (98.58, 80.97, 93.96),
        "SalUn": (86.26, 90.39, 95.08),
    },
    "object": {
        "SAeUron": (78.82, 95.47, 95.58),
        "ESD": (92.15, 55.78, 44.23),
        "SalUn": (86.91, 96.35, 99.59),
    },
}
"""UnlearnCanvas on SD-1.5, from the papers; SAeUron's later re-run of objects: 87.16, 85.57,
74.14"""


def write_page(
    path: Path, run: Run, found: Mapping[str, Any], several: Mapping[str, Sequence[Outcome]]
) -> None:
    """Write the page, and the pictures that it shows: of the first concept of each family, and of
    what tokens bring back.

    Raises:
        ClickException: nothing is known yet of ours.
    """
    unknown = [f for f in run.amounts.concepts if "ours" not in found["tables"].get(f, ())]
    if unknown:
        raise click.ClickException(f"nothing yet of ours on {', '.join(unknown)}: no page.")
    run = run._replace(bench=replace(run.bench, pace=Pace()))  # Its pictures are drawn anew.
    for family, of_concepts in found["defences"].items():
        concept = next(iter(of_concepts))
        grids = {_picture(run, family): draw(run, family, concept, of_concepts[concept])}
        if reports := found["attacks"][family].get("tokens"):
            under = {method: one.report for method, one in reports.items()}
            grids[_picture(run, family, "_attacked")] = draw_attacked(run, of_concepts, under)
        for name, grid in grids.items():
            durable.write_file(path.parent / name, partial(grid.save, format="JPEG", quality=92))
    durable.write_bytes(path, page(run, found, several).encode())


def _beginning(run: Run) -> str:
    """Return the page's beginning, which is written by hand."""
    name = f"findings{suffix(run.bench.canvas)}.md"
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _picture(run: Run, family: str, of: str = "") -> str:
    return f"images/unlearning{suffix(run.bench.canvas)}_{family}{of}.jpg"


def page(run: Run, found: Mapping[str, Any], several: Mapping[str, Sequence[Outcome]]) -> str:
    """Return the page as Markdown."""
    seeds = run.amounts.report_seeds
    plain = {family: accuracy(run.before.answers, family) for family in ("style", "object")}
    precision = (
        f", {run.bench.model.autocast} products".replace("torch.", "")
        if run.bench.model.autocast
        else ""
    )
    parts = [
        _beginning(run),
        "## How the figures were made\n",
        f"Pictures of {run.bench.canvas.name}: every prompt with the seeds "
        f"{', '.join(map(str, seeds))}, judged by its `judge` "
        f"classifier. Settings were chosen, for every method alike, by the mean of UA, IRA and "
        f"CRA on the `selection` "
        f"classifier and the seeds {', '.join(map(str, run.amounts.looks[-1].seeds))}; of those "
        f"about a picture worse than the "
        f"best, or less, the one with the smallest probability of what is removed; of `{HELD}` the "
        f"best of the mildest multiplier that no attack brings back on "
        f"{run.amounts.search_attacked} pictures of the search (no other method has an attack in "
        f"its search). In brackets: 95 % intervals "
        f"(evaluation.md). Untouched pictures: style {plain['style']:.1%}, object "
        f"{plain['object']:.1%} recognised. "
        f"{_seeds_of_others(run)} "
        f"Machine: {machine()['cpu']}, {machine()['cores']} cores{precision}.\n",
    ]
    for family, methods in found["tables"].items():
        parts.append(f"## One {family} at a time\n")
        for n in sorted({len(outcomes) for outcomes in methods.values()}, reverse=True):
            # Concepts are in one order: the first ones of all methods are the same.
            compared = {name: of[:n] for name, of in methods.items() if len(of) >= n}
            names = ", ".join(c for o in methods["ours"][:n] for c in o.targets[family])
            everything = n == len(methods["ours"])
            title = _share(run, family, n) if everything else f"The first {n}: {names}"
            parts += [f"### {title}\n", methods_table(run.bench, compared)]
        parts += [
            _published(family),
            f"![Pictures by each method]({_picture(run, family)})\n",
        ]
        for name in ("ours", TOWARD, CROSSING, EXCHANGED, BEYOND_K, HELD, HARDENED):
            if name in methods:
                table = concepts_table(name, methods, found["defences"][family])
                parts += [f"### {name.capitalize()}, each {family}\n", table]
        if any(found["attacks"][family].values()):
            parts += [f"### Under attack, {family}s\n", attacks_table(found["attacks"][family])]
        if found["attacks"][family].get("tokens"):
            parts.append(
                f"The first picture of each concept, without an attack and with the tokens that "
                f"the attack ended with; in a red frame where these bring the concept back:\n\n"
                f"![Pictures under attack]({_picture(run, family, '_attacked')})\n"
            )
    titles = {
        "sequential": "Styles, then objects, removed in a row, none put back",
        "all but one": f"{_all_styles(run)} but one at once",
        "joint": "A style and an object at once",
    }
    for name, title in titles.items():
        if several.get(name):
            parts += [f"## {title}\n", removals_table(several[name])]
    return "\n".join(parts)


def _share(run: Run, family: str, n: int) -> str:
    every = len(run.bench.canvas.concepts[family])
    return f"All {n}" if n == every else f"{n} of {every}"


def _all_styles(run: Run) -> str:
    n, every = len(run.amounts.concepts["style"]), len(run.bench.canvas.styles)
    return "All styles" if n == every else f"These {n} of {every} styles"


def _seeds_of_others(run: Run) -> str:
    one, several = run.amounts.other_seeds, run.amounts.seeds_beside_several
    return (
        f"Prompts that do not ask for what is removed are drawn with {one} of these seeds each, "
        f"in turn, or {several} where "
        "several concepts are removed; whatever is asked for counts alike."
    )


def _published(family: str) -> str:
    figures = "; ".join(
        f"{name} {ua:.2f} / {ira:.2f} / {cra:.2f}"
        for name, (ua, ira, cra) in PUBLISHED[family].items()
    )
    what = (
        f"published for {family}s on UnlearnCanvas and SD-1.5, another model and another "
        f"benchmark (UA / IRA / CRA)"
    )
    return f"For comparison, {what}: {figures}.\n"
