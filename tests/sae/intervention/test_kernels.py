"""The fused kernels against the arithmetic that they replace: in Triton's interpreter, on a GPU
where there is one."""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae.diffusion.pipelines import generate
from sae.intervention import edit as editing
from sae.intervention.ablate import ablate
from sae.intervention.change import rules_change
from sae.intervention.rules import Rule, join
from sae.intervention.settings import Intervention
from tests.builders.edits import EVERY_THIRD, strong
from tests.builders.saes import random_sae
from tests.builders.selections import RUN, make_sae

pytest.importorskip("triton")
pytestmark = pytest.mark.triton
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def fused_change(sae, rules, x):
    """``x [batch, positions, d_in]`` edited by the kernels, and by the arithmetic that they
    replace."""
    from sae.intervention import fused as kernels

    fused = kernels.fuse(sae, rules)
    assert fused is not None
    found, expected = x.clone(), x.clone()
    kernels.apply_(sae, fused, x, found)
    rows, change = rules_change(sae, x.reshape(-1, x.shape[-1]).float(), rules)
    flat = expected.view(-1, x.shape[-1])
    flat[rows] = (flat[rows].float() + change).to(x.dtype)
    return found, expected


def some_rules(sae, x, n, generator, masked):
    """Rules for latents that fire most, two of which stand in two rules."""
    often = (sae.encode_dense(x.reshape(-1, x.shape[-1]).float()) > 0).sum(0).topk(n).indices.cpu()
    draw = lambda size: torch.rand(size, generator=generator)  # noqa: E731
    where = draw(x.shape[1]) > 0.5 if masked else None
    first = Rule(often, -2 * draw(n), 0.3 * draw(n), where=where)
    second = Rule(often[:2], -5 * draw(len(often[:2])), 0.3 * draw(len(often[:2])), 0.25)
    joined = join([first, second])
    return editing.on_device(joined, DEVICE)


@settings(max_examples=30)
@given(
    seed=st.integers(0, 10**6),
    batch=st.integers(1, 3),
    positions=st.sampled_from([1, 7, 40, 70]),
    d_in=st.sampled_from([5, 16, 33]),
    n_latents=st.sampled_from([17, 130, 600]),
    n=st.integers(1, 17),
    architecture=st.sampled_from(["topk", "batchtopk", "jumprelu"]),
    masked=st.booleans(),
    centred=st.booleans(),
)
def test_the_kernels_equal_the_arithmetic(
    seed, batch, positions, d_in, n_latents, n, architecture, masked, centred
):
    generator = torch.Generator().manual_seed(seed)
    k = 1 + seed % 9
    sae = random_sae(
        d_in, n_latents, k, seed, architecture=architecture, apply_b_dec_to_input=centred
    )
    sae = sae.requires_grad_(False).to(DEVICE)
    if sae.variant.has_threshold:
        sae.threshold.fill_(0.2)
    x = torch.randn(batch, positions, d_in, generator=generator).to(DEVICE)
    rules = some_rules(sae, x, n, generator, masked)
    found, expected = fused_change(sae, rules, x)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)
    stays = (expected == x).all(-1)
    assert torch.equal(found[stays], x[stays])


