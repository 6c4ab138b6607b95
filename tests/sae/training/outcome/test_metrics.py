import json

import numpy as np
import pytest
import torch

from featurestore.format.canonical import canonical_json
from sae.feed.rows import activation_rows
from sae.training.outcome.metrics import Chunk, chunks_of_rows, measure
from tests.builders.saes import HOOK, make_store, random_sae


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return activation_rows(make_store(tmp_path_factory.mktemp("metrics") / "store"), HOOK, "cond")


def naive(sae, x):
    """FVU, L0 and densities of positions ``[n, d_in]``, all at once in float64."""
    x = torch.from_numpy(x.astype(np.float32)).reshape(-1, 16)
    z = sae.encode_dense(x)
    x, x_hat = x.double(), sae.decode(sae.encode(x)).double()
    fvu = (x - x_hat).square().sum() / (x - x.mean(0)).square().sum()
    return float(fvu), float((z > 0).sum() / len(x)), (z > 0).double().mean(0)


def test_metrics_equal_the_naive_ones(rows, monkeypatch):
    monkeypatch.setattr("sae.training.outcome.metrics._CHUNK_POSITIONS", 50)
    sae = random_sae().requires_grad_(False)
    indices = np.arange(2, len(rows))
    metrics = measure(sae, chunks_of_rows(rows, indices))
    tensors = rows.fill(indices)
    fvu, l0, density = naive(sae, tensors)
    assert metrics.fvu == pytest.approx(fvu, rel=1e-5)
    assert metrics.l0 == pytest.approx(l0)
    assert metrics.density == pytest.approx(density.tolist())
    assert metrics.n_dead == int((density == 0).sum())
    assert metrics.n_positions == len(indices) * 16
    assert [entry.step for entry in metrics.timesteps] == [0, 1, 2]
    for entry in metrics.timesteps:
        of_step = tensors[rows.step[indices] == entry.step]
        fvu, l0, _ = naive(sae, of_step)
        assert entry.fvu == pytest.approx(fvu, rel=1e-5)
        assert entry.l0 == pytest.approx(l0)
        assert entry.timestep == 981 - 20 * entry.step
        assert entry.n_positions == of_step.shape[0] * 16


def test_a_large_mean_costs_no_precision():
    sae = random_sae().requires_grad_(False)
    x = torch.randn(500, 16)
    shifted = random_sae().requires_grad_(False)
    shifted.b_dec += 4096.0
    one, other = (
        measure(s, [Chunk(0, 1.0, "cond", y)]) for s, y in ((sae, x), (shifted, x.double() + 4096))
    )
    assert other.fvu == pytest.approx(one.fvu, rel=1e-2)


def test_positions_that_are_all_equal_have_no_fvu():
    metrics = measure(
        random_sae().requires_grad_(False),
        [Chunk(0, 1.0, "cond", torch.ones(4, 16)), Chunk(1, 0.5, "cond", torch.randn(9, 16))],
    )
    assert metrics.timesteps[0].fvu is None
    assert metrics.fvu is not None
    assert json.loads(canonical_json(metrics.to_json()))["timesteps"][0]["fvu"] is None


def test_densities_are_counted_by_decade():
    sae = random_sae(n_latents=10, k=1).requires_grad_(False)
    sae.W_enc.zero_()
    sae.b_enc.copy_(torch.tensor([1.0] + [0.0] * 9))
    sae.W_enc[1, 0] = 1.0
    sae.b_dec.zero_()
    x = torch.zeros(100, 16)
    x[:2, 0] = 5.0
    metrics = measure(sae, [Chunk(0, 1.0, "cond", x)])
    assert metrics.density[:2] == (0.98, 0.02)
    assert (metrics.n_dead, metrics.n_dense) == (8, 1)
    assert metrics.to_json()["density_decades"] == [1, 1, 0, 0, 0, 0, 0, 0]


def test_branches_are_told_apart(tmp_path):
    rows = activation_rows(
        make_store(tmp_path / "store", branches=("cond", "uncond")), HOOK, "both"
    )
    sae = random_sae().requires_grad_(False)
    metrics = measure(sae, chunks_of_rows(rows, np.arange(len(rows))))
    assert [(part.step, part.branch) for part in metrics.timesteps][:3] == [
        (0, "cond"),
        (0, "uncond"),
        (1, "cond"),
    ]
    for part in metrics.branches:
        fvu, l0, _ = naive(sae, rows.fill(np.flatnonzero(rows.branch == part.branch)))
        assert (part.fvu, part.l0, part.step) == (
            pytest.approx(fvu, rel=1e-5),
            pytest.approx(l0),
            None,
        )
    body = metrics.to_json()
    assert body["explained_variance"] == 1 - metrics.fvu
    assert set(body["branches"][0]) == {"branch", "fvu", "l0", "n_positions"}
