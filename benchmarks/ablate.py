"""What ablation adds to a denoiser call of Stable Diffusion 1.5's shape: ours, SAeUron's released
hook, and nnsight.

python benchmarks/ablate.py --saeuron DIR      CPU, float32; DIR is a checkout of SAeUron
python benchmarks/ablate.py --device cuda --dtype float16
python benchmarks/ablate.py --rehearse         a tiny UNet, in seconds

The UNet and the SAE (d_in 1280, 20480 latents, k 32) have random weights. A concept has two
features, those that fire at the most positions; it is present where they exceed the median of their
activations, absent where none exceeds its threshold. Before times are printed, what each makes of
the hooked tensor must be its formula's, written out densely. Times are those spent in hooks, and of
the whole call beside it, in the second generation after attaching: the first one (``first``) also
looks each timestep's features up. SAEuron's hook has one generation only. Contenders take turns.
"""

import argparse
import contextlib
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from ablate_contenders import dense, nnsight, ours, saeuron, saeuron_dense
from ablate_setup import (
    HOOK,
    RUN,
    Setup,
    edited_positions,
    features,
    halves,
    make_setup,
    run,
    sizes,
)
from record import record
from torch import Tensor

from sae.diffusion.hooks import as_positions, take
from sae.diffusion.modules import find_module
from sae.diffusion.pipelines import DTYPES


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
    parser.add_argument("--rehearse", action="store_true", help="a tiny UNet, one run")
    options = parser.parse_args()
    dtype = DTYPES[options.dtype]
    # In float16 a CPU takes a minute for eight pictures.
    batch = min(2, options.batch) if options.rehearse else options.batch
    setup = make_setup(options.device, dtype, batch, small=options.rehearse)
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
    for _ in range(1 if options.rehearse else options.runs):
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
    shape = {"device": options.device, "dtype": options.dtype, **sizes(setup)}
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
