"""``docs/results.md`` from the outcomes."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from benchmarks.record import machine
from benchmarks.unlearning.methods.defence import Defence
from benchmarks.unlearning.methods.trained import training_seconds
from benchmarks.unlearning.pace import Pace
from benchmarks.unlearning.table.amounts import suffix
from benchmarks.unlearning.table.attacks import SKIPPED, Attacks
from benchmarks.unlearning.table.hardened import HARDENED
from benchmarks.unlearning.table.pictures import draw, draw_attacked
from benchmarks.unlearning.table.run import Run
from benchmarks.unlearning.table.searching import HELD, TOWARD
from featurestore.format import durable
from sae.evaluation.attack.report import Rate
from sae.evaluation.measures.accuracy import accuracy
from sae.evaluation.outcomes import Outcome, per_target
from sae.evaluation.report import summary

FIGURES = {"ua": "UA", "ira": "IRA", "cra": "CRA", "cra_plain": "CRA (released scorer)"}
SEVERAL = {
    "ua": "UA",
    "ua_none": "UA (none)",
    **{key: FIGURES[key] for key in ("ira", "cra", "cra_plain")},
}
"""where several concepts are removed (docs/evaluation.md)"""
DISTANCE = "Fréchet (judge's features)"
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
            pictures = {method: one.report.pictures for method, one in reports.items()}
            grids[_picture(run, family, "_attacked")] = draw_attacked(run, of_concepts, pictures)
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
            parts += [f"### {title}\n", _methods(run, compared)]
        parts += [
            _published(family),
            f"![Pictures by each method]({_picture(run, family)})\n",
        ]
        for name in ("ours", TOWARD, HELD, HARDENED):
            if name in methods:
                table = _concepts(name, methods, found["defences"][family])
                parts += [f"### {name.capitalize()}, each {family}\n", table]
        if any(found["attacks"][family].values()):
            parts += [f"### Under attack, {family}s\n", _attacks(found["attacks"][family])]
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
            parts += [f"## {title}\n", _removals(several[name])]
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


def _methods(run: Run, methods: Mapping[str, Sequence[Outcome]]) -> str:
    header = [
        "method",
        *FIGURES.values(),
        "mean of three",
        DISTANCE,
        "s per picture",
        "training, s",
        "kept, MB",
        "peak, MB",
    ]
    rows = []
    for name, outcomes in methods.items():
        figures = summary(outcomes)
        trained = training_seconds(run.bench, name)
        known = [figures[key]["value"] for key in ("ua", "ira", "cra") if figures[key]]
        cells = [
            name,
            *(_figure(figures[key]) for key in FIGURES),
            f"{100 * statistics.mean(known):.2f}",
        ]
        cells += [
            "" if figures["frechet"] is None else f"{figures['frechet']:.2f}",
            f"{figures['seconds_per_picture']:.2f}",
        ]
        cells += [f"{statistics.mean(trained):.0f}" if trained else ""]
        rows.append(
            [*cells, f"{figures['stored_bytes'] / 1e6:.1f}", f"{figures['peak_bytes'] / 1e6:.0f}"]
        )
    return _table(header, rows)


def _concepts(
    method: str,
    methods: Mapping[str, Sequence[Outcome]],
    defences: Mapping[str, Mapping[str, Defence]],
) -> str:
    rows = []
    for outcome in methods[method]:
        figures = summary([outcome])
        ((_, (concept,)),) = outcome.targets.items()
        edit, *more = defences[concept][method].interventions
        setting = [
            f"`{edit.selection.hook}`",
            edit.selection.k,
            f"{edit.selection.rule['top']:g}",
            f"{edit.strength:g}",
            f"{edit.threshold:g}",
            f"{edit.toward.concept} ({edit.pull:g})" if edit.toward else "",
        ]
        if method == HARDENED:
            taken = [f"{len(one.selection.features())} ({one.strength:g})" for one in more]
            setting.append(", then ".join(taken))
        rows.append([concept, *(_figure(figures[key]) for key in FIGURES), *map(str, setting)])
    settings = [
        "hook",
        "k of the SAE",
        "features per step",
        "multiplier",
        "threshold",
        "towards (β)",
        *(["features taken too (multiplier)"] if method == HARDENED else []),
    ]
    return _table(["removed", *FIGURES.values(), *settings], rows)


def _removals(outcomes: Sequence[Outcome]) -> str:
    rows = []
    for outcome in outcomes:
        figures = summary([outcome])
        removed = ", ".join(c for concepts in outcome.targets.values() for c in concepts)
        multipliers = {
            edit["concept"]: f" ({edit['strength']:g})" for edit in outcome.setting.get("edits", ())
        }
        each = ", ".join(
            f"{(concept := target.partition('=')[2])} {100 * ua:.1f}{multipliers.get(concept, '')}"
            for target, ua in per_target(outcome).items()
        )
        cells = [removed, outcome.setting["method"], *(_figure(figures[key]) for key in SEVERAL)]
        distance = "" if figures["frechet"] is None else f"{figures['frechet']:.2f}"
        rows.append([*cells, distance, each])
    header = ["removed", "method", *SEVERAL.values(), DISTANCE, "UA of each (its multiplier)"]
    return _table(header, rows)


def _attacks(attacks: Attacks) -> str:
    by_concepts: dict[tuple[str, ...], list[list[str]]] = {}
    for attack, methods in attacks.items():
        for method, (report, typed) in methods.items():
            concepts = tuple(dict.fromkeys(one.concept for one in report.pictures))
            as_text = _rate(typed.under_attack) if typed else ""
            rates = [_rate(report.before), _rate(report.under_attack), as_text]
            rates.append(str(len(report.pictures)))
            by_concepts.setdefault(concepts, []).append([method, attack, *rates])
    left_out = "; ".join(f"{name}: {why}" for name, why in SKIPPED.items())
    header = [
        "method",
        "attack",
        "shown without attack, %",
        "shown under attack (ASR), %",
        "the same, typed as text, %",
        "pictures",
    ]
    tables = [
        f"Pictures of {', '.join(concepts)}:\n\n{_table(header, rows)}"
        for concepts, rows in sorted(by_concepts.items(), key=lambda one: -len(one[0]))
    ]
    return "\n".join([
        *tables, f"Gradients go through each defence. Not attacked: {left_out}.\n"
    ])  # fmt: skip


def _rate(rate: Rate) -> str:
    return f"{100 * rate.value:.1f} [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"


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


def _figure(figure: Mapping[str, float] | None) -> str:
    if figure is None or not math.isfinite(figure["value"]):
        return ""
    return f"{100 * figure['value']:.2f} [{100 * figure['low']:.1f}, {100 * figure['high']:.1f}]"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
