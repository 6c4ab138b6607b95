"""What ablation adds to a denoiser call of Stable Diffusion 1.5's shape: ours, SAeUron's released
hook, and nnsight.

python benchmarks/ablate.py --saeuron DIR      CPU, float32; DIR is a checkout of SAeUron
python benchmarks/ablate.py --device cuda --dtype float16

The UNet and the SAE (d_in 1280, 20480 latents, k 32) have random weights. A concept has two
features, those that fire at the most positions; it is present where they exceed the median of their
activations, absent where none exceeds its threshold. Before times are printed, what each makes of
the hooked tensor must be its formula's, written out densely. Times are those spent in hooks, and of
the whole call beside it, in the second generation after attaching: the first one (``first``) also
looks each timestep's features up. SAEuron's hook has one generation only. Contenders take turns.
"""

import argparse
import contextlib
import importlib
import importlib.util
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import torch
from record import record
from sd15 import sd15_shape
from torch import Tensor

from collectors.rows.capture import Captured, capture
from featurestore.selection import Selection
from featurestore.selection_files import ROWS
from sae.diffusion.hooks import as_positions, take
from sae.diffusion.loading.weights import model_hash
from sae.diffusion.modules import find_module
from sae.diffusion.pipelines import DTYPES, Model, RunSettings, generate
from sae.intervention.ablate import ablate
from sae.intervention.rules import paper_rule
from sae.intervention.settings import Intervention
from sae.model import SAE, SAEConfig

HOOK, D_IN, N_LATENTS, K, FACTOR = "unet.up_blocks.1.attentions.1", 1280, 20480, 32, -1.0
RUN = RunSettings(2, 7.5)


class Feature(NamedTuple):
    """A feature at one step."""

    latent: int
    threshold: float


Features = list[list[Feature]]
"""of each step"""


class Setup(NamedTuple):
    """What all contenders share."""

    model: Model
    sae: SAE
    x: list[Tensor]
    """the hooked tensor of each step, float32 ``[2, batch · positions, d_in]``, unconditional half
    first"""
    timesteps: list[float]
    batch: int
    """pictures at once"""


def make_setup(device: str, dtype: torch.dtype, batch: int) -> Setup:
    """Return a pipeline, an SAE, and what the hook sees at each step without any edit."""
    torch.manual_seed(0)
    model = sd15_shape(device, dtype)
    sae = SAE(SAEConfig(d_in=D_IN, n_latents=N_LATENTS, k=K)).to(device).requires_grad_(False)
    setup = Setup(model, sae, [], [], batch)

    def keep(found: Captured) -> None:
        setup.x.append(halves(found.values))
        setup.timesteps.append(found.call.timestep)

    with capture(model.pipe, [HOOK], keep):
        run(setup)
    return setup


def halves(values: Tensor) -> Tensor:
    """Return a copy of ``[2 · batch, positions, d_in]`` as it is in :attr:`Setup.x`."""
    return values.float().reshape(2, -1, D_IN).clone()


def run(setup: Setup) -> None:
    """Make pictures' latents."""
    generate(
        setup.model, RUN, ["cat"] * setup.batch, list(range(setup.batch)), output_type="latent"
    )


def features(setup: Setup, n: int, present: bool) -> Features:
    """Return the n features of each step that fire at the most positions of the conditional
    half."""
    found = []
    for x in setup.x:
        z = setup.sae.encode_dense(x[1])
        latents = (z > 0).sum(0).topk(n).indices.sort().values.tolist()
        found.append(
            [Feature(i, _middle(z[:, i]) if present else 2 * float(z[:, i].max())) for i in latents]
        )
    return found


