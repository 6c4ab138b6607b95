import numpy as np
import pytest
import torch

from sae.training.loss import training_loss
from sae.training.start import geometric_median
from tests.builders.saes import random_sae

ALPHA = 1 / 32


def setting(n_dead, dtype=torch.float64):
    sae = random_sae(d_in=8, n_latents=30, k=3).to(dtype)
    x = torch.randn(40, 8, generator=torch.Generator().manual_seed(2)).to(dtype)
    dead = torch.zeros(30, dtype=torch.bool)
    dead[torch.randperm(30, generator=torch.Generator().manual_seed(4))[:n_dead]] = True
    return sae, x, dead


def naive_loss(sae, x, dead, sign=1.0, detach=True):
    """The formula with dense codes and automatic differentiation."""
    pre = torch.relu((x - sae.b_dec) @ sae.W_enc.T + sae.b_enc)

    def keep(values, k):
        return values * torch.zeros_like(values).scatter(1, values.topk(k).indices, 1.0)

    x_hat = keep(pre, sae.config.k) @ sae.W_dec + sae.b_dec
    variance = (x - x.mean(0)).square().sum()
    fvu = (x - x_hat).square().sum() / variance
    n_dead, half = int(dead.sum()), sae.config.d_in / 2
    if not n_dead:
        return fvu, fvu
    e = sign * (x - x_hat)
    e = e.detach() if detach else e
    e_hat = keep(pre * dead, min(int(half), n_dead)) @ sae.W_dec
    aux = min(n_dead / half, 1) * (e - e_hat).square().sum() / variance
    return fvu + ALPHA * aux, fvu


def gradients(sae, loss):
    sae.zero_grad()
    loss.backward()
    return [parameter.grad.clone() for parameter in sae.parameters()]


@pytest.mark.parametrize("n_dead", [0, 1, 3, 4, 5, 30])
def test_value_and_gradients_equal_the_naive_formula(n_dead):
    sae, x, dead = setting(n_dead)
    loss = training_loss(sae, x, dead)
    total, fvu = naive_loss(sae, x, dead)
    torch.testing.assert_close(loss.total, total)
    torch.testing.assert_close(loss.fvu, fvu.detach())
    torch.testing.assert_close(loss.total.detach(), loss.fvu + ALPHA * loss.aux)
    torch.testing.assert_close(gradients(sae, loss.total), gradients(sae, total))


@pytest.mark.parametrize(("sign", "detach"), [(-1.0, True), (1.0, False), (-1.0, False)])
def test_a_reversed_or_attached_residual_would_be_noticed(sign, detach):
    sae, x, dead = setting(5)
    found = gradients(sae, training_loss(sae, x, dead).total)
    wrong = gradients(sae, naive_loss(sae, x, dead, sign, detach)[0])
    assert max(float((a - b).abs().max()) for a, b in zip(found, wrong, strict=True)) > 1e-3


def test_the_auxiliary_loss_moves_dead_latents_towards_the_residual():
    sae, x, dead = setting(6, torch.float32)
    with torch.no_grad():
        sae.b_enc[dead] = -1.0
    optimizer = torch.optim.SGD(sae.parameters(), lr=0.5)
    before = training_loss(sae, x, dead).aux
    for _ in range(40):
        optimizer.zero_grad()
        training_loss(sae, x, dead).total.backward()
        optimizer.step()
    assert training_loss(sae, x, dead).aux < before


def test_codes_are_those_of_the_sae_and_detached():
    sae, x, dead = setting(3)
    codes = training_loss(sae, x, dead).codes
    assert not codes.values.requires_grad
    torch.testing.assert_close(codes.values, sae.encode(x).values.detach())


def test_geometric_median_beats_its_neighbourhood_and_ignores_an_outlier():
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.standard_normal((101, 3)) + 4)
    x[0] = 1e4
    median = geometric_median(x)

    def total(point):
        return float((x - point).norm(dim=1).sum())

    assert (median - 4).abs().max() < 0.5
    assert all(
        total(median.double()) <= total(median.double() + 1e-2 * d)
        for d in torch.randn(20, 3).double()
    )
    assert torch.equal(geometric_median(torch.full((5, 3), 2.0)), torch.full((3,), 2.0))
