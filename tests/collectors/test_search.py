"""A search against what it has to choose, by hand."""

import math
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from collectors import search
from collectors.evaluate import Outcome
from collectors.search import Look, Value, best, perfect, ranked, strengthened, value
from sae.unlearning import Answer

FIRST, ALL = Look((50,), 2, 2), Look((50, 51), 4)


def outcome(p, right=True):
    """One picture of the target that is recognised with probability p, and one of something else."""
    answers = [
        Answer({"style": "neon"}, {"style": "neon" if p > 0.5 else "x"}, 0, {"style": p}),
        Answer({"style": "sketch"}, {"style": "sketch" if right else "x"}, 0, {"style": 0.9}),
    ]
    return Outcome({"style": ["neon"]}, {}, "j", answers, math.nan, 0, 0, 0)


def test_accuracy_comes_first_and_then_how_far_the_target_is_from_being_recognised():
    assert value(outcome(0.2)) == (1, pytest.approx(0.8))
    assert value(outcome(0.2)) > value(outcome(0.4)) > value(outcome(0.01, right=False)) > value(outcome(0.6, False))
    assert value(Outcome({"style": ["neon"]}, {}, "j", [], math.nan, 0, 0, 0)).mean == -math.inf
    assert perfect(outcome(0.4)) and not perfect(outcome(0.4, right=False))


def pictures(p, wrong_objects=0):
    """Five pictures of the target, recognised with probability p, five of another style; some show another object."""
    answers = []
    for i in range(10):
        style = "neon" if i < 5 else "sketch"
        seen = {"style": "x" if i < 5 and p < 0.5 else style, "object": "tree" if i < wrong_objects else "cat"}
        answers.append(
            Answer({"style": style, "object": "cat"}, seen, i, {"style": p if i < 5 else 0.9, "object": 0.9})
        )
    return Outcome({"style": ["neon"]}, {}, "j", answers, math.nan, 0, 0, 0)


def test_settings_about_a_picture_apart_are_ordered_by_their_reserve_and_the_others_by_their_mean():
    outcomes = [pictures(0.4), pictures(0.1, wrong_objects=2), pictures(0.3, wrong_objects=1), pictures(0.7)]
    assert [value(o).mean for o in outcomes] == pytest.approx([1, 1 - 0.2 / 3, 1 - 0.1 / 3, 2 / 3])
    assert ranked(outcomes) == [2, 0, 1, 3]
    assert ranked(outcomes[1:]) == [0, 1, 2]  # without a perfect one, the first is a picture below the best


@pytest.mark.parametrize(
    ("first", "then", "chosen", "looked_at_with_all"),
    [
        ((0.4, 0.3, 0.6), (0.2, 0.1, 0.0), "b", "ba"),  # c was worst at first
        ((0.4, 0.3, 0.2), (0.2, 0.2, 0.6), "b", "cb"),  # what failed on more pictures
        ((0.4, 0.3), (0.2, 0.3), "a", "ab"),  # no first look at two of which two would be kept
        ((0.4,), (0.9,), "a", ""),  # nothing to choose
    ],
)
def test_a_setting_is_chosen_on_all_seeds_after_a_first_look(first, then, chosen, looked_at_with_all):
    names, asked = "abc"[: len(first)], []

    def looked(one, look):
        asked.append((one, look))
        return outcome((then if look is ALL else first)[names.index(one)])

    assert best(names, (FIRST, ALL), looked) == chosen
    assert "".join(one for one, look in asked if look is ALL) == looked_at_with_all
    assert "".join(one for one, look in asked if look is FIRST) == (names if len(names) > FIRST.kept else "")


@dataclass(frozen=True)
class Edit:
    """What is needed of an intervention."""

    selection: SimpleNamespace
    strength: float


@pytest.mark.parametrize(("third", "strengths"), [(0.9, (-4.0, -5.0)), (0.8, (-2.0, -5.0))])
def test_of_several_removals_those_that_come_back_get_twice_the_multiplier_while_it_helps(
    monkeypatch, third, strengths
):
    """The second is gone from the start; the first comes back, and does with twice the multiplier."""
    values = {(-1.0, -5.0): 0.7, (-2.0, -5.0): 0.8, (-4.0, -5.0): third, (-8.0, -5.0): 0.85}
    monkeypatch.setattr(search, "value", lambda found: Value(found, 0))
    monkeypatch.setattr(search, "per_target", lambda found: {"style=neon": 0.5, "style=sketch": 1.0})
    edits = [Edit(SimpleNamespace(family="style", concept=c), m) for c, m in (("neon", -1.0), ("sketch", -5.0))]
    found = strengthened(edits, lambda several: values[tuple(i.strength for i in several)])
    assert tuple(i.strength for i in found) == strengths


def test_where_nothing_comes_back_nothing_is_strengthened(monkeypatch):
    monkeypatch.setattr(search, "per_target", lambda found: {"style=neon": 1.0})
    edits, asked = [Edit(SimpleNamespace(family="style", concept="neon"), -1.0)], []
    assert strengthened(edits, lambda several: asked.append(several) or outcome(0.1)) == edits and asked == [edits]