def _middle(f: Tensor) -> float:
    """Return a level between two activations: at one, the last digit of a sum would decide."""
    positive = f[f > 0].sort().values
    return float(positive[(len(positive) - 1) // 2 : (len(positive) - 1) // 2 + 2].mean())


def dense(setup: Setup, chosen: list[Feature], x: Tensor) -> Tensor:
    """Return the paper's rule on ``x [positions, d_in]``, written out."""
    latents, thresholds = (
        torch.tensor(column, device=x.device) for column in zip(*chosen, strict=True)
    )
    return paper_rule(
        setup.sae,
        x,
        latents,
        strength=FACTOR,
        mean_concept=torch.ones_like(thresholds),
        mean_all=thresholds,
    )


def edited_positions(setup: Setup, chosen: Features) -> float:
    """Return the share of the conditional half's positions that features edit, over the steps."""
    edited = []
    for x, step in zip(setup.x, chosen, strict=True):
        z = setup.sae.encode_dense(x[1])
        edited.append(
            torch.stack([z[:, f.latent] > f.threshold for f in step]).any(0).float().mean()
        )
    return float(torch.stack(edited).mean())


def ours(setup: Setup, chosen: Features, n_concepts: int) -> AbstractContextManager[Any]:
    """Attach the features as so many concepts."""
    selections = [
        _selection(setup, [step[i::n_concepts] for step in chosen], f"concept {i}")
        for i in range(n_concepts)
    ]
    edits = [Intervention(one, strength=FACTOR) for one in selections]
    return ablate(setup.model.pipe, edits, saes=setup.sae)


def _selection(setup: Setup, chosen: Features, concept: str) -> Selection:
    timesteps = setup.timesteps
    rows = [
        (step, timesteps[step], f.latent, 1.0, 1.0, 0.0, f.threshold)
        for step, fs in enumerate(chosen)
        for f in fs
    ]
    table = pa.Table.from_pylist(
        [dict(zip(ROWS.names, row, strict=True)) for row in rows], schema=ROWS
    )
    return Selection(
        family="style", concept=concept, branch="cond", rule={"top": 2}, model=setup.model.name, hook=HOOK, io="output",
        model_hash=model_hash(setup.model.pipe.unet), sae="s", sae_hash="s", d_in=D_IN, n_latents=N_LATENTS, k=K, run={},
        store="", timesteps=tuple(timesteps), rows=table,
    )  # fmt: skip


@contextlib.contextmanager
def saeuron(setup: Setup, chosen: Features) -> Iterator[None]:
    """Attach SAeUron's ``SAEMaskedUnlearningHook``, with its own SAE of the same weights."""
    hooks, sae_module, config = (
        importlib.import_module(name) for name in ("utils.hooks", "SAE.sae", "SAE.config")
    )
    theirs = sae_module.Sae(
        D_IN, config.SaeConfig(num_latents=N_LATENTS, k=K), setup.sae.W_enc.device
    )
    with torch.no_grad():
        theirs.encoder.weight.copy_(setup.sae.W_enc)
        theirs.encoder.bias.copy_(setup.sae.b_enc)
        theirs.W_dec.copy_(setup.sae.W_dec)
        theirs.b_dec.copy_(setup.sae.b_dec)
    dtype = setup.model.pipe.unet.dtype
    theirs.to(dtype)  # as its scripts load it; its statistics have the same precision
    hook = object.__new__(hooks.SAEMaskedUnlearningHook)
    hook.sae, hook.timestep_idx, hook.preserve_error = theirs, 0, True
    hook.top_feature_idxs = [torch.tensor([f.latent for f in step]) for step in chosen]
    hook.scaling_factors = [torch.full((len(step),), FACTOR, dtype=dtype) for step in chosen]
    hook.all_concept_avg_acts = [torch.tensor([f.threshold for f in step]) for step in chosen]
    handle = find_module(setup.model.pipe, HOOK).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def saeuron_dense(setup: Setup, chosen: list[Feature], x: Tensor) -> Tensor:
    """Return what the released hook makes of ``x``: the error has the other sign, so it is
    ``2x̂ − x`` and the edit."""
    return dense(setup, chosen, x) + 2 * (setup.sae(x) - x)


@contextlib.contextmanager
def nnsight(setup: Setup, chosen: Features, spent: list[float]) -> Iterator[None]:
    """Call the denoiser through nnsight, the paper's rule written out in the trace: what its user
    would write.

    ``spent`` receives what the edit takes, without the tracing around it.
    """
    unet, step = setup.model.pipe.unet, itertools.count()
    traced, plain = importlib.import_module("nnsight").NNsight(unet), unet.forward

    def forward(
        sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, **kwargs: Any
    ) -> Any:
        unet.forward, edit = plain, chosen[next(step) % len(chosen)]
        arguments = {"encoder_hidden_states": encoder_hidden_states, **kwargs}
        try:
            with traced.trace(sample, timestep, **arguments):
                (hooked,) = traced.up_blocks[1].attentions[1].output
                began = time.perf_counter()
                edited = hooked.clone()
                view, _ = as_positions(edited[setup.batch :])
                view[:] = (
                    dense(setup, edit, view.flatten(0, 1).float()).view(view.shape).to(edited.dtype)
                )
                spent.append(time.perf_counter() - began)
                traced.up_blocks[1].attentions[1].output = (edited,)
                result = traced.output.save()
        finally:
            unet.forward = forward
        return result

    unet.forward = forward
    try:
        yield
    finally:
        unet.forward = plain


@contextlib.contextmanager
def timed(pipe: Any, spent: list[float]) -> Iterator[None]:
    """Add up what the hooks of the denoiser and of the hooked module take, one number per denoiser
    call."""
    unet, module = pipe.unet, find_module(pipe, HOOK)
    synchronize = torch.cuda.synchronize if unet.device.type == "cuda" else lambda: None

    def wrapped(hook: Callable[..., Any], opens: bool) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            synchronize()
            began = time.perf_counter()
            result = hook(*args)
            synchronize()
            seconds = time.perf_counter() - began
            if opens:
                spent.append(seconds)
            else:
                spent[-1] += seconds
            return result

        return call

    marker = unet.register_forward_pre_hook(lambda *args: None)
    before = [(hooks, dict(hooks)) for hooks in (unet._forward_pre_hooks, module._forward_hooks)]
    for hooks, own in before:
        for key, hook in own.items():
            hooks[key] = wrapped(hook, key == marker.id)
    unet._forward_pre_hooks.move_to_end(marker.id, last=False)
    try:
        yield
    finally:
        for hooks, own in before:
            hooks.update({key: hook for key, hook in own.items() if key in hooks})
        marker.remove()


def check(
    setup: Setup,
    attached: Callable[[], AbstractContextManager[Any]],
    expected: Callable[[Tensor], Tensor],
    n_halves: int,
) -> int:
    """Refuse a contender whose first edited tensor is not its formula's; of ``n_halves`` of
    guidance.

    On a GPU sums are taken in another order, so a latent that is nearly tied for the last of the k
    places may be in for one and out for the other: such positions are returned, and may be one in a
    thousand.
    """
    seen: list[Tensor] = []
    module = find_module(setup.model.pipe, HOOK)
    with attached():
        handle = module.register_forward_hook(
            lambda owner, args, output: seen.append(
                halves(as_positions(take(output, HOOK, owner))[0])
            )
        )
        run(setup)
        handle.remove()
    x, found = setup.x[0], seen[0]
    edited = torch.stack(
        [expected(half) if i >= 2 - n_halves else half for i, half in enumerate(x)]
    )
    exact = setup.model.pipe.unet.dtype == torch.float32
    scale = float(x.abs().max())
    allowed = (1e-5 if exact else 1e-2) * scale + (1e-5 if exact else 1e-2) * edited.abs()
    flips = ((found - edited).abs() > allowed).any(-1)
    assert flips.float().mean() <= (1e-3 if found.is_cuda else 0), (
        f"{int(flips.sum())} positions are not the formula's"
    )
    assert torch.equal(found[: 2 - n_halves], x[: 2 - n_halves]), "the other half stays"
    return int(flips.sum())


@torch.no_grad()
def main() -> None:
    """Check every contender, then let them take turns."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument("--saeuron", type=Path)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    setup = make_setup(options.device, DTYPES[options.dtype], options.batch)
    absent, one, ten = (
        features(setup, 2, False),
        features(setup, 2, True),
        features(setup, 20, True),
    )
    contenders: dict[str, Callable[[], AbstractContextManager[Any]]] = {
        "plain": contextlib.nullcontext,
        "absent": lambda: ours(setup, absent, 1),
        "one": lambda: ours(setup, one, 1),
        "ten": lambda: ours(setup, ten, 10),
    }
    flips = {
        f"{name}_flips": check(
            setup, contenders[name], lambda x, c=chosen: dense(setup, c[0], x), 1
        )
        for name, chosen in (("absent", absent), ("one", one), ("ten", ten))
    }
    if options.saeuron:
        sys.path.append(str(options.saeuron))
        for name, chosen in (("saeuron_one", one), ("saeuron_ten", ten)):
            contenders[name] = lambda c=chosen: saeuron(setup, c)
            if options.dtype == "float32":  # In another precision its SAE chooses other latents.
                check(setup, contenders[name], lambda x, c=chosen: saeuron_dense(setup, c[0], x), 2)
    if importlib.util.find_spec("nnsight"):
        inside: list[float] = []
        contenders["nnsight_one"] = lambda: nnsight(setup, one, inside)
        check(setup, contenders["nnsight_one"], lambda x: dense(setup, one[0], x), 1)
    hooks: dict[str, list[float]] = {name: [] for name in contenders}
    firsts: dict[str, list[float]] = {name: [] for name in contenders}
    calls: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(options.runs):
        for name, attached in contenders.items():
            with attached():
                if not name.startswith("saeuron"):  # which counts calls: it makes one generation
                    with timed(setup.model.pipe, firsts[name]):
                        run(setup)
                with timed(setup.model.pipe, hooks[name]):
                    began = time.perf_counter()
                    run(setup)
                    calls[name].append((time.perf_counter() - began) / RUN.n_steps)
    if "nnsight_one" in hooks:
        hooks["nnsight_one"] = inside
    first = {
        f"{n}_first_added_ms": 1000 * statistics.median(firsts[n]) for n in ("absent", "one", "ten")
    }
    edited = {
        f"{name}_positions": edited_positions(setup, f) for name, f in (("one", one), ("ten", ten))
    }
    record("ablate", _figures(options, setup, hooks, calls) | first | edited | flips)


def _figures(
    options: argparse.Namespace,
    setup: Setup,
    hooks: dict[str, list[float]],
    calls: dict[str, list[float]],
) -> dict[str, Any]:
    shape = {
        "device": options.device,
        "dtype": options.dtype,
        "d_in": D_IN,
        "n_latents": N_LATENTS,
        "k": K,
    }
    shape["batch"] = setup.batch
    plain = statistics.median(calls["plain"])
    figures: dict[str, Any] = {
        **shape,
        "positions": setup.x[0].shape[1],
        "plain_call_ms": 1000 * plain,
    }
    added = {name: statistics.median(times) for name, times in hooks.items() if name != "plain"}
    for name, seconds in added.items():
        figures |= {f"{name}_added_ms": 1000 * seconds, f"{name}_added_share": seconds / plain}
        figures[f"{name}_call_ms"] = 1000 * statistics.median(calls[name])
    for name in ("one", "ten"):
        if f"saeuron_{name}" in added:
            figures[f"saeuron_over_ours_{name}"] = added[f"saeuron_{name}"] / added[name]
    return figures


if __name__ == "__main__":
    main()
