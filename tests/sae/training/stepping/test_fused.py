"""A training step by kernels against the one by automatic differentiation: in Triton's interpreter,
on a GPU where there is one."""

import copy
import functools
import os
import subprocess
import sys

import pytest
import torch

from sae import sparse
from sae.sparse import top_k
from sae.training.loss import training_loss
from sae.training.settings import Plan, TrainSettings
from sae.training.state import State, take_step
from sae.training.stepping import stepper
from tests.builders.saes import random_sae

pytest.importorskip("triton")
pytestmark = pytest.mark.triton
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ALPHA = 1 / 32


def whole_numbers(rows, n, seed=0):
    """With ties, negative values and zeros."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-3, 4, (rows, n), generator=generator).float().to(DEVICE)


@pytest.mark.parametrize(("n", "k"), [(1, 1), (17, 3), (130, 9), (130, 130)])
def test_the_k_largest_are_chosen_and_of_equal_ones_the_lower(n, k):
    from sae.choosing import choose

    pre = whole_numbers(3, n)
    values, indices = choose(pre, k)
    for row, value, index in zip(pre.cpu(), values.cpu(), indices.cpu(), strict=True):
        order = row.sort(descending=True, stable=True).indices[:k]
        expected = order[row[order] > 0].sort().values
        assert index[: len(expected)].tolist() == expected.tolist()
        assert torch.equal(value[: len(expected)], row[expected])
        assert (index[len(expected) :] == n).all() and (value[len(expected) :] == 0).all()


def test_with_a_bias_only_some_and_what_is_not_a_number():
    from sae.choosing import choose

    pre, bias = whole_numbers(3, 40), whole_numbers(1, 40, 1)[0]
    allowed = torch.arange(40, device=DEVICE) % 3 == 0
    values, indices = choose(pre, 5, bias, allowed)
    expected = choose(torch.where(allowed, pre + bias, -1.0), 5)
    assert torch.equal(values, expected[0]) and torch.equal(indices, expected[1])
    pre[0, 7], pre[1, 8] = torch.nan, torch.inf
    values, indices = choose(pre, 1)
    assert indices[:2, 0].tolist() == [7, 8] and bool(values[0, 0].isnan())


def test_top_k_is_the_same_with_the_kernel(monkeypatch):
    values = whole_numbers(4, 90)
    monkeypatch.setattr(sparse, "has_kernels", lambda device: False)
    best, indices = top_k(values, 11)
    monkeypatch.setattr(sparse, "has_kernels", lambda device: True)
    found, columns = top_k(values, 11)
    assert torch.equal(found, best.relu())
    assert torch.equal(columns[best > 0], indices[best > 0])


@pytest.mark.parametrize(
    ("d_in", "n", "k", "dead"),
    [
        (12, 50, 4, "none"),
        (12, 50, 4, "three"),
        (12, 50, 4, "all"),
        (5, 33, 33, "third"),
        (129, 17, 1, "third"),
    ],
)
def test_gradients_are_those_of_automatic_differentiation(d_in, n, k, dead):
    from sae.training.stepping.fused import loss_and_gradients, product

    sae = random_sae(d_in, n, k).to(DEVICE)
    x = torch.randn(9, d_in, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    number = torch.arange(n, device=DEVICE)
    is_dead = {"none": number < 0, "three": number < 3, "all": number >= 0, "third": number % 3 < 1}
    sae.zero_grad()
    expected = training_loss(sae, x, is_dead[dead], ALPHA)
    expected.total.backward()
    exact = functools.partial(product, bfloat16=False)
    loss, gradients, fired = loss_and_gradients(sae, x, is_dead[dead], ALPHA, product=exact)
    for name in ("total", "fvu", "aux"):
        torch.testing.assert_close(getattr(loss, name), getattr(expected, name))
    for name, gradient in gradients._asdict().items():
        torch.testing.assert_close(gradient, getattr(sae, name).grad, atol=1e-6, rtol=1e-4)
    codes = expected.codes
    assert set(fired.nonzero().flatten().tolist()) == set(
        codes.indices[codes.values > 0].unique().tolist()
    )


def test_no_latent_fires_and_all_do():
    from sae.training.stepping.fused import loss_and_gradients, product

    exact = functools.partial(product, bfloat16=False)
    for bias, n_fired in ((-100.0, 0), (100.0, 20)):
        sae = random_sae(6, 20, 20).to(DEVICE)
        sae.b_enc.data.fill_(bias)
        x = torch.randn(4, 6, device=DEVICE)
        dead = torch.zeros(20, dtype=torch.bool, device=DEVICE)
        loss, gradients, fired = loss_and_gradients(sae, x, dead, ALPHA, product=exact)
        assert int(fired.sum()) == n_fired and bool(loss.total.isfinite())
        assert bool((gradients.W_dec != 0).any()) == bool(n_fired)


def two_states(seed=0):
    one = State(random_sae(6, 24, 2, seed).to(DEVICE), (0.5, 0.99))
    one.sae.normalize_decoder_()
    other = State(copy.deepcopy(one.sae), (0.5, 0.99))
    return one, other


def test_steps_are_those_of_the_arithmetic(monkeypatch):
    """Latents die and come back: with them the auxiliary loss, and steps in a graph on a GPU."""
    one, other = two_states()
    settings = TrainSettings(k=2, n_latents=24, batch_size=5)
    plan = Plan(settings, one.sae.config, 8, 0.02, 6, "")
    monkeypatch.setattr(stepper, "has_kernels", lambda device: True)
    fused = stepper.stepper(other, plan)
    generator = torch.Generator().manual_seed(1)
    aux = []
    for number in range(4):
        x = torch.randn(5, 6, generator=generator).to(DEVICE)
        expected = take_step(one, x, lr=plan.lr_at(number), dead_after=6)
        loss = fused(x)
        aux.append(float(loss.aux))
        torch.testing.assert_close(loss.total, expected.total)
        for key, tensor in other.tensors().items():
            torch.testing.assert_close(tensor, one.tensors()[key], atol=1e-5, rtol=1e-4)
    assert other.step == one.step == 4
    assert aux[0] == 0 and aux[-1] > 0, "no latent died"


def test_the_product_of_bfloat16_is_added_up_in_float32():
    from sae.training.stepping.fused import product

    x, weight = torch.randn(7, 300, device=DEVICE), torch.randn(5, 300, device=DEVICE)
    exact = x.bfloat16().double() @ weight.bfloat16().double().T
    found = product(x, weight, bfloat16=True)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, atol=1e-4, rtol=1e-5)


def test_only_topk_saes_that_take_inputs_as_they_are_fit():
    from sae.training.stepping.fused import fits

    assert fits(random_sae(4, 8, 2))
    assert not fits(random_sae(4, 8, 2, architecture="batchtopk"))
    assert not fits(random_sae(4, 8, 2, normalize_activations="layer_norm"))
    assert not fits(random_sae(4, 8, 2, apply_b_dec_to_input=False))


COMPILED = """
import triton
from triton.backends.compiler import GPUTarget
from sae import choosing
from sae.training.stepping import kernels

