import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.errors import SAEError
from sae.model import SAE, Codes, SAEConfig
from sae.sparse import encode_top_k, largest, top_k, weighted_rows, weighted_rows_transposed
from tests.builders.saes import random_sae


def naive_dense(sae, x):
    """The formula, position by position, in float64: of equal values the lower latent."""
    W_enc, b_enc, b_dec = (p.detach().double().numpy() for p in (sae.W_enc, sae.b_enc, sae.b_dec))
    pre = np.maximum((x.double().numpy() - b_dec) @ W_enc.T + b_enc, 0)
    z = np.zeros_like(pre)
    for row, out in zip(pre, z, strict=True):
        kept = np.argsort(-row, kind="stable")[: sae.config.k]
        out[kept] = row[kept]
    return z


def test_codes_and_reconstruction_follow_the_formula():
    sae, x = random_sae(n_latents=40, k=4), torch.randn(50, 16)
    z = naive_dense(sae, x)
    np.testing.assert_allclose(sae.encode_dense(x).detach().numpy(), z, atol=1e-5)
    expected = z @ sae.W_dec.detach().double().numpy() + sae.b_dec.detach().double().numpy()
    np.testing.assert_allclose(sae(x).detach().numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(16,), (3, 16), (2, 3, 5, 16), (0, 16)])
def test_any_leading_dimensions(shape):
    sae, x = random_sae(k=3), torch.randn(shape)
    codes = sae.encode(x)
    assert codes.values.shape == codes.indices.shape == (*shape[:-1], 3)
    assert sae(x).shape == shape
    assert sae.encode_dense(x).shape == (*shape[:-1], 40)
    torch.testing.assert_close(
        sae.encode_dense(x).reshape(-1, 40), sae.encode_dense(x.reshape(-1, 16))
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_precisions(dtype):
    sae, x = random_sae(), torch.randn(30, 16)
    low = random_sae().to(dtype)
    assert low(x).dtype == dtype
    assert low.encode(x).values.dtype == dtype
    torch.testing.assert_close(low.pre_acts(x).float(), sae.pre_acts(x), atol=0.2, rtol=0.02)
    codes = low.encode(x)
    torch.testing.assert_close(codes.values, low.pre_acts(x).relu().gather(-1, codes.indices))
    as_float32 = Codes(codes.values.float(), codes.indices)
    torch.testing.assert_close(
        low.decode(codes).float(), sae.decode(as_float32), atol=0.1, rtol=0.02
    )


def test_fewer_positive_than_k_leaves_empty_places():
    sae = random_sae(k=8)
    with torch.no_grad():
        sae.b_enc.fill_(-100.0)
        sae.b_enc[5] = 100.0
    codes = sae.encode(torch.randn(4, 16))
    assert ((codes.values > 0).sum(-1) == 1).all()
    assert (codes.indices[codes.values > 0] == 5).all()


@settings(max_examples=60)
@given(st.data())
def test_of_equal_values_the_lower_index_is_kept(data):
    k = data.draw(st.integers(1, 8))
    n = data.draw(st.sampled_from([k, k + 1, 64, 96, 256, 512]))
    levels = data.draw(st.integers(1, 60))
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16]))
    seed = data.draw(st.integers(0, 2**31))
    values = torch.randint(
        -levels, levels + 1, (7, max(n, k)), generator=torch.Generator().manual_seed(seed)
    ).to(dtype)
    found, indices = top_k(values, k)
    expected = values.sort(dim=-1, descending=True, stable=True)
    assert torch.equal(found, expected.values[:, :k])
    positive = found > 0
    order = lambda i: torch.where(positive, i, -1).sort(-1).values  # noqa: E731
    assert torch.equal(order(indices), order(expected.indices[:, :k]))


def test_selection_in_groups_is_exact():
    values = torch.randn(20, 4096)
    found, indices = largest(values, 9)
    assert torch.equal(found, values.topk(9).values)
    assert torch.equal(values.gather(1, indices), found)


@pytest.mark.parametrize("k", [1, 5, 24])
def test_gradients_equal_those_of_the_dense_formula(k):
    generator = torch.Generator().manual_seed(1)
    made = [
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((9, 6), (24, 6), (24,), (24, 6))
    ]
    x, W, b, D = (tensor.requires_grad_() for tensor in made)
    weights = torch.randn(9, 6, generator=generator, dtype=torch.float64)

    (weighted_rows(*encode_top_k(x, W, b, k), D) * weights).sum().backward()
    found = [tensor.grad.clone() for tensor in (x, W, b, D)]
    for tensor in (x, W, b, D):
        tensor.grad = None
    pre = torch.relu(x @ W.T + b)
    kept = torch.zeros_like(pre).scatter(1, pre.topk(k).indices, 1.0)
    ((pre * kept) @ D * weights).sum().backward()
    for gradient, tensor in zip(found, (x, W, b, D), strict=True):
        torch.testing.assert_close(gradient, tensor.grad)


