"""Training a TopK SAE: steps of ours, sparsify, SAELens, overcomplete and SAeUron's trainer, on the same data in one run.

python benchmarks/train.py                            d_in 320, 5120 latents, k 32, batch 1024
python benchmarks/train.py --large                    d_in 1280, 20480 latents, k 32, batch 4096
python benchmarks/train.py --saeuron DIR --peers DIR  with a checkout of SAeUron, and a directory of installed peers

A peer that cannot be imported is left out, and named. Each takes its own steps with its own optimiser and bookkeeping, as its
trainer does; all learn from the same batches with Adam at the same learning rate, from the same initial weights. On a CPU the
peak memory of ours and of sparsify is measured too, each in a process of its own: weights, optimiser, and what a step needs.
"""

import argparse
import importlib
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from record import record
from torch import Tensor

from sae.model import SAE, SAEConfig
from sae.training.start import geometric_median
from sae.training.state import State, take_step

ALPHA, LR, N_BATCHES = 1 / 32, 4e-4, 8
Step = Callable[[Tensor], object]
Reconstruct = Callable[[Tensor], Tensor]


class Start:
    """Where all begin: weights ``W [n_latents, d_in]`` of unit rows, bias ``b_dec``."""

    def __init__(self, d_in: int, n_latents: int, k: int, first: Tensor) -> None:
        self.d_in, self.n_latents, self.k, self.device = d_in, n_latents, k, first.device
        self.W = torch.nn.functional.normalize(torch.randn(n_latents, d_in, device=first.device), dim=1)
        self.b_dec = geometric_median(first).to(first.device)


def ours(start: Start) -> tuple[Step, Reconstruct]:
    """Return the step of ``featurestore train``."""
    sae = SAE(SAEConfig(start.d_in, start.n_latents, start.k)).to(start.device)
    with torch.no_grad():
        for parameter, value in ((sae.W_enc, start.W), (sae.W_dec, start.W), (sae.b_dec, start.b_dec)):
            parameter.copy_(value)
    state = State(sae)
    return lambda x: float(take_step(state, x, lr=LR, dead_after=10**7).fvu), sae


def sparsify(start: Start) -> tuple[Step, Reconstruct]:
    """Return a step as in EleutherAI's ``sparsify.Trainer.fit``."""
    from sparsify import SparseCoder, SparseCoderConfig

    return _coder(
        start, SparseCoder(start.d_in, SparseCoderConfig(num_latents=start.n_latents, k=start.k), start.device)
    )


def saeuron(start: Start) -> tuple[Step, Reconstruct]:
    """Return a step as in SAeUron's ``SAE.trainer``; its batches have the shape [pictures, positions, d_in]."""
    module, config = importlib.import_module("SAE.sae"), importlib.import_module("SAE.config")
    sae = module.Sae(start.d_in, config.SaeConfig(num_latents=start.n_latents, k=start.k), start.device)
    step, reconstruct = _coder(start, sae, lambda x: x.view(4, -1, x.shape[1]))
    return step, lambda x: reconstruct(x).view(x.shape)


def _coder(start: Start, sae: Any, shape: Callable[[Tensor], Tensor] = lambda x: x) -> tuple[Step, Reconstruct]:
    with torch.no_grad():
        for parameter, value in ((sae.encoder.weight, start.W), (sae.W_dec, start.W), (sae.b_dec, start.b_dec)):
            parameter.copy_(value)
    optimizer = torch.optim.Adam(sae.parameters(), lr=LR)
    since = torch.zeros(start.n_latents, dtype=torch.long, device=start.device)

    def step(x: Tensor) -> None:
        sae.set_decoder_norm_to_unit_norm()
        out = sae(shape(x), dead_mask=since > 10**7)
        (out.fvu + ALPHA * out.auxk_loss).backward()
        fired = torch.zeros_like(since, dtype=torch.bool)
        fired[out.latent_indices.flatten()] = True
        sae.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()
        since.add_(len(x))
        since[fired] = 0

    return step, lambda x: sae(shape(x)).sae_out


def saelens(start: Start) -> tuple[Step, Reconstruct]:
    """Return SAELens's ``SAETrainer.train_step``."""
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    config = TopKTrainingSAEConfig(
        d_in=start.d_in, d_sae=start.n_latents, k=start.k, device=str(start.device), rescale_acts_by_decoder_norm=True,
        aux_loss_coefficient=ALPHA,
    )  # fmt: skip
    sae = TopKTrainingSAE(config)
    with torch.no_grad():
        for parameter, value in ((sae.W_enc, start.W.T), (sae.W_dec, start.W), (sae.b_dec, start.b_dec)):
            parameter.copy_(value)
    settings = SAETrainerConfig(
        total_training_samples=10**9, train_batch_size_samples=4096, lr=LR, lr_end=LR, device=str(start.device),
        dead_feature_window=2441,
    )  # fmt: skip
    trainer = SAETrainer(cfg=settings, sae=sae, data_provider=iter([]))
    return lambda x: trainer._train_step(sae=sae, sae_in=x), lambda x: sae(x)


def overcomplete(start: Start) -> tuple[Step, Reconstruct]:
    """Return overcomplete's ``train_sae`` on one batch at a time; its dictionary has unit rows, it has no ``b_dec``."""
    from overcomplete.sae import TopKSAE
    from overcomplete.sae.train import train_sae

    sae = TopKSAE(start.d_in, nb_concepts=start.n_latents, top_k=start.k, device=str(start.device))
    with torch.no_grad():
        sae.encoder.final_block[0].weight.copy_(start.W)
        sae.dictionary._weights.copy_(start.W)
    optimizer = torch.optim.Adam(sae.parameters(), lr=LR)

    def criterion(x: Tensor, x_hat: Tensor, pre_codes: Tensor, codes: Tensor, dictionary: Tensor) -> Tensor:
        return (x - x_hat).square().sum() / (x - x.mean(0)).square().sum()

    def step(x: Tensor) -> None:
        train_sae(sae, [x], criterion, optimizer, nb_epochs=1, monitoring=0, device=str(start.device))

    return step, lambda x: sae(x)[2]


