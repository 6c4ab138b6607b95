"""The fast arithmetic against the formulas, written out densely."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae.diffusion.hooks import Layout
from sae.intervention.change import Edit, Steer, edit_change, rules_change
from sae.intervention.rules import Fill, Rule, join, paper_rule
from tests.builders.edits import dense, nearest_undetected
from tests.builders.selections import (
    D_IN,
    N_LATENTS,
    make_sae,
)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(0, 6),
    strength=st.sampled_from([-30.0, -5.0, -1.0, 0.0, 2.0]),
)
def test_the_shortcut_equals_the_formula_applied_densely(seed, n, strength):
    sae = make_sae(seed)
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.standard_normal((50, D_IN)).astype(np.float32))
    features = rng.choice(N_LATENTS, n, replace=False)
    concept, everything = rng.random(n).astype(np.float32), (rng.random(n) * 0.5).astype(np.float32)
    features, concept, everything = (
        torch.from_numpy(part) for part in (features, concept, everything)
    )
    rule = Rule(features, strength * concept, everything)
    changed = x.clone()
    if n:
        rows, change = rules_change(sae, x, join([rule]))
        changed[rows] += change
    expected = paper_rule(
        sae, x, features, strength=strength, mean_concept=concept, mean_all=everything
    )
    torch.testing.assert_close(changed, expected, atol=1e-5, rtol=1e-5)


def test_of_two_edits_of_one_feature_the_larger_holds():
    sae, x = make_sae(), torch.randn(200, D_IN)
    weak, strong = (
        Rule(torch.tensor([3, 9]), torch.full((2,), factor), torch.zeros(2))
        for factor in (-1.0, -4.0)
    )
    for rules in ([weak, strong], [strong, weak]):
        both, alone = rules_change(sae, x, join(rules)), rules_change(sae, x, join([strong]))
        assert torch.equal(both[0], alone[0])
        torch.testing.assert_close(both[1], alone[1])


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), beta=st.sampled_from([0.0, 0.5, 3.0]))
def test_where_a_rule_changes_something_what_is_kept_is_raised(seed, beta):
    """Two rules: one goes towards kept features, one of which it edits itself and one of which
    the other edits; the other goes towards nothing."""
    sae, rng = make_sae(seed), np.random.default_rng(seed)
    x = torch.from_numpy(rng.standard_normal((50, D_IN)).astype(np.float32))
    latents = torch.from_numpy(rng.choice(N_LATENTS, 12, replace=False))
    own, other, kept = latents[:3], latents[3:6], latents[[0, 3, 6, 7, 8]]
    level = beta * torch.from_numpy(rng.random(5).astype(np.float32))
    first = Rule(own, torch.full((3,), -2.0), torch.full((3,), 0.1), fill=Fill(kept, level))
    second = Rule(other, torch.zeros(3), torch.zeros(3))
    rows, change = rules_change(sae, x, join([first, second]))
    found = x.clone()
    found[rows] += change

    f = sae.encode_dense(x)
    edited = f.clone()
    edited[:, own] = torch.where(f[:, own] > 0.1, -2.0 * f[:, own], f[:, own])
    changed = (edited != f).any(1)
    edited[:, other] = 0
    for latent, least in list(zip(kept.tolist(), level.tolist(), strict=True))[2:]:
        edited[changed, latent] = f[changed, latent].clamp_min(least)
    torch.testing.assert_close(found, x + (edited - f) @ sae.W_dec, atol=1e-5, rtol=1e-5)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    height=st.integers(1, 4),
    width=st.integers(1, 5),
    level=st.floats(0, 2),
)
def test_replacement_copies_the_nearest_undetected_position(seed, height, width, level):
    sae = make_sae(seed)
    rng = np.random.default_rng(seed)
    n = height * width
    x = torch.from_numpy(rng.standard_normal((2 * n, D_IN)).astype(np.float32))
    features = torch.from_numpy(rng.choice(N_LATENTS, 6, replace=False))
    rule = Rule(features, torch.zeros(6), torch.full((6,), level))
    rows, change = edit_change(sae, x, Layout(height, width, True), Edit(detectors=join([rule])))
    found = x.clone()
    found[rows] += change
    expected = x.clone()
    detected = (sae.encode_dense(x)[:, features] > level).any(1)
    for start in (0, n):
        for p, donor in nearest_undetected(
            detected[start : start + n].tolist(), height, width
        ).items():
            expected[start + p] = x[start + donor]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    untouched = ~torch.isin(torch.arange(2 * n), rows)
    assert torch.equal(found[untouched], x[untouched])


def test_replaced_positions_are_edited_by_nothing_else_and_the_rest_adds_up():
    sae, x = make_sae(), torch.randn(12, D_IN)
    z = sae.encode_dense(x)
    feature = int(z.count_nonzero(0).argmax())
    some, others = (
        torch.tensor([feature]),
        torch.tensor([f for f in range(N_LATENTS) if f != feature][:20]),
    )
    detector = Rule(some, torch.zeros(1), torch.zeros(1))
    rule = Rule(others, torch.full((20,), -3.0), torch.zeros(20))
    edit = Edit(join([rule]), join([detector]), (Steer(torch.ones(D_IN)),))
    rows, change = edit_change(sae, x, Layout(3, 4, True), edit)
    found = x.clone()
    found[rows] += change
    detected = z[:, feature] > 0
    donors = nearest_undetected(detected.tolist(), 3, 4)
    assert 0 < len(donors) < 12
    for p in range(12):
        one = x[p : p + 1]
        expected = (
            x[donors[p]]
            if p in donors
            else dense(sae, one, "paper", -3.0, others.tolist(), 1.0, 0.0)[0] + 1
        )
        torch.testing.assert_close(found[p], expected, atol=1e-5, rtol=1e-5)
