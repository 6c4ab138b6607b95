"""Choose settings on a judge and seeds that nothing is reported on: of one removal, and of several that are made together."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeVar

from collectors.evaluate import Outcome, per_target
from sae.interventions import Intervention
from sae.unlearning import certainty

T = TypeVar("T")


class Look(NamedTuple):
    """The pictures that settings are looked at on."""

    seeds: Sequence[int]
    n_others: int
    """pictures that do not ask for a target"""
    kept: int = 1
    """how many of the settings are looked at further"""

    @property
    def one_seed(self) -> "Look":
        """The same on one seed: enough where many concepts are removed at once."""
        return self._replace(seeds=self.seeds[:1])


def looks(seeds: Sequence[int], n_others: int) -> tuple[Look, Look]:
    """Return a first look, on one seed and a tenth of the other pictures, that keeps six settings, and one with all pictures."""
    return Look(seeds[:1], math.ceil(n_others / 10), 6), Look(seeds, n_others)


class Value(NamedTuple):
    """What a search maximises, the first before the second."""

    mean: float
    """of UA, IRA and CRA, of those that there are"""
    reserve: float
    """1 − the mean probability that the judge gives to the target: of settings that suffice, the one that holds"""


def value(outcome: Outcome) -> Value:
    """Return how good a setting is."""
    known = [x for x in outcome.scores[:3] if math.isfinite(x)]
    return Value(sum(known) / len(known) if known else -math.inf, 1 - certainty(outcome.answers, outcome.targets))


def perfect(outcome: Outcome) -> bool:
    """Return whether every target was unlearned and everything else kept, in every picture."""
    return value(outcome).mean == 1


def best(candidates: Sequence[T], looks: Sequence[Look], looked: Callable[[T, Look], Outcome]) -> T:
    """Return the candidate with the largest :func:`value`, by successive halving (Jamieson & Talwalkar 2016).

    Each look ranks those that the look before it kept; one that would keep them all is left out. Equals keep their order.
    """
    left = list(candidates)
    for look in looks:
        if len(left) > look.kept:
            values = [value(looked(one, look)) for one in left]
            ranked = sorted(range(len(left)), key=values.__getitem__, reverse=True)
            left = [left[i] for i in sorted(ranked[: look.kept])]
    return left[0]


def strengthened(
    interventions: Sequence[Intervention], looked: Callable[[Sequence[Intervention]], Outcome], rounds: int = 4
) -> Sequence[Intervention]:
    """Return removals of several concepts, stronger where they need it together.

    Concepts that the judge still recognises in some picture get twice the multiplier, round by round, while :func:`value`
    rises.
    """
    outcome = looked(interventions)
    for _ in range(rounds):
        back = {name for name, ua in per_target(outcome).items() if ua < 1}
        stronger = [
            replace(i, strength=2 * i.strength) if f"{i.selection.family}={i.selection.concept}" in back else i
            for i in interventions
        ]
        then = looked(stronger) if back else outcome
        if value(then) <= value(outcome):
            break
        interventions, outcome = stronger, then
    return interventions
