"""Choose settings on a judge and seeds that nothing is reported on."""

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from heapq import heappop, heappush
from typing import NamedTuple, TypeVar

from featurestore.prompts import Prompt
from sae.evaluation.measures.accuracy import Targets, asks, certainty
from sae.evaluation.outcomes import Outcome
from sae.intervention.settings import Intervention

T = TypeVar("T")


class SearchSpace(NamedTuple):
    """Among what a search chooses, and how that is attacked."""

    tops: Sequence[int]
    """features per step, a selection for each"""
    strengths: Sequence[float]
    thresholds: Sequence[float]
    pictures: int
    """of the search, that its best settings are attacked on"""
    pulls: Sequence[float]
    """β towards a concept that is kept, beside none, where one concept is removed at a time"""


MOST_LOST = 0.03
"""of the mean of UA, IRA and CRA, that a setting may be worse than the best to withstand attack"""
HOLDING = SearchSpace((8, 32), (-0.5, -0.7, -1.0), (0.0, 1.0), 2, (0.5, 1.0))
"""what is searched for a selection that holds: many features mildly beside few, towards what is
kept and not, and an attack; the strengths are for styles of the included model"""


def thinned(prompts: Sequence[Prompt], targets: Targets, n_others: int) -> list[Prompt]:
    """Return every prompt that asks for a target, and at most ``n_others`` of the others, in order:
    each is one whose seed and labels were taken least before."""
    others = [i for i, p in enumerate(prompts) if not asks(p.labels, targets)]
    taken = least_taken(
        [[("", prompts[i].seed), *prompts[i].labels.items()] for i in others], n_others
    )
    kept = {others[place] for place in taken}
    return [p for i, p in enumerate(prompts) if i in kept or asks(p.labels, targets)]


def least_taken(shown: Sequence[Sequence[Hashable]], n: int) -> list[int]:
    """Return the places of at most ``n``, in order: each is one of which what it shows was taken
    least before.

    Taken at even distances, they could show one object of two, or one seed of five: prompts come in
    rows.
    """
    # How often what each shows was taken when that was last looked at; it only grows.
    waiting = [(0, i) for i in range(len(shown))]
    taken, kept = Counter[Hashable](), list[int]()
    while waiting and len(kept) < n:
        before, i = heappop(waiting)
        now = sum(taken[one] for one in shown[i])
        if now > before:
            heappush(waiting, (now, i))
        else:
            taken.update(shown[i])
            kept.append(i)
    return sorted(kept)


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
    """Return a first look, on one seed and a tenth of the other pictures, that keeps six settings,
    and one with all pictures."""
    return Look(seeds[:1], math.ceil(n_others / 10), 6), Look(seeds, n_others)


class Value(NamedTuple):
    """How good a setting is."""

    mean: float
    """of UA, IRA and CRA, of those that there are; as UA counts where none of all targets is
    shown"""
    reserve: float
    """1 − the mean probability that the judge gives to the target where it is asked for"""


def value(outcome: Outcome) -> Value:
    """Return how good a setting's outcome is."""
    scores = outcome.scores
    known = [x for x in (scores.ua_none, scores.ira, scores.cra) if math.isfinite(x)]
    return Value(
        sum(known) / len(known) if known else -math.inf,
        1 - certainty(outcome.answers, outcome.targets),
    )


def best(candidates: Sequence[T], looks: Sequence[Look], looked: Callable[[T, Look], Outcome]) -> T:
    """Return the best candidate: the first of :func:`in_order`."""
    return in_order(candidates, looks, looked)[0]


def in_order(
    candidates: Sequence[T], looks: Sequence[Look], looked: Callable[[T, Look], Outcome]
) -> list[T]:
    """Return the candidates that reach the last look, the best first, by successive halving
    (Jamieson & Talwalkar 2016).

    Each look ranks those that the look before it kept; one that would keep them all is left out.
    """
    left = list(candidates)
    for look in looks:
        if len(left) > look.kept:
            order = ranked([looked(one, look) for one in left])
            left = [left[i] for i in (order if look is looks[-1] else order[: look.kept])]
    return left


def first_that_holds(
    candidates: Sequence[T],
    looks: Sequence[Look],
    looked: Callable[[T, Look], Outcome],
    *,
    strength: Callable[[T], float],
    comes_back: Callable[[T], float],
    tries: int,
) -> T:
    """Return the mildest of the good candidates of which no picture comes back under attack;
    without one, that of which the fewest do.

    Attacked is the best of all, and then the best of each larger ``strength``, at most ``tries``:
    other features edited as strongly come back as well (docs/evaluation.md). Left out are those
    that are worse than the best by more than ``MOST_LOST``.
    """
    known: dict[tuple[int, int], Outcome] = {}

    def once(one: T, look: Look) -> Outcome:
        key = id(one), id(look)
        if key not in known:
            known[key] = looked(one, look)
        return known[key]

    def mean(one: T) -> float:
        return value(once(one, looks[-1])).mean

    first = best(candidates, looks, once)
    levels = sorted({s for one in candidates if (s := strength(one)) > strength(first)})
    tried, rates = [first], [comes_back(first)]
    for level in levels:
        if rates[-1] == 0 or len(tried) == tries:
            break
        one = best([c for c in candidates if strength(c) == level], looks, once)
        if mean(one) >= mean(first) - MOST_LOST:
            tried.append(one)
            rates.append(comes_back(one))
    return tried[rates.index(min(rates))]


def strength_of(edits: Sequence[Intervention]) -> float:
    """Return the largest strength among edits, without its sign."""
    return max(abs(one.strength) for one in edits)


def ranked(outcomes: Sequence[Outcome]) -> list[int]:
    """Return the places of outcomes on the same pictures, the best first.

    Those whose mean of UA, IRA and CRA is about a picture below the highest, or less, are taken for
    equals and ordered by their reserve: what just suffices on the pictures searched does not hold
    on others. Then come the others, by their mean.
    """
    values = [value(outcome) for outcome in outcomes]
    # In a mean of three a picture weighs a third of its share.
    a_picture = 1.5 / (3 * len(outcomes[0].answers))
    equal = max(v.mean for v in values) - a_picture

    def key(i: int) -> tuple[bool, float]:
        return (True, values[i].reserve) if values[i].mean >= equal else (False, values[i].mean)

    return sorted(range(len(outcomes)), key=key, reverse=True)
