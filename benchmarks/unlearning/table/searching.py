"""Every method's best setting for each concept, and what is reported of it."""

import functools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import click

from benchmarks.unlearning.methods.competitors import COMPETITORS
from benchmarks.unlearning.methods.defence import Defence
from benchmarks.unlearning.methods.ours import CONTROLS, features, ours
from benchmarks.unlearning.table.attacks import Attacks, attack_all, comes_back, victims
from benchmarks.unlearning.table.hardened import HARDENED, hardened
from benchmarks.unlearning.table.partners import kept, partner
from benchmarks.unlearning.table.run import Run, cell
from sae.evaluation.outcomes import Outcome
from sae.evaluation.search import Look, best, first_that_holds, strength_of, value
from sae.intervention.settings import Intervention

TOWARD = "ours, toward"
"""our rule, with features of a concept that is kept put in where the target's are taken out"""
HELD = "ours, held"
"""the same, with an attack in the search"""
CROSSING = "ours, cross-attention"
"""our rule at every cross-attention together, where what is asked for enters"""
EXCHANGED = "ours, exchanged"
"""there, a concept's features exchanged for those of one that is kept: nothing is left of the
former, and the mean of the latter is put in"""
BEYOND_K = "ours, exchanged beyond k"
"""the same, and features count that are not among the k largest: others can crowd them out"""
SAE_MARGIN = 0.1
"""how much worse than the best an SAE may be when all are screened, for it to be searched
further"""


def perfect(outcome: Outcome) -> bool:
    """Return whether every target was unlearned and everything else kept, in every picture."""
    return value(outcome).mean == 1


def searched(run: Run, groups: Sequence[Sequence[Defence]], looks: Sequence[Look] = ()) -> Defence:
    """Return the best setting of the first group; with those of the next group beside it as long as
    it is not perfect. ``looks``: empty, the table's."""
    looks, tried = looks or run.amounts.looks, list[Defence]()
    for group in groups:
        tried += group
        chosen = best(tried, looks, partial(cell, run))
        if group is groups[-1] or perfect(cell(run, chosen, looks[-1])):
            break
    return chosen


def one_concept(
    run: Run, family: str, concept: str, methods: Sequence[str]
) -> dict[str, Callable[[], Defence]]:
    """Return what finds each method's best defence against a concept, "ours" first; the controls
    take our own setting."""
    bench = run.bench

    @functools.cache
    def mine() -> Defence:
        return searched(run, [_ours(run, family, concept)])

    @functools.cache
    def toward() -> Defence:
        best_of_both = searched(run, [_ours(run, family, concept), _toward(run, family, concept)])
        return features(bench, best_of_both.interventions, method=TOWARD)

    def at_crossings(settings: Callable[[Run, str, str], list[Defence]]) -> Defence:
        # All on all pictures: on few of them too many are perfect.
        return searched(run, [settings(run, family, concept)], run.amounts.looks[-1:])

    def control(name: str) -> Defence:
        (intervention,) = mine().interventions
        return CONTROLS[name](bench, intervention)

    def competitor(name: str) -> Defence:
        return searched(run, COMPETITORS[name](bench, family, concept))

    found: dict[str, Callable[[], Defence]] = {
        "ours": mine,
        TOWARD: toward,
        CROSSING: partial(at_crossings, _crossing),
        EXCHANGED: partial(at_crossings, _exchanged),
        BEYOND_K: partial(at_crossings, partial(_exchanged, method=BEYOND_K)),
        HELD: partial(held, run, family, concept),
        HARDENED: lambda: hardened(run, toward().interventions),
        **{name: partial(control, name) for name in CONTROLS},
        **{name: partial(competitor, name) for name in COMPETITORS},
    }
    return {name: find for name, find in found.items() if name == "ours" or name in methods}


def _ours(
    run: Run, family: str, concept: str, thresholds: Sequence[float] = (1.0,)
) -> list[Defence]:
    """Return the settings of the SAEs that are, at the first look and one setting, not far behind
    the best."""
    bench, grid = run.bench, run.bench.grid
    top, multiplier = grid.screened
    found = {}
    for sae in bench.saes:
        (one,) = ours(bench, [sae], family, concept, tops=[top], multipliers=[multiplier])
        found[sae] = value(cell(run, one, run.amounts.looks[0])).mean
    near = [sae for sae, mean in found.items() if mean >= max(found.values()) - SAE_MARGIN]
    how = {"tops": grid.tops, "multipliers": grid.multipliers, "thresholds": thresholds}
    return [one for sae in near for one in ours(bench, [sae], family, concept, **how)]


