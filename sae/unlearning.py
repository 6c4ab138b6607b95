"""How well a concept was unlearned: UnlearnCanvas's accuracies from a classifier's answers."""

from collections.abc import Sequence
from typing import NamedTuple


class Answer(NamedTuple):
    """What a picture was asked to show, and what a classifier saw."""

    asked: dict[str, str]
    """family → concept"""
    seen: dict[str, str]
    """family → concept"""


class Unlearning(NamedTuple):
    """Accuracies in [0, 1]; NaN where no picture counts."""

    ua: float
    """unlearning accuracy: 1 − accuracy on pictures asked for the target"""
    ira: float
    """in-domain retain accuracy: mean accuracy of the family's other concepts"""
    cra: float
    """cross-domain retain accuracy: accuracy of the other families on all pictures"""


def accuracy(answers: Sequence[Answer], family: str) -> float:
    """Return how often the classifier saw the concept of ``family`` that was asked for; NaN without answers."""
    asked = [answer for answer in answers if family in answer.asked]
    return sum(a.asked[family] == a.seen[family] for a in asked) / len(asked) if asked else float("nan")


def unlearning(answers: Sequence[Answer], family: str, concept: str) -> Unlearning:
    """Score pictures generated while ``concept`` of ``family`` was ablated (UnlearnCanvas, arXiv 2402.11846).

    IRA is the mean over the other concepts of their accuracies. CRA is taken on the same pictures, those asked for the target
    included, for every other family, averaged over families.
    """
    target = [a for a in answers if a.asked.get(family) == concept]
    others = sorted({a.asked[family] for a in answers if family in a.asked} - {concept})
    retained = [accuracy([a for a in answers if a.asked.get(family) == other], family) for other in others]
    cross = sorted({name for a in answers for name in a.asked} - {family})
    crossed = [accuracy(answers, name) for name in cross]
    return Unlearning(1 - accuracy(target, family), _mean(retained), _mean(crossed))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
