"""The paper's rule, at one hook or at several, and our chosen setting with one thing made
otherwise."""

import itertools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from benchmarks.unlearning.methods.defence import Bench, Defence
from benchmarks.unlearning.methods.random_features import random_selection
from featurestore.selection import Selection
from queries import ask
from queries.selections import select
from sae.checkpoint import store_sae
from sae.evaluation.measures.accuracy import grouped
from sae.evaluation.removals import ablation_removal
from sae.intervention.ablate import ablate
from sae.intervention.settings import Intervention
from sae.model import SAE


def ours(
    bench: Bench,
    saes: Sequence[str],
    family: str,
    concept: str,
    *,
    tops: Sequence[int],
    multipliers: Sequence[float],
    thresholds: Sequence[float] = (1.0,),
    method: str = "ours",
) -> list[Defence]:
    """Return the paper's rule over features per step, multipliers and thresholds, the same for each
    of ``saes``, which are taken together."""
    return [
        features(
            bench,
            [
                Intervention(
                    selected(bench, sae, family, concept, top=top), strength=m, threshold=t
                )
                for sae in saes
            ],
            method=method,
        )
        for top, m, t in itertools.product(tops, multipliers, thresholds)
    ]


def selected(bench: Bench, sae: str, family: str, concept: str, *, top: int) -> Selection:
    """Return a concept's features, asked for once: the screening, the search, an attack's and what
    is put in ask for the same."""
    key = (sae, family, concept, top)
    if key not in bench.selected:
        bench.selected[key] = select(bench.store, sae, family, concept, top=top)
    return bench.selected[key]


def features(
    bench: Bench, interventions: Sequence[Intervention], mode: str = "paper", method: str = "ours"
) -> Defence:
    """Return the defence of some interventions with the bench's SAEs."""
    targets = grouped((one.selection.family, one.selection.concept) for one in interventions)
    as_removal = ablation_removal(
        bench.model, bench.run, targets, interventions, mode=mode, batch_size=bench.batch_size
    )
    setting = {**as_removal.setting, "method": method}
    saes: dict[str, SAE] = {}

    def attached() -> AbstractContextManager[Any]:
        for one in interventions:
            if one.selection.sae not in saes:
                saes[one.selection.sae] = store_sae(bench.store, one.selection.sae)
        return ablate(bench.model.pipe, interventions, saes=saes, mode=mode)

    return Defence(targets, setting, attached, bench.run, as_removal.stored_bytes, interventions)


def random_control(bench: Bench, chosen: Intervention) -> Defence:
    """Return the chosen setting with random features in the place of the selected ones."""
    selection = chosen.selection
    scores = ask(bench.store, "importance", {"sae": selection.sae, "family": selection.family})
    control = replace(chosen, selection=random_selection(selection, scores))
    return features(bench, [control], method="random features")


CONTROLS: dict[str, Callable[[Bench, Intervention], Defence]] = {
    "ours, no error": lambda bench, chosen: features(bench, [chosen], "no-error", "ours, no error"),
    "released arithmetic": lambda bench, chosen: features(
        bench, [chosen], "saeuron", "released arithmetic"
    ),
    "random features": random_control,
}
"""method → our chosen setting with one thing made otherwise"""
