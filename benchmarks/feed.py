"""What feeds an SAE: encoding against the encoder's matrix product alone, and training from disk
against training from memory.

python benchmarks/feed.py                 d_in 320, 5120 latents, k 32
python benchmarks/feed.py --large         d_in 1280, 20480 latents, k 32
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

from featurestore import Store
from featurestore.format.canonical import shard_name
from featurestore.saes import commit_sae
from sae.checkpoint import config_bytes, weights_bytes
from sae.encoding import encode
from sae.feed.batches import PositionBatches
from sae.model import SAE, SAEConfig
from sae.training.state import State, take_step

HOOK, POSITIONS, STEPS, PER_SHARD = "hook", 256, 8, 4


def make(root: Path, d_in: int, n_samples: int) -> Store:
    """Return a store of random activations: 8 maps of 256 positions per sample, 32 a shard."""
    store = Store.create(root, {"model": "benchmark"})
    rng, metadata = (
        np.random.default_rng(0),
        {"hook": HOOK, "io": "output", "height": 16, "width": 16},
    )
    for first in range(0, n_samples, PER_SHARD):
        ids = list(range(first, first + PER_SHARD))
        values = rng.standard_normal((len(ids), STEPS, POSITIONS, d_in), np.float32).astype(
            np.float16
        )
        rows = activation_rows(ids, values, metadata)
        store.append(f"activations/{HOOK}", shard_name(first, ids), rows, ids, made_by={})
    return store


def encoding(store: Store, config: SAEConfig, runs: int) -> dict[str, float]:
    """Time encoding a store, loading the SAE included, and the products of the same maps in
    float32, in turns."""
    sae = SAE(config, torch.Generator().manual_seed(0)).requires_grad_(False)
    files = {"config.json": config_bytes(config), "sae.safetensors": weights_bytes(sae)}
    for number in range(runs + 1):
        commit_sae(store, f"s{number}", files, {})
    del files
    names = (f"s{number}" for number in range(runs + 1))
    maps = [
        torch.from_numpy(np.array(row)).float()
        for shard in store.activations(HOOK)
        for row in shard.rows()
    ]

    def matrix_product() -> None:
        for x in maps:
            torch.nn.functional.linear(x, sae.W_enc, sae.b_enc)

    seconds = interleaved(
        runs,
        encoding=lambda: encode(store, next(names), "cpu", progress=False),
        matrix_product=matrix_product,
    )
    assert store.arrow("codes/s0", ["step"]).num_rows == len(maps)
    return {name: len(maps) * POSITIONS / each for name, each in seconds.items()}


def training(
    store: Store, config: SAEConfig, batch: int, n_batches: int, runs: int
) -> dict[str, float]:
    """Time a few steps on batches from disk and on the same from memory, in turns."""
    batches = PositionBatches(store, HOOK, "cond", batch, 0, holdout=0)
    memory = list(itertools.islice(batches.epoch(0), n_batches))
    assert all(torch.equal(a, b) for a, b in zip(memory, batches.epoch(0), strict=False))

    def steps(source: Iterable[torch.Tensor]) -> None:
        state = State(SAE(config, torch.Generator().manual_seed(0)), (0.5, 0.99))
        for x in itertools.islice(source, n_batches):
            take_step(state, x, lr=1e-4, dead_after=10**7)

    seconds = interleaved(runs, disk=lambda: steps(batches.epoch(0)), memory=lambda: steps(memory))
    return {name: len(memory) * batch / each for name, each in seconds.items()}


def main() -> None:
    """Time both, each beside what bounds it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--only", choices=["encoding", "training"])
    options = parser.parse_args()
    d_in, n_latents, batch, n_batches = (
        (1280, 20480, 4096, 4) if options.large else (320, 5120, 1024, 192)
    )
    n_samples, runs = (32, 3) if options.large else (96, 5)
    config = SAEConfig(d_in, n_latents, 32, hook=HOOK, height=16, width=16)
    figures: dict[str, Any] = {"d_in": d_in, "n_latents": n_latents, "k": 32, "batch": batch}
    with tempfile.TemporaryDirectory() as directory:
        store = make(Path(directory) / "store", d_in, n_samples)
        if options.only != "training":
            speed = encoding(store, config, runs)
            figures |= {f"{name}_positions_per_s": each for name, each in speed.items()}
            figures["encoding_over_matrix_product"] = speed["encoding"] / speed["matrix_product"]
        if options.only != "encoding":
            speed = training(store, config, batch, n_batches, runs)
            figures |= {f"{name}_positions_per_s": each for name, each in speed.items()}
            figures["from_disk_over_from_memory"] = speed["disk"] / speed["memory"]
    record("feed", figures)


if __name__ == "__main__":
    main()
