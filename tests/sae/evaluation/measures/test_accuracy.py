"""Scores against counts by hand, intervals against what is known of them, the Fréchet distance
against its formula."""

import math

import numpy as np
import pytest

from featurestore.errors import UsageError
from sae.evaluation.measures.accuracy import (
    Answer,
    Unlearning,
    average,
    certainty,
    intervals,
    unlearning,
)
from sae.evaluation.measures.frechet import frechet_distance

STYLES, OBJECTS = ("neon", "sketch", "mosaic"), ("cat", "tree")


def pictures(wrong_style=(), wrong_object=(), seeds=(0,)):
    """Every style with every object and every object alone, a seed; ``wrong_*``: (style, object)
    pairs seen wrongly."""
    answers = []
    for seed in seeds:
        for style in (*STYLES, None):
            for thing in OBJECTS:
                asked = {"object": thing} | ({"style": style} if style else {})
                seen = {"style": "?" if (style, thing) in wrong_style else style or "plain"}
                seen["object"] = "?" if (style, thing) in wrong_object else thing
                answers.append(Answer(asked, seen, seed))
    return answers


def test_the_four_accuracies_counted_by_hand():
    answers = pictures(
        wrong_style=[("neon", "cat"), ("sketch", "cat")],
        wrong_object=[("neon", "tree"), (None, "cat"), (None, "tree")],
    )
    scores = unlearning(answers, {"style": ["neon"]})
    assert scores == pytest.approx((1 / 2, (1 / 2 + 1) / 2, 5 / 6, 0, 1 / 2))
    scores = unlearning(answers, {"object": ["cat"]})
    assert scores.ua == pytest.approx(1 / 4)  # of four cats, the plain one is unrecognised
    assert scores.ira == pytest.approx(2 / 4)
    assert scores.cra == pytest.approx(4 / 6)
    assert math.isnan(scores.cra_plain)


def test_several_targets_and_families():
    answers = pictures(wrong_style=[("neon", "cat"), ("neon", "tree"), ("sketch", "cat")])
    scores = unlearning(answers, {"style": ["neon", "sketch"]})
    assert scores == pytest.approx((3 / 4, 1, 1, 1, 3 / 4))
    joint = unlearning(answers, {"style": ["neon"], "object": ["cat"]})
    assert joint.ua == pytest.approx((1 + 0) / 2)
    assert joint.ira == pytest.approx((1 / 2 + 1 + 1) / 3)
    assert math.isnan(joint.cra) and math.isnan(joint.cra_plain)


def test_a_picture_that_shows_another_removed_concept_is_unlearned_but_shows_not_none():
    """Of four pictures asked for neon or sketch one shows its own, one each other's: UA 3/4, none
    shown in 2/4."""
    seen = [
        ("neon", "neon"),
        ("neon", "sketch"),
        ("sketch", "x"),
        ("sketch", "mosaic"),
        ("mosaic", "neon"),
    ]
    answers = [Answer({"style": asked}, {"style": found}) for asked, found in seen]
    scores = unlearning(answers, {"style": ["neon", "sketch"]})
    assert (scores.ua, scores.ua_none) == (3 / 4, 2 / 4)
    alone = unlearning(answers, {"style": ["neon"]})
    assert alone.ua == alone.ua_none == 1 / 2
    both = [Answer({"style": "neon", "object": "tree"}, {"style": "x", "object": "cat"})]
    joint = unlearning(both, {"style": ["neon"], "object": ["cat"]})
    assert (joint.ua, joint.ua_none) == (1, 0)  # The picture shows a cat, which was removed too.


def test_what_is_drawn_with_more_seeds_counts_no_more():
    """Target and others by themselves: object accuracies 0 and 1; nine of ten prompts ask for no
    target."""
    rest = [
        Answer({"style": f"s{i}", "object": "cat"}, {"style": f"s{i}", "object": "cat"}, 0)
        for i in range(9)
    ]
    wrong = [
        Answer({"style": "neon", "object": "cat"}, {"style": "x", "object": "dog"}, seed)
        for seed in range(5)
    ]
    few, many = (unlearning([*rest, *wrong[:n]], {"style": ["neon"]}) for n in (1, 5))
    assert (
        few.cra == pytest.approx(0.9)
        and many.cra == pytest.approx(0.9)
        and few[:2] == many[:2] == (1, 1)
    )


