"""How well concepts were unlearned: UnlearnCanvas's accuracies from a classifier's answers, with confidence intervals.

UnlearnCanvas: arXiv 2402.11846, section 4; docs/evaluation.md.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

LEVEL = 0.95
RESAMPLES = 1000
Targets = Mapping[str, Collection[str]]
"""family → the concepts of it that were removed"""


def grouped(concepts: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Return pairs of a family and a concept as targets, in their order."""
    targets: dict[str, list[str]] = {}
    for family, concept in concepts:
        targets.setdefault(family, []).append(concept)
    return targets


def asks(labels: Mapping[str, str | None], targets: Targets) -> bool:
    """Return whether what has these labels asks for a target."""
    return any(labels.get(family) in concepts for family, concepts in targets.items())


def targets_text(targets: Targets) -> str:
    """Return targets in one line."""
    return ", ".join(f"{family}={concept}" for family, concepts in targets.items() for concept in concepts)


class Answer(NamedTuple):
    """What a picture was asked to show, and what a classifier saw."""

    asked: dict[str, str]
    """family → concept"""
    seen: dict[str, str]
    """family → concept"""
    seed: int = 0
    p: dict[str, float] | None = None
    """family → the probability that the classifier gave to what was asked for; None: unknown"""


class Unlearning(NamedTuple):
    """Accuracies in [0, 1]; NaN where no picture counts."""

    ua: float
    """unlearning accuracy: 1 − accuracy on pictures asked for a target, mean over targets"""
    ira: float
    """in-domain retain accuracy: mean accuracy of the other concepts of the targets' families"""
    cra: float
    """cross-domain retain accuracy: accuracy of the other families, on pictures asked for the targets' families"""
    cra_plain: float
    """the same as SAeUron's released scorer has it: on pictures asked for nothing of the targets' families"""


class Interval(NamedTuple):
    """Both ends of a confidence interval."""

    low: float
    high: float


def accuracy(answers: Sequence[Answer], family: str) -> float:
    """Return how often the classifier saw the concept of ``family`` that was asked for; NaN without answers."""
    asked = [answer for answer in answers if family in answer.asked]
    return sum(a.asked[family] == a.seen[family] for a in asked) / len(asked) if asked else float("nan")


def unlearning(answers: Sequence[Answer], targets: Targets) -> Unlearning:
    """Score pictures generated while ``targets`` were removed.

    UA and IRA are means over concepts. CRA is taken on the same pictures, those asked for a target included, for every family
    without a target, averaged over families; NaN where there is none. Whatever is asked for counts alike, however many
    seeds it was drawn with.
    """
    return Unlearning(*(float(values[0]) for values in _scores(answers, targets, np.ones((1, len(answers))))))


def certainty(answers: Sequence[Answer], targets: Targets) -> float:
    """Return the mean probability that the classifier gave to a target where it was asked for; NaN where none was.

    It still tells removals apart when none is recognised any more: by how far they are from it.

    Raises:
        ValueError: an answer has no probabilities.
    """
    found = []
    for answer in answers:
        for family in [f for f, removed in targets.items() if answer.asked.get(f) in removed]:
            if answer.p is None:
                raise ValueError("answers without probabilities.")
            found.append(answer.p[family])
    return sum(found) / len(found) if found else float("nan")


def intervals(
    runs: Sequence[tuple[Sequence[Answer], Targets]], resamples: int = RESAMPLES, seed: int = 0
) -> list[Interval]:
    """Return 95 % intervals of UA, IRA, CRA and CRA on plain pictures, each averaged over ``runs``.

    A bootstrap in two levels: seeds are drawn with replacement, the same for all runs, then pictures of each drawn seed. The
    ends are percentiles; NaN where a score is.
    """
    generator = np.random.default_rng(seed)
    seeds = sorted({answer.seed for answers, _ in runs for answer in answers})
    drawn = generator.multinomial(len(seeds), np.full(len(seeds), 1 / len(seeds)), size=resamples)
    per_run = []
    for answers, targets in runs:
        own = np.array([seeds.index(answer.seed) for answer in answers])
        weights = np.zeros((resamples, len(answers)))
        for index in range(len(seeds)):
            places = np.flatnonzero(own == index)
            if len(places):
                n = drawn[:, index] * len(places)
                weights[:, places] = generator.multinomial(n, np.full(len(places), 1 / len(places)))
        per_run.append(_scores(answers, targets, weights))
    means = [_mean([scores[i] for scores in per_run]) for i in range(len(Unlearning._fields))]
    return [_percentiles(values) for values in means]


def average(scores: Sequence[Unlearning]) -> Unlearning:
    """Return the mean of several removals' scores, each figure over those that have it."""
    return Unlearning(*(float(_mean([np.array([s[i]]) for s in scores])[0]) for i in range(len(Unlearning._fields))))


def _scores(
    answers: Sequence[Answer], targets: Targets, weights: npt.NDArray[np.float64]
) -> list[npt.NDArray[np.float64]]:
    """Return each figure of :class:`Unlearning` for each row of ``weights [resamples, pictures]``."""
    families = sorted({family for answer in answers for family in answer.asked})
    asked_for = [tuple(sorted(answer.asked.items())) for answer in answers]
    n_drawn = Counter(asked_for)
    weights = weights * np.array([max(n_drawn.values()) / n_drawn[what] for what in asked_for])

    def right(family: str, rows: list[int]) -> npt.NDArray[np.float64]:
        hits = np.array([answers[i].asked[family] == answers[i].seen[family] for i in rows], float)
        part = weights[:, rows]
        total = part.sum(1)
        return np.divide(part @ hits, total, out=np.full(len(part), np.nan), where=total > 0)

    def asked(family: str, concept: str | None = None, among: list[int] | None = None) -> list[int]:
        rows = range(len(answers)) if among is None else among
        return [i for i in rows if (answers[i].asked.get(family) == concept if concept else family in answers[i].asked)]

    unlearned: list[npt.NDArray[np.float64]] = []
    retained: list[npt.NDArray[np.float64]] = []
    for family, removed in targets.items():
        for concept in sorted({a.asked[family] for a in answers if family in a.asked}):
            accuracies = right(family, asked(family, concept))
            (unlearned if concept in removed else retained).append(1 - accuracies if concept in removed else accuracies)
    inside = [i for i, a in enumerate(answers) if all(family in a.asked for family in targets)]
    plain = [i for i, a in enumerate(answers) if not any(family in a.asked for family in targets)]
    others = [family for family in families if family not in targets]
    crossed = [[right(name, asked(name, among=rows)) for name in others] for rows in (inside, plain)]
    empty = np.full(len(weights), np.nan)
    return [_mean(values) if values else empty for values in (unlearned, retained, *crossed)]


def _mean(values: Sequence[npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
    """Return the mean over those that are numbers; NaN where none is."""
    table = np.array(values)
    known = np.isfinite(table)
    total, n = np.where(known, table, 0).sum(0), known.sum(0)
    return np.divide(total, n, out=np.full(total.shape, np.nan), where=n > 0)


def _percentiles(values: npt.NDArray[np.float64]) -> Interval:
    known = values[np.isfinite(values)]
    if not len(known):
        return Interval(float("nan"), float("nan"))
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))
