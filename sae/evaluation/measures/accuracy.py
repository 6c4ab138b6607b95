"""How well concepts were unlearned: UnlearnCanvas's accuracies from a classifier's answers.

UnlearnCanvas: arXiv 2402.11846, section 4; docs/evaluation.md.
"""

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from sae.evaluation.measures.intervals import Interval, Share, interval, mean_of

Targets = Mapping[str, Collection[str]]
"""family → the concepts of it that were removed"""


def grouped(concepts: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Return pairs of a family and a concept as targets, in their order, each once."""
    targets: dict[str, list[str]] = {}
    for family, concept in dict.fromkeys(concepts):
        targets.setdefault(family, []).append(concept)
    return targets


def asks(labels: Mapping[str, str | None], targets: Targets) -> bool:
    """Return whether what has these labels asks for a target."""
    return any(labels.get(family) in concepts for family, concepts in targets.items())


def targets_text(targets: Targets) -> str:
    """Return targets in one line."""
    return ", ".join(
        f"{family}={concept}" for family, concepts in targets.items() for concept in concepts
    )


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
    """cross-domain retain accuracy: accuracy of the other families, on pictures asked for the
    targets' families"""
    cra_plain: float
    """the same as SAeUron's released scorer has it: on pictures asked for nothing of the targets'
    families"""
    ua_none: float
    """UA if a picture counts as unlearned only where it shows none of all targets; UA where there
    is one"""


def accuracy(answers: Sequence[Answer], family: str) -> float:
    """Return how often the classifier saw the concept of ``family`` that was asked for; NaN without
    answers."""
    asked = [answer for answer in answers if family in answer.asked]
    return (
        sum(a.asked[family] == a.seen[family] for a in asked) / len(asked)
        if asked
        else float("nan")
    )


def unlearning(answers: Sequence[Answer], targets: Targets) -> Unlearning:
    """Score pictures generated while ``targets`` were removed.

    UA and IRA are means over concepts. CRA is taken on the same pictures, those asked for a target
    included, for every family without a target, averaged over families; NaN where every family has
    a target. Whatever is asked for counts alike, however many seeds it was drawn with.
    """
    return Unlearning(*(share.value for share in _shares(answers, targets)))


def certainty(answers: Sequence[Answer], targets: Targets) -> float:
    """Return the mean probability that the classifier gave to a target where it was asked for; NaN
    where none was.

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


def intervals(runs: Sequence[tuple[Sequence[Answer], Targets]]) -> list[Interval]:
    """Return the 95 % interval of each figure of :class:`Unlearning`, averaged over ``runs``; NaN
    where a figure is."""
    per_run = [_shares(answers, targets) for answers, targets in runs]
    return [
        interval(mean_of([shares[i] for shares in per_run])) for i in range(len(Unlearning._fields))
    ]


def average(scores: Sequence[Unlearning]) -> Unlearning:
    """Return the mean of several removals' scores, each figure over those that have it."""
    known = [[x for x in figures if not math.isnan(x)] for figures in zip(*scores, strict=True)]
    return Unlearning(*(sum(xs) / len(xs) if xs else float("nan") for xs in known))


def _shares(answers: Sequence[Answer], targets: Targets) -> list[Share]:
    """Return the figures of :class:`Unlearning`, in their order, as shares; a concept or a family
    is a stratum."""
    asked_for = [tuple(sorted(answer.asked.items())) for answer in answers]
    n_drawn = Counter(asked_for)
    weights = [max(n_drawn.values()) / n_drawn[what] for what in asked_for]

    def part(
        family: str, rows: Sequence[int], hit: Callable[[Answer], bool] | None = None
    ) -> Share:
        of = [(answers[i], weights[i]) for i in rows if family in answers[i].asked]
        right = hit or (lambda a: a.asked[family] == a.seen[family])
        shares = np.array([weight for _, weight in of])
        return Share(
            np.array([float(right(a)) for a, _ in of]),
            shares / shares.sum() if of else shares,
            np.zeros(len(of), np.int64),
            np.array([a.seed for a, _ in of], np.int64),
        )

    def shows_none(answer: Answer) -> bool:
        return not any(answer.seen.get(family) in removed for family, removed in targets.items())

    unlearned, clean, retained = [], [], []
    for family, removed in targets.items():
        for concept in sorted({a.asked[family] for a in answers if family in a.asked}):
            rows = [i for i, a in enumerate(answers) if a.asked.get(family) == concept]
            if concept in removed:
                unlearned.append(part(family, rows, lambda a, f=family: a.asked[f] != a.seen[f]))  # type: ignore[misc]
                clean.append(part(family, rows, shows_none))
            else:
                retained.append(part(family, rows))
    inside = [i for i, a in enumerate(answers) if all(family in a.asked for family in targets)]
    plain = [i for i, a in enumerate(answers) if not any(family in a.asked for family in targets)]
    others = sorted({family for answer in answers for family in answer.asked} - set(targets))
    crossed = [[part(family, rows) for family in others] for rows in (inside, plain)]
    return [mean_of(parts) for parts in (unlearned, retained, *crossed, clean)]