pointers = dict.fromkeys(("begin", "end"), "*i64") | {"allowed": "*i8", "indices": "*i32"}
pointers |= {"sources": "*i32"}
numbers = {"n": "i32", "k": "i32", "d": "i32", "beta1": "fp32", "beta2": "fp32"}
sizes = {"BN": 4096, "BE": 16, "BC": 128, "BD": 2048, "EPS": 1e-8}
sizes |= {"HAS_BIAS": True, "HAS_ALLOWED": True, "ADD": True, "UNIT": True}
for kernel in (choosing._choose, kernels._sum_rows, kernels._dots, kernels._adam):
    fixed = {name: sizes[name] for name in kernel.arg_names if name in sizes}
    signature = {
        name: "constexpr" if name in fixed else numbers.get(name) or pointers.get(name, "*fp32")
        for name in kernel.arg_names
    }
    places = {(kernel.arg_names.index(name),): value for name, value in fixed.items()}
    source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs=places)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]
    print(kernel.__name__, len(made) > 0)
"""


def test_the_kernels_compile_for_a_gpu_that_is_not_there(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-W", "ignore", "-c", COMPILED]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    expected = "_choose True _sum_rows True _dots True _adam True"
    assert " ".join(done.stdout.split()) == expected, done.stderr


@pytest.mark.gpu
def test_on_a_gpu_steps_are_recorded_in_a_graph_and_equal_the_arithmetic():
    """Ten steps, of which the last are replays; at a size that has several tiles of everything."""
    one = State(random_sae(160, 1000, 8).to("cuda"), (0.5, 0.99))
    one.sae.normalize_decoder_()
    other = State(copy.deepcopy(one.sae), (0.5, 0.99))
    plan = Plan(TrainSettings(k=8, batch_size=256), one.sae.config, 20, 0.005, 600, "")
    step = stepper.stepper(other, plan)
    for number in range(10):
        x = torch.randn(256, 160, device="cuda")
        expected = take_step(one, x, lr=plan.lr_at(number), dead_after=600)
        torch.testing.assert_close(step(x).total, expected.total, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(other.sae.W_dec, one.sae.W_dec, atol=1e-3, rtol=1e-2)


def test_on_a_cpu_steps_are_taken_by_the_arithmetic():
    assert not sparse.has_kernels(torch.device("cpu"))
