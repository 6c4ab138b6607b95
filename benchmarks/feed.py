"""What feeds an SAE: encoding against the encoder's matrix product alone, and training from disk against training from memory.

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
from featurestore.canonical import shard_name
from featurestore.saes import commit_sae
from sae.batches import PositionBatches
from sae.checkpoint import config_bytes, weights_bytes
from sae.encode import encode
from sae.model import SAE, SAEConfig
from sae.state import State
from sae.step import take_step

HOOK, POSITIONS, STEPS, SAMPLES = "hook", 256, 8, 8


def make(root: Path, d_in: int) -> Store:
    """Return a store of random activations: 64 maps of 256 positions."""
    store = Store.create(root, {"model": "benchmark"})
    rng, metadata = np.random.default_rng(0), {"hook": HOOK, "io": "output", "height": 16, "width": 16}
    for first in range(0, SAMPLES, 4):
        ids = list(range(first, first + 4))
        values = rng.standard_normal((len(ids), STEPS, POSITIONS, d_in), np.float32).astype(np.float16)
        rows = activation_rows(ids, values, metadata)
        store.append(f"activations/{HOOK}", shard_name(first, ids), rows, ids, {})
    return store


def main() -> None:
    """Check that the same is computed, then take turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true")
    d_in, n_latents, batch = (1280, 20480, 4096) if parser.parse_args().large else (320, 5120, 1024)
    config = SAEConfig(d_in, n_latents, 32, hook=HOOK, height=16, width=16)
    with tempfile.TemporaryDirectory() as directory:
        store = make(Path(directory) / "store", d_in)
        sae = SAE(config, torch.Generator().manual_seed(0)).requires_grad_(False)
        names = (f"s{i}" for i in itertools.count())
        batches = PositionBatches(store, HOOK, "cond", batch, 0, holdout=0)
        memory = list(batches.epoch(0))
        assert all(torch.equal(a, b) for a, b in zip(memory, batches.epoch(0), strict=True))
        maps = torch.from_numpy(batches.rows.fill(np.arange(len(batches.rows)))).float()

        def encoding() -> None:
            name = next(names)
            commit_sae(store, name, {"config.json": config_bytes(config), "sae.safetensors": weights_bytes(sae)}, {})
            encode(store, name, device="cpu", progress=False)

        def matrix_product() -> None:
            for x in maps:
                torch.nn.functional.linear(x, sae.W_enc, sae.b_enc)

        def steps(source: Iterable[torch.Tensor]) -> None:
            state = State(SAE(config, torch.Generator().manual_seed(0)))
            for x in source:
                take_step(state, x, 1e-4, 10**7)

        seconds = interleaved(
            5, encoding=encoding, matrix_product=matrix_product, disk=lambda: steps(batches.epoch(0)),
            memory=lambda: steps(memory),
        )  # fmt: skip
        assert store.read("codes/s0", ["step"]).num_rows == SAMPLES * STEPS
    figures: dict[str, Any] = {"d_in": d_in, "n_latents": n_latents, "k": 32, "batch": batch}
    n_positions = SAMPLES * STEPS * POSITIONS
    figures |= {f"{name}_positions_per_s": n_positions / s for name, s in seconds.items()}
    figures["encoding_over_matrix_product"] = seconds["matrix_product"] / seconds["encoding"]
    figures["from_disk_over_from_memory"] = seconds["memory"] / seconds["disk"]
    record("feed", figures)


if __name__ == "__main__":
    main()
