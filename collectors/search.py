"""Choose settings on a judge and seeds that nothing is reported on: of one removal, and of several that are made together."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeVar

from collectors.evaluate import Outcome, per_target, thinned
from collectors.prompts import Prompt
from sae.interventions import Intervention
from sae.unlearning import Targets, certainty

T = TypeVar("T")


class Look(NamedTuple):
    """The pictures that settings are looked at on."""

    seeds: Sequence[int]
    n_others: int
    """pictures that do not ask for a target"""
    kept: int = 1
    """how many of the settings are looked at further"""

    def taken(self, prompts: Sequence[Prompt], targets: Targets) -> list[Prompt]:
        """Return the look's share of the search's prompts."""
        return thinned([p for p in prompts if p.seed in self.seeds], targets, self.n_others)

    @property
    def one_seed(self) -> "Look":
        """The same on one seed: enough where many concepts are removed at once."""
        return self._replace(seeds=self.seeds[:1])


def looks(seeds: Sequence[int], n_others: int) -> tuple[Look, Look]:
    """Return a first look, on one seed and a tenth of the other pictures, that keeps six settings, and one with all pictures."""
    return Look(seeds[:1], math.ceil(n_others / 10), 6), Look(seeds, n_others)


class Value(NamedTuple):
    """How good a setting is."""

    mean: float
    """of UA, IRA and CRA, of those that there are"""
    reserve: float
    """1 − the mean probability that the judge gives to the target where it is asked for"""


def value(outcome: Outcome) -> Value:
    """Return how good a setting's outcome is."""
    known = [x for x in outcome.scores[:3] if math.isfinite(x)]
    return Value(sum(known) / len(known) if known else -math.inf, 1 - certainty(outcome.answers, outcome.targets))


def perfect(outcome: Outcome) -> bool:
    """Return whether every target was unlearned and everything else kept, in every picture."""
    return value(outcome).mean == 1


def best(candidates: Sequence[T], looks: Sequence[Look], looked: Callable[[T, Look], Outcome]) -> T:
    """Return the best candidate, by successive halving (Jamieson & Talwalkar 2016).

    Each look ranks those that the look before it kept; one that would keep them all is left out.
    """
    left = list(candidates)
    for look in looks:
        if len(left) > look.kept:
            order = ranked([looked(one, look) for one in left])
            left = [left[i] for i in order[: look.kept]]
    return left[0]


def ranked(outcomes: Sequence[Outcome]) -> list[int]:
    """Return the places of outcomes on the same pictures, the best first.

    Those whose mean of UA, IRA and CRA is about a picture below the highest, or less, are taken for equals and ordered by their
    reserve: what just suffices on the pictures searched does not hold on others. Then come the others, by their mean.
    """
    values = [value(outcome) for outcome in outcomes]
    a_picture = 1.5 / (3 * len(outcomes[0].answers))  # In a mean of three a picture weighs a third of its share.
    equal = max(v.mean for v in values) - a_picture

    def key(i: int) -> tuple[bool, float]:
        return (True, values[i].reserve) if values[i].mean >= equal else (False, values[i].mean)

    return sorted(range(len(outcomes)), key=key, reverse=True)


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
        if not back:
            break
        stronger = [
            replace(i, strength=2 * i.strength) if f"{i.selection.family}={i.selection.concept}" in back else i
            for i in interventions
        ]
        then = looked(stronger)
        if value(then) <= value(outcome):
            break
        interventions, outcome = stronger, then
    return interventions
