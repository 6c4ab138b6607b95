"""What feeds an SAE: encoding against the encoder's matrix product alone, and training from disk
against training from memory.

python benchmarks/feed.py                 d_in 320, 5120 latents, k 32
python benchmarks/feed.py --large         d_in 1280, 20480 latents, k 32
python benchmarks/feed.py --large --device cuda
python benchmarks/feed.py --rehearse      tiny, in seconds
"""

import argparse
import itertools
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import interleaved, record
from rows import activation_rows
from trainers import Task, plan_of

from featurestore import Store
from featurestore.format.canonical import shard_name
from featurestore.saes import commit_sae
from sae.checkpoint import config_bytes, weights_bytes
from sae.encoding import encode
from sae.feed.batches import PositionBatches
from sae.model import SAE, SAEConfig
from sae.training.state import State
from sae.training.stepping.stepper import stepper

HOOK, POSITIONS, STEPS, PER_SHARD = "hook", 256, 8, 4


def make(root: Path, d_in: int, n_samples: int) -> Store:
    """Return a store of random activations: 8 maps of 256 positions per sample, 32 a shard."""
    store = Store.create(root, {"model": "benchmark"})
    rng = np.random.default_rng(0)
    for first in range(0, n_samples, PER_SHARD):
        ids = list(range(first, first + PER_SHARD))
        values = rng.standard_normal((len(ids), STEPS, POSITIONS, d_in), np.float32).astype(
            np.float16
        )
        rows = activation_rows(ids, values, HOOK)
        store.append(f"activations/{HOOK}", shard_name(first, ids), rows, ids, made_by={})
    return store


def wait(device: str) -> None:
    """Wait until a device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def encoding(store: Store, config: SAEConfig, device: str, runs: int) -> dict[str, float]:
    """Time encoding a store, loading the SAE included, and the products of the same maps in
    float32, in turns."""
    sae = SAE(config, torch.Generator().manual_seed(0)).requires_grad_(False)
    there = sae.W_enc.to(device), sae.b_enc.to(device)
    files = {"config.json": config_bytes(config), "sae.safetensors": weights_bytes(sae)}
    for number in range(runs + 1):
        commit_sae(store, f"s{number}", files, {})
    del files
    names = (f"s{number}" for number in range(runs + 1))
    maps = [
        torch.from_numpy(np.array(row)).float().to(device)
        for shard in store.activations(HOOK)
        for row in shard.rows()
    ]

    def matrix_product() -> None:
        for x in maps:
            torch.nn.functional.linear(x, *there)
        wait(device)

    seconds = interleaved(
        runs,
        encoding=lambda: encode(store, next(names), device, progress=False),
        matrix_product=matrix_product,
    )
    assert store.arrow("codes/s0", ["step"]).num_rows == len(maps)
    return {name: len(maps) * POSITIONS / each for name, each in seconds.items()}


def training(
    store: Store, task: Task, device: str, *, n_batches: int, runs: int
) -> dict[str, float]:
    """Time a few steps on batches from disk and on the same from memory, in turns."""
    cuda, plan = device == "cuda", plan_of(task)
    batches = PositionBatches(store, HOOK, "cond", task.batch_size, seed=0, holdout=0, pinned=cuda)
    memory = [x.to(device).float() for x in itertools.islice(batches.epoch(0), n_batches)]
    again = (x.to(device).float() for x in batches.epoch(0))
    assert all(torch.equal(a, b) for a, b in zip(memory, again, strict=False))
    states = []

    def steps(source: Iterable[torch.Tensor]) -> None:
        sae = SAE(plan.config, torch.Generator().manual_seed(0)).to(device)
        states[:] = [State(sae, plan.betas)]  # One at a time: they are large.
        step = stepper(states[0], plan)
        for x in itertools.islice(source, n_batches):
            step(x.to(device, non_blocking=True).float())
        wait(device)

    seconds = interleaved(runs, disk=lambda: steps(batches.epoch(0)), memory=lambda: steps(memory))
    return {name: len(memory) * task.batch_size / each for name, each in seconds.items()}


def main() -> None:
    """Time both, each beside what bounds it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--only", choices=["encoding", "training"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rehearse", action="store_true", help="tiny, whatever else is said")
    options = parser.parse_args()
    d_in, n_latents, batch, n_batches = (
        (1280, 20480, 4096, 4) if options.large else (320, 5120, 1024, 192)
    )
    n_samples, runs = (32, 3) if options.large else (96, 5)
    if options.rehearse:
        d_in, n_latents, batch, n_batches, n_samples, runs = 16, 64, 256, 4, 8, 1
    config = SAEConfig(d_in, n_latents, 32, hook=HOOK, height=16, width=16)
    figures: dict[str, Any] = {"d_in": d_in, "n_latents": n_latents, "k": 32, "batch": batch}
    figures["device"] = options.device
    if options.device == "cuda":
        n_samples, n_batches = 256, 120
    task = Task(argparse.Namespace(hook=HOOK), d_in, n_latents, 32, batch, n_batches, 0)
    with tempfile.TemporaryDirectory() as directory:
        store = make(Path(directory) / "store", d_in, n_samples)
        if options.only != "training":
            speed = encoding(store, config, options.device, runs)
            figures |= {f"{name}_positions_per_s": each for name, each in speed.items()}
            figures["encoding_over_matrix_product"] = speed["encoding"] / speed["matrix_product"]
        if options.only != "encoding":
            speed = training(store, task, options.device, n_batches=n_batches, runs=runs)
            figures |= {f"{name}_positions_per_s": each for name, each in speed.items()}
            figures["from_disk_over_from_memory"] = speed["disk"] / speed["memory"]
    record("feed", figures)


if __name__ == "__main__":
    main()