def _crossing(
    run: Run, family: str, concept: str, multipliers: Sequence[float] = ()
) -> list[Defence]:
    """Return the settings of every cross-attention together. ``multipliers``: empty, the
    table's."""
    bench, grid = run.crossing, run.crossing.grid
    return ours(
        bench,
        bench.saes,
        family,
        concept,
        tops=grid.tops,
        multipliers=multipliers or grid.crossing_multipliers[family],
        thresholds=(0.0,),
        method=CROSSING,
    )


def _exchanged(run: Run, family: str, concept: str, method: str = EXCHANGED) -> list[Defence]:
    """Return the settings that put the features of a concept that is kept in the place of the
    target's, as strong as they are where it is asked for."""
    n = run.bench.grid.crossing_partners
    partners = [partner(run, [{family: [concept]}], place) for place in range(n)]
    return [
        exchanged(run, edits, method)
        for one in _crossing(run, family, concept, multipliers=(0.0,))
        for partner in partners
        for edits in partner.with_each_pull((family, concept), one.interventions)
    ]


def exchanged(run: Run, edits: Sequence[Intervention], method: str = EXCHANGED) -> Defence:
    """Return the defence of an exchange."""
    mode = "beyond-k" if method == BEYOND_K else "paper"
    return features(run.crossing, edits, mode, method)


def _toward(run: Run, family: str, concept: str) -> list[Defence]:
    """Return these settings with each pull towards what is kept; none where nothing is."""
    grid = run.bench.grid
    toward = kept(run.bench, [{family: [concept]}])._replace(pulls=grid.pulls)
    return [
        features(run.bench, edits)
        for one in _ours(run, family, concept)
        if one.interventions[0].selection.rule["top"] in grid.pulled_tops
        for edits in toward.with_each_pull((family, concept), one.interventions)
    ]


def held(run: Run, family: str, concept: str) -> Defence:
    """Return our best setting that withstands an attack on the search's pictures, or the one that
    withstands it best."""
    candidates = [
        *_ours(run, family, concept, run.bench.grid.thresholds),
        *_toward(run, family, concept),
    ]
    chosen = first_that_holds(
        candidates,
        run.amounts.looks,
        partial(cell, run),
        strength=lambda one: strength_of(one.interventions),
        comes_back=partial(comes_back, run, family, concept),
        tries=run.amounts.search_tries,
    )
    return features(run.bench, chosen.interventions, method=HELD)


METHODS = (
    "ours", TOWARD, CROSSING, EXCHANGED, BEYOND_K, HELD, HARDENED, *CONTROLS, *COMPETITORS
)  # fmt: skip
COMPARED = ("ours", TOWARD, CROSSING, EXCHANGED, "ESD-x", "SalUn")
"""on all concepts"""
ROBUST = (BEYOND_K, HELD, HARDENED, "AdvUnlearn")
"""made to withstand attack, and dear: on the concepts that are attacked"""


def results(
    run: Run,
    methods: Sequence[str] = METHODS,
    attacks: bool = True,
    share: tuple[int, int] = (0, 1),
) -> dict[str, Any]:
    """Run every cell that is not there yet; return outcomes and attacks, per family and method, and
    the chosen defences.

    Where nothing may be made, a method's outcomes end before the first that is not known.
    ``share``: of so many processes this one does every n-th concept.
    """
    first, n = share
    tables: dict[str, dict[str, list[Outcome]]] = {}
    attacked: dict[str, Attacks] = {}
    chosen: dict[str, dict[str, dict[str, Defence]]] = {}
    for family, concepts in run.amounts.concepts.items():
        defences = chosen.setdefault(family, {})
        few = concepts[: run.amounts.few_concepts[family]]
        for place, concept in enumerate(concepts[first::n]):
            click.echo(f"— {family}={concept}", err=True)
            tried = [*ROBUST, *COMPARED] if concept in victims(concepts, run) else COMPARED
            wanted = [method for method in methods if method in tried or concept in few]
            for method, find in one_concept(run, family, concept, wanted).items():
                known = len(tables.get(family, {}).get(method, ()))
                with run.bench.pace.skipped():
                    if known == place:
                        defence = find()
                        outcome = cell(run, defence)
                        defences.setdefault(concept, {})[method] = defence
                        tables.setdefault(family, {}).setdefault(method, []).append(outcome)
        chosen_victims = [c for c in victims(concepts, run) if attacks and c in defences]
        attacked[family] = (
            attack_all(run, family, {c: defences[c] for c in chosen_victims})
            if chosen_victims
            else {}
        )
    return {"tables": tables, "attacks": attacked, "defences": chosen}