def test_decoder_gradients_are_the_same_bits_on_any_number_of_threads():
    generator = torch.Generator().manual_seed(3)
    values, vectors = (
        torch.rand(500, 8, generator=generator),
        torch.randn(500, 64, generator=generator),
    )
    indices = torch.randint(40, (500, 8), generator=generator)
    before, found = torch.get_num_threads(), []
    for n_threads in (1, 2, 3):
        torch.set_num_threads(n_threads)
        found.append(weighted_rows_transposed(values, indices, vectors, 41))
    torch.set_num_threads(before)
    assert (
        torch.equal(found[0], found[1])
        and torch.equal(found[0], found[2])
        and not found[0][40].any()
    )
    naive = torch.zeros(41, 64).index_add_(
        0, indices.flatten(), (values.unsqueeze(-1) * vectors.unsqueeze(1)).flatten(0, 1)
    )
    torch.testing.assert_close(found[0], naive)


def test_some_latents_are_columns_of_the_dense_code():
    sae, x = random_sae(), torch.randn(4, 5, 16)
    features = torch.tensor([3, 0, 39, 17])
    torch.testing.assert_close(sae.encode_some(x, features), sae.encode_dense(x)[..., features])


def test_beyond_k_every_positive_latent_is_active_with_the_same_weights():
    sae = SAE(SAEConfig(d_in=6, n_latents=12, k=2), torch.Generator().manual_seed(0))
    x = torch.randn(9, 6, generator=torch.Generator().manual_seed(1))
    every = sae.beyond_k()
    torch.testing.assert_close(every.encode_dense(x), sae.pre_acts(x).relu())
    assert every.W_enc is sae.W_enc and (sae.config.k, every.config.k) == (2, 12)
    with pytest.raises(SAEError, match="'jumprelu' has thresholds: no latent is left out"):
        SAE(SAEConfig(d_in=6, n_latents=12, k=2, architecture="jumprelu")).beyond_k()


def test_decoder_rows_become_unit_and_their_gradient_tangential():
    sae = random_sae()
    with torch.no_grad():
        sae.W_dec.mul_(3.0)
        sae.W_dec[7] = 0
    sae.normalize_decoder_()
    norms = torch.ones(40)
    norms[7] = 0
    torch.testing.assert_close(sae.W_dec.detach().norm(dim=-1), norms)
    sae(torch.randn(64, 16)).square().sum().backward()
    before = sae.W_dec.grad.clone()
    sae.remove_parallel_gradient_()
    assert (sae.W_dec.grad * sae.W_dec).sum(-1).abs().max() < 1e-4 * before.norm(dim=-1).max()
    removed = before - sae.W_dec.grad
    torch.testing.assert_close(
        removed, (before * sae.W_dec).sum(-1, keepdim=True) * sae.W_dec.detach()
    )


def test_a_new_sae_is_tied_and_repeatable():
    new = lambda: SAE(SAEConfig(8, 12, 2), torch.Generator().manual_seed(5))  # noqa: E731
    assert torch.equal(new().W_enc, new().W_dec)
    assert torch.equal(new().W_enc, new().W_enc)
    torch.testing.assert_close(new().W_dec.norm(dim=-1), torch.ones(12))


def test_wrong_sizes_are_named():
    with pytest.raises(SAEError, match=r"k = 9 does not fit n_latents = 8: it must be in 1…8"):
        SAEConfig(4, 8, 9)
    with pytest.raises(SAEError, match=r"at least 1, found 0 and 8"):
        SAEConfig(0, 8, 1)
    with pytest.raises(SAEError, match=r"architecture 'gated' is not known. Known: 'topk'"):
        SAEConfig(4, 8, 1, architecture="gated")
    with pytest.raises(SAEError, match=r"activations have 5 channels, the SAE expects 16"):
        random_sae().encode(torch.randn(2, 5))


def test_decode_ignores_the_index_of_an_empty_place():
    sae = random_sae()
    values = torch.tensor([[1.0, 0.0]])
    one, other = (sae.decode(Codes(values, torch.tensor([[3, i]]))) for i in (5, 9))
    assert torch.equal(one, other)
