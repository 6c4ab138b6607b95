"""The tables of ``docs/results.md``, as Markdown."""

import math
import statistics
from collections.abc import Mapping, Sequence

from benchmarks.unlearning.methods.defence import Bench, Defence
from benchmarks.unlearning.methods.trained import training_seconds
from benchmarks.unlearning.table.attacks import SKIPPED, Attacks
from sae.evaluation.attack.report import Rate
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


def methods_table(bench: Bench, methods: Mapping[str, Sequence[Outcome]]) -> str:
    """Return a row of figures per method, of the same concepts."""
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
        trained = training_seconds(bench, name)
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


def concepts_table(
    method: str,
    methods: Mapping[str, Sequence[Outcome]],
    defences: Mapping[str, Mapping[str, Defence]],
) -> str:
    """Return a row per concept, with the setting of its features that was chosen.

    ``defences``: concept → method → defence.
    """
    rows = []
    for outcome in methods[method]:
        figures = summary([outcome])
        ((_, (concept,)),) = outcome.targets.items()
        edit, *more = defences[concept][method].interventions
        hooks = dict.fromkeys(one.selection.hook for one in (edit, *more))
        if len(hooks) > 1:
            more = []
        setting = [
            f"`{edit.selection.hook}`" if len(hooks) == 1 else f"{len(hooks)} cross-attentions",
            edit.selection.k,
            f"{edit.selection.rule['top']:g}",
            f"{edit.strength:g}",
            f"{edit.threshold:g}",
            f"{edit.toward.concept} ({edit.pull:g})" if edit.toward else "",
        ]
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
        "features taken too (multiplier)",
    ]
    if not any(row[-1] for row in rows):  # Nothing was hardened.
        settings, rows = settings[:-1], [row[:-1] for row in rows]
    return _table(["removed", *FIGURES.values(), *settings], rows)


def removals_table(outcomes: Sequence[Outcome]) -> str:
    """Return a row per removal of several concepts."""
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


def attacks_table(attacks: Attacks) -> str:
    """Return a row per attack and method, in a table for each set of attacked concepts."""
    by_concepts: dict[tuple[str, ...], list[list[str]]] = {}
    for attack, methods in attacks.items():
        for method, (report, typed, confirmed) in methods.items():
            concepts = tuple(dict.fromkeys(one.concept for one in report.pictures))
            cells = [_rate(report.before), _rate(report.under_attack)]
            cells += [_rate(one.under_attack) if one else "" for one in (confirmed, typed)]
            row = [method, attack, *cells, str(len(report.pictures))]
            by_concepts.setdefault(concepts, []).append(row)
    left_out = "; ".join(f"{name}: {why}" for name, why in SKIPPED.items())
    header = [
        "method",
        "attack",
        "shown without attack, %",
        "shown under attack (ASR), %",
        "the same, by both classifiers, %",
        "ASR, typed as text, %",
        "pictures",
    ]
    tables = [
        f"Pictures of {', '.join(concepts)}:\n\n{_table(header, rows)}"
        for concepts, rows in sorted(by_concepts.items(), key=lambda one: -len(one[0]))
    ]
    return "\n".join([
        *tables,
        f"An attack ends as soon as `judge` sees the concept; *by both classifiers* is the share "
        f"in which `selection` sees it, too. Gradients go through each defence. Not attacked: "
        f"{left_out}.\n",
    ])  # fmt: skip


def _rate(rate: Rate) -> str:
    return f"{100 * rate.value:.1f} [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"


def _figure(figure: Mapping[str, float] | None) -> str:
    if figure is None or not math.isfinite(figure["value"]):
        return ""
    return f"{100 * figure['value']:.2f} [{100 * figure['low']:.1f}, {100 * figure['high']:.1f}]"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