@pytest.mark.parametrize("present", [False, True])
def test_a_position_that_no_rule_reaches_keeps_its_bits(present):
    """Also the sign of a zero, which adding 0 would change, beside positions that are edited."""
    sae = random_sae(16, 100, 4).requires_grad_(False).to(DEVICE)
    x = torch.randn(2, 30, 16, device=DEVICE)
    x[..., 0] = -0.0
    feature = (sae.encode_dense(x.flatten(0, 1)) > 0).sum(0).argmax().cpu()[None]
    rule = Rule(feature, torch.zeros(1), torch.full((1,), 0.0 if present else 1e9))
    found, expected = fused_change(sae, editing.on_device(join([rule]), DEVICE), x)
    stays = (sae.encode_dense(x)[..., feature[0]] == 0) | (not present)
    assert bool(stays.any()) and present == bool((~stays).any())
    assert torch.equal(found[stays].view(torch.int32), x[stays].view(torch.int32))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_of_equal_latents_the_lower_ones_are_among_the_k():
    """Whole numbers, so that equal is equal however a sum is taken."""
    sae = random_sae(8, 96, 4).requires_grad_(False).to(DEVICE)
    generator = torch.Generator().manual_seed(0)
    sae.W_enc.copy_(torch.randint(-2, 3, (96, 8), generator=generator))
    sae.b_enc.zero_()
    sae.b_dec.zero_()
    x = torch.randint(-2, 3, (1, 64, 8), generator=generator).float().to(DEVICE)
    best = sae.pre_acts(x[0]).sort(descending=True).values
    assert bool(((best[:, 3] == best[:, 4]) & (best[:, 4] > 0)).any()), "no tie at the last place"
    for start in (0, 40):
        rule = Rule(torch.arange(start, start + 50), torch.full((50,), -1.0), torch.zeros(50))
        found, expected = fused_change(sae, editing.on_device(join([rule]), DEVICE), x)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("k", [1, 100])
def test_one_of_all_latents_and_all_of_them(k):
    sae = random_sae(16, 100, k).requires_grad_(False).to(DEVICE)
    x = torch.randn(2, 30, 16, device=DEVICE)
    rule = Rule(torch.arange(0, 100, 2), torch.full((50,), -1.0), torch.zeros(50))
    found, expected = fused_change(sae, editing.on_device(join([rule]), DEVICE), x)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)
    assert not torch.equal(found, x)


@pytest.mark.parametrize("architecture", ["topk", "jumprelu"])
def test_of_a_schedule_the_step_is_applied_whose_timestep_is_given(architecture):
    """Steps with other numbers of rules and layers, with a mask, and one without any rule."""
    from sae.intervention import fused as kernels

    sae = random_sae(16, 130, 5, architecture=architecture).requires_grad_(False).to(DEVICE)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 30, 16, generator=generator).to(DEVICE)
    one = editing.on_device(
        join([Rule(torch.arange(7), torch.full((7,), -1.0), torch.zeros(7))]), DEVICE
    )
    rules = [
        one,
        some_rules(sae, x, 17, generator, True),
        None,
        some_rules(sae, x, 3, generator, False),
    ]
    known = torch.tensor([999.0, 666.0, 333.0, 0.5], device=DEVICE)
    steps = [kernels.fuse(sae, each) for each in rules]
    schedule, changed = kernels.stack(steps), 0
    for timestep, step in zip(known, steps, strict=True):
        expected, found = x.clone(), x.clone()
        kernels.apply_(sae, step, x, expected)
        kernels.apply_(sae, schedule, x, found, lookup=(known, timestep[None]))
        assert torch.equal(found, expected)
        changed += not torch.equal(found, x)
    assert changed == 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_maps_of_half_precision_are_edited_where_they_lie(dtype):
    from sae.intervention import fused as kernels

    sae = random_sae(24, 200, 4).requires_grad_(False).to(DEVICE)
    maps = torch.randn(2, 24, 5, 7, device=DEVICE).to(dtype)
    x = maps.flatten(2).transpose(1, 2)
    rules = some_rules(sae, x, 5, torch.Generator().manual_seed(0), False)
    edited = maps.clone()
    kernels.apply_(sae, kernels.fuse(sae, rules), x, edited.flatten(2).transpose(1, 2))
    rows, change = rules_change(sae, x.reshape(-1, 24).float(), rules)
    expected = x.reshape(-1, 24).clone()
    expected[rows] = (expected[rows].float() + change).to(dtype)
    close = {torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]  # the last digit
    found = edited.flatten(2).transpose(1, 2).reshape(-1, 24)
    torch.testing.assert_close(found, expected, atol=close, rtol=close)
    assert not torch.equal(found, x.reshape(-1, 24))