def batches(d_in: int, size: int, device: str) -> list[Tensor]:
    """Return batches of a sparse mixture of directions and a little noise, float32 ``[size, d_in]``."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(8 * d_in, d_in, generator=generator), dim=1)

    def one() -> Tensor:
        chosen = torch.randint(len(directions), (size, 24), generator=generator)
        weights = -torch.rand(size, 24, generator=generator).log()
        noise = torch.randn(size, d_in, generator=generator) * 0.02
        mixed = torch.nn.functional.embedding_bag(chosen, directions, per_sample_weights=weights, mode="sum")
        return (mixed + noise + 0.3).to(device)

    return [one() for _ in range(N_BATCHES)]


def fvu(reconstruct: Reconstruct, x: Tensor) -> float:
    """Return the fraction of variance unexplained of a batch."""
    with torch.no_grad():
        return float((x - reconstruct(x)).square().sum() / (x - x.mean(0)).square().sum())


def make_all(start: Start) -> Iterator[tuple[str, Step, Reconstruct]]:
    """Yield the trainers that can be imported."""
    for make in (ours, sparsify, saelens, overcomplete, saeuron):
        try:
            step, reconstruct = make(start)
        except ImportError as error:
            print(f"{make.__name__} is left out: {error}")
            continue
        yield make.__name__, step, reconstruct


def peak_bytes(name: str, d_in: int, n_latents: int, k: int, size: int) -> int | None:
    """Return the most memory that three steps held beyond what there was before the SAE; None if the peer is not there."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_bytes, (name, d_in, n_latents, k, size))


def _peak_bytes(name: str, d_in: int, n_latents: int, k: int, size: int) -> int | None:
    make = {"ours": ours, "sparsify": sparsify}[name]
    torch.manual_seed(0)
    data = batches(d_in, size, "cpu")
    try:
        make(Start(d_in, 64, k, data[0]))[0](data[0])  # imports, thread pools
    except ImportError:
        return None
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark falls to what is held now
    before = _status("VmHWM")
    step = make(Start(d_in, n_latents, k, data[0]))[0]
    for x in data[:3]:
        step(x)
    return _status("VmHWM") - before


def _status(field: str) -> int:
    with Path("/proc/self/status").open(encoding="utf-8") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(f"{field}:"))


def memory(*sizes: int) -> dict[str, Any]:
    """Return the peak memory of ours and of sparsify, in bytes, and their ratio."""
    found = {f"{name}_peak_bytes": peak_bytes(name, *sizes) for name in ("ours", "sparsify")}
    mine, theirs = found["ours_peak_bytes"], found["sparsify_peak_bytes"]
    return found | ({"ours_over_sparsify_peak": mine / theirs} if mine and theirs else {})


def compare(trainers: list[tuple[str, Step, Reconstruct]], data: list[Tensor], steps: int) -> dict[str, Any]:
    """Check that all begin at the same place, let them take turns of a step each, and check where they end."""
    first = {name: fvu(reconstruct, data[0]) for name, _, reconstruct in trainers}
    seconds: dict[str, list[float]] = {name: [] for name, _, _ in trainers}
    wait = torch.cuda.synchronize if data[0].is_cuda else lambda: None
    for number in range(steps):
        for name, step, _ in trainers:
            wait()
            began = time.perf_counter()
            step(data[number % (N_BATCHES - 1)])
            wait()
            seconds[name].append(time.perf_counter() - began)
    figures: dict[str, Any] = {}
    for name, _, reconstruct in trainers:
        middle = sorted(seconds[name][2:])[len(seconds[name][2:]) // 2]
        figures |= {f"{name}_positions_per_s": len(data[0]) / middle, f"{name}_fvu_first": first[name]}
        figures[f"{name}_fvu_seen"] = fvu(reconstruct, data[0])
        if name != "ours":
            figures[f"ours_over_{name}"] = figures["ours_positions_per_s"] / figures[f"{name}_positions_per_s"]
    assert figures["ours_fvu_seen"] < first["ours"], "it learns"
    if "sparsify" in first:
        assert abs(first["ours"] - first["sparsify"]) < 1e-4, "the same function at the start"
        assert figures["ours_fvu_seen"] < 1.02 * figures["sparsify_fvu_seen"], "no worse at the end"
    return figures


def main() -> None:
    """Compare the trainers that there are, at one size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--peers", type=Path, action="append", default=[])
    parser.add_argument("--saeuron", type=Path)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    sys.path += [str(path) for path in (*options.peers, options.saeuron) if path]
    d_in, n_latents, k, size = (1280, 20480, 32, 4096) if options.large else (320, 5120, 32, 1024)
    steps = options.steps or (12 if options.large else 160)
    torch.manual_seed(0)
    data = batches(d_in, size, options.device)
    trainers = list(make_all(Start(d_in, n_latents, k, data[0])))
    figures: dict[str, Any] = {"d_in": d_in, "n_latents": n_latents, "k": k, "batch": size}
    figures |= {"steps": steps, "device": options.device} | compare(trainers, data, steps)
    figures |= memory(d_in, n_latents, k, size) if options.device == "cpu" else {}
    record("train", figures)


if __name__ == "__main__":
    main()