def test_certainty_is_the_mean_probability_of_targets_where_they_were_asked_for():
    asked = [
        ("neon", "cat", 0.2, 0.9),
        ("neon", "tree", 0.4, 0.8),
        ("sketch", "cat", 0.7, 0.5),
        ("mosaic", "tree", 1, 1),
    ]
    answers = [
        Answer({"style": s, "object": o}, {}, 0, {"style": ps, "object": po})
        for s, o, ps, po in asked
    ]
    assert certainty(answers, {"style": ["neon"]}) == pytest.approx(0.3)
    assert certainty(answers, {"style": ["neon", "sketch"], "object": ["tree"]}) == pytest.approx(
        3.1 / 5
    )
    assert math.isnan(certainty(answers, {"style": ["comic"]}))
    with pytest.raises(ValueError, match="without probabilities"):
        certainty([Answer({"style": "neon"}, {"style": "x"})], {"style": ["neon"]})


def test_nothing_to_score_is_no_number_and_averages_leave_it_out():
    assert all(math.isnan(x) for x in unlearning([], {"style": ["neon"]}))
    mean = average(
        [Unlearning(1, 0.5, math.nan, math.nan, 1), Unlearning(0, 0.7, 0.4, math.nan, 0)]
    )
    assert mean[:3] == pytest.approx((0.5, 0.6, 0.4))
    assert math.isnan(mean.cra_plain)


def test_the_interval_of_a_share_is_that_of_the_binomial_when_seeds_do_not_matter():
    rng = np.random.default_rng(0)
    right = rng.random(2000) < 0.8
    answers = [
        Answer({"style": "neon"}, {"style": "neon" if not r else "x"}, i)
        for i, r in enumerate(right)
    ]
    low, high = intervals([(answers, {"style": ["neon"]})])[0]
    error = 1.96 * math.sqrt(right.mean() * (1 - right.mean()) / 2000)
    assert (low, high) == pytest.approx((right.mean() - error, right.mean() + error), abs=0.004)


def test_seeds_that_differ_widen_the_interval():
    alike = [
        Answer({"style": "neon"}, {"style": "x" if i < 50 else "neon"}, s)
        for s in range(6)
        for i in range(100)
    ]
    split = [
        Answer({"style": "neon"}, {"style": "x" if s < 3 else "neon"}, s)
        for s in range(6)
        for i in range(100)
    ]
    assert (
        unlearning(alike, {"style": ["neon"]}).ua
        == unlearning(split, {"style": ["neon"]}).ua
        == 0.5
    )
    narrow, wide = (intervals([(answers, {"style": ["neon"]})])[0] for answers in (alike, split))
    assert wide.high - wide.low > 4 * (narrow.high - narrow.low)
    again = intervals([(split, {"style": ["neon"]})])[0]
    assert again == wide


def test_the_interval_of_an_average_over_removals_is_narrower():
    rng = np.random.default_rng(1)
    runs = []
    for _ in range(9):
        wrong = rng.random(50) < 0.5
        runs.append(
            (
                [
                    Answer({"style": "neon"}, {"style": "x" if w else "neon"}, i % 5)
                    for i, w in enumerate(wrong)
                ],
                {"style": ["neon"]},
            )
        )
    one, all_of_them = intervals(runs[:1])[0], intervals(runs)[0]
    assert all_of_them.high - all_of_them.low < 0.6 * (one.high - one.low)
    assert one.low < 0.6 and one.high > 0.4


def test_the_frechet_distance_is_that_of_the_gaussians():
    """Against scipy's definition with the square root by a general eigendecomposition of the
    product."""
    rng = np.random.default_rng(0)
    one = rng.standard_normal((500, 6)) @ rng.standard_normal((6, 6))
    other = rng.standard_normal((400, 6)) @ rng.standard_normal((6, 6)) + 0.7
    c1, c2 = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    roots = np.sqrt(np.linalg.eigvals(c1 @ c2).astype(complex)).real.sum()
    expected = ((one.mean(0) - other.mean(0)) ** 2).sum() + np.trace(c1) + np.trace(c2) - 2 * roots
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-6)
    shifted = frechet_distance(one, one + np.array([3.0, 0, 0, 0, 0, 0]))
    assert shifted == pytest.approx(9, abs=1e-6)
    with pytest.raises(UsageError, match="at least 2 pictures on each side, found 1 and 400"):
        frechet_distance(one[:1], other)
