"""A search against what it has to choose, by hand."""

import math

import pytest

from sae.evaluation.measures.accuracy import Answer
from sae.evaluation.outcomes import Outcome
from sae.evaluation.search import (
    Look,
    best,
    first_that_holds,
    in_order,
    ranked,
    value,
)

FIRST, ALL = Look((50,), 2, 2), Look((50, 51), 4)


def outcome(p, right=True):
    """One picture of the target that is recognised with probability p, and one of something
    else."""
    answers = [
        Answer({"style": "neon"}, {"style": "neon" if p > 0.5 else "x"}, 0, {"style": p}),
        Answer({"style": "sketch"}, {"style": "sketch" if right else "x"}, 0, {"style": 0.9}),
    ]
    return Outcome({"style": ["neon"]}, {}, "j", answers, math.nan, 0, 0, 0)


def test_accuracy_comes_first_and_then_how_far_the_target_is_from_being_recognised():
    assert value(outcome(0.2)) == (1, pytest.approx(0.8))
    assert (
        value(outcome(0.2))
        > value(outcome(0.4))
        > value(outcome(0.01, right=False))
        > value(outcome(0.6, False))
    )
    assert value(Outcome({"style": ["neon"]}, {}, "j", [], math.nan, 0, 0, 0)).mean == -math.inf


def test_several_targets_count_as_unlearned_where_none_of_them_is_shown():
    """Neon became sketch, which was removed too: UA 1, and no picture without a removed style."""
    answers = [
        Answer({"style": s}, {"style": other}, 0, {"style": 0.1})
        for s, other in (("neon", "sketch"), ("sketch", "x"))
    ]
    found = Outcome({"style": ["neon", "sketch"]}, {}, "j", answers)
    assert (found.scores.ua, value(found).mean) == (1, 0.5)


def pictures(p, wrong_objects=0):
    """Five pictures of the target, recognised with probability p, five of another style; some show
    another object."""
    answers = []
    for i in range(10):
        style = "neon" if i < 5 else "sketch"
        seen = {
            "style": "x" if i < 5 and p < 0.5 else style,
            "object": "tree" if i < wrong_objects else "cat",
        }
        answers.append(
            Answer(
                {"style": style, "object": "cat"},
                seen,
                i,
                {"style": p if i < 5 else 0.9, "object": 0.9},
            )
        )
    return Outcome({"style": ["neon"]}, {}, "j", answers, math.nan, 0, 0, 0)


def test_settings_about_a_picture_apart_are_ordered_by_their_reserve_and_the_others_by_their_mean():
    outcomes = [
        pictures(0.4),
        pictures(0.1, wrong_objects=2),
        pictures(0.3, wrong_objects=1),
        pictures(0.7),
    ]
    assert [value(o).mean for o in outcomes] == pytest.approx([1, 1 - 0.2 / 3, 1 - 0.1 / 3, 2 / 3])
    assert ranked(outcomes) == [2, 0, 1, 3]
    assert ranked(outcomes[1:]) == [
        0,
        1,
        2,
    ]  # without a perfect one, the first is a picture below the best


@pytest.mark.parametrize(
    ("first", "then", "chosen", "looked_at_with_all"),
    [
        ((0.4, 0.3, 0.6), (0.2, 0.1, 0.0), "b", "ba"),  # c was worst at first
        ((0.4, 0.3, 0.2), (0.2, 0.2, 0.6), "b", "cb"),  # what failed on more pictures
        ((0.4, 0.3), (0.2, 0.3), "a", "ab"),  # no first look at two of which two would be kept
        ((0.4,), (0.9,), "a", ""),  # nothing to choose
    ],
)
def test_a_setting_is_chosen_on_all_seeds_after_a_first_look(
    first, then, chosen, looked_at_with_all
):
    names, asked = "abc"[: len(first)], []

    def looked(one, look):
        asked.append((one, look))
        return outcome((then if look is ALL else first)[names.index(one)])

    assert best(names, (FIRST, ALL), looked) == chosen
    assert "".join(one for one, look in asked if look is ALL) == looked_at_with_all
    assert "".join(one for one, look in asked if look is FIRST) == (
        names if len(names) > FIRST.kept else ""
    )


def test_all_that_reach_the_last_look_are_in_order():
    outcomes = {"a": 0.4, "b": 0.1, "c": 0.3, "d": 0.7}
    first, last = Look((50,), 2, 3), Look((50, 51), 4)
    assert in_order("abcd", (first, last), lambda one, look: outcome(outcomes[one])) == [
        "b",
        "c",
        "a",
    ]
    assert in_order("ab", (first, last), lambda one, look: outcome(outcomes[one])) == ["b", "a"]
    assert in_order("a", (first, last), None) == ["a"]


@pytest.mark.parametrize(
    ("back", "tries", "chosen", "attacked"),
    [
        ({}, 4, "a2", "a2"),
        ({"a2": 0.5}, 4, "c3", "a2 c3"),
        ({"a2": 0.5, "c3": 0.25, "e5": 0.25}, 4, "c3", "a2 c3 e5"),
        ({"a2": 0.5, "c3": 0.25}, 4, "e5", "a2 c3 e5"),
        ({"a2": 0.5, "c3": 0.75}, 2, "a2", "a2 c3"),
    ],
)
def test_the_best_of_each_larger_strength_is_attacked_until_one_holds(
    back, tries, chosen, attacked
):
    """``n1`` is milder, ``b3`` not the best of its strength, ``d4`` loses too much."""
    p = {"n1": 0.3, "a2": 0.01, "b3": 0.3, "c3": 0.02, "d4": 0.01, "e5": 0.03}
    asked, looked = [], []

    def look(one, of):
        looked.append((one, of))
        return outcome(p[one], right=one != "d4")

    def comes_back(one):
        asked.append(one)
        return back.get(one, 0.0)

    found = first_that_holds(
        [*p], (Look((50,), 2, 6), Look((50, 51), 4)), look,
        strength=lambda one: float(one[1]), comes_back=comes_back, tries=tries,
    )  # fmt: skip
    assert (found, " ".join(asked)) == (chosen, attacked)
    assert len(set(looked)) == len(looked)