def test_what_the_kernels_cannot_express_is_left_to_the_arithmetic():
    from sae.intervention import fused as kernels

    rules = join([Rule(torch.arange(65), torch.zeros(65), torch.zeros(65))])
    assert kernels.fuse(random_sae(16, 100, 4), rules) is None
    few = join([Rule(torch.arange(3), torch.zeros(3), torch.zeros(3))])
    assert kernels.fuse(random_sae(16, 100, 4), few) is not None
    assert kernels.fuse(random_sae(16, 100, 4, normalize_activations="layer_norm"), few) is None


@pytest.mark.parametrize("kind", ["paper", "clamp", "replace"])
def test_pictures_are_the_same_with_the_kernels(model, monkeypatch, kind):
    from sae.intervention import fused as kernels

    edits = [Intervention(strong(model, features=EVERY_THIRD[:5]), kind, -2.0, branch="both")]
    with ablate(model.pipe, edits, saes=make_sae(3)):
        expected = generate(model, RUN, ["a"], [0], output_type="latent")
    calls, apply_ = [], kernels.apply_
    monkeypatch.setattr(
        kernels, "apply_", lambda *args, **k: calls.append(args) or apply_(*args, **k)
    )
    monkeypatch.setattr(editing, "kernels_for", lambda device: kernels)
    with ablate(model.pipe, edits, saes=make_sae(3)):
        found = generate(model, RUN, ["a"], [0], output_type="latent")
    assert len(calls) == (0 if kind == "replace" else 2 * RUN.n_steps)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


def test_on_a_cpu_there_are_no_kernels():
    assert editing.kernels_for(torch.device("cpu")) is None


@pytest.mark.gpu
def test_an_edit_can_be_recorded_in_a_graph():
    """So nothing in it waits for the host or is decided there."""
    from sae.intervention import fused as kernels

    sae = random_sae(24, 200, 4).requires_grad_(False).to("cuda")
    x = torch.randn(2, 30, 24, device="cuda")
    rules = some_rules(sae, x, 5, torch.Generator().manual_seed(0), False)
    fused, given, out = kernels.fuse(sae, rules), x.clone(), x.clone()
    kernels.apply_(sae, fused, given, out)  # compiled before it is recorded
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out.copy_(given)
        kernels.apply_(sae, fused, given, out)
    for seed in range(3):
        given.copy_(torch.randn(2, 30, 24, generator=torch.Generator().manual_seed(seed)))
        graph.replay()
        torch.testing.assert_close(out, fused_change(sae, rules, given)[1], atol=2e-5, rtol=2e-5)


COMPILED = """
import itertools
import triton
from triton.backends.compiler import GPUTarget
from sae.intervention import kernels

real, whole, byte = "*fp32", "*i32", "*i8"
pointers = {"features": whole, "above": whole, "fires": byte, "where": "*u8", "x": "*fp16", "out": "*fp16"}
numbers = "n positions d_in m k n_layers n_latents n_steps".split()
sizes = {"BP": 32, "BM": 16, "BK": 32, "BL": 64, "BC": 64, "SPAN": 512, "HAS_MASK": True}
for kernel, sizes["STEPS"] in itertools.product((kernels.select, kernels.count, kernels.apply), (1, 64)):
    fixed = {name: sizes[name] for name in kernel.arg_names if name in sizes}
    strides = [name for name in kernel.arg_names if name.split("_")[0] in ("x", "out") and "_" in name]
    signature = {
        name: "constexpr" if name in fixed else "i32" if name in (*numbers, *strides) else pointers.get(name, real)
        for name in kernel.arg_names
    }
    places = {(kernel.arg_names.index(name),): value for name, value in fixed.items()}
    source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs=places)
    print(kernel.__name__, len(triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]) > 0)
"""


def test_the_kernels_compile_for_a_gpu_that_is_not_there(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-W", "ignore", "-c", COMPILED]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    each = [word for name in ("select", "count", "apply") for word in 2 * [name, "True"]]
    assert done.stdout.split() == each, done.stderr
