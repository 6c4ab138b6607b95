"""Reading activations: shuffled batches and whole tensors, against plain memory maps, pyarrow's
decoder, and datasets.

python benchmarks/read.py
"""

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import torch
from record import interleaved, record
from rows import activation_rows

from featurestore import Store
from featurestore.format.canonical import shard_name
from sae.feed.batches import ActivationBatches

HOOK, POSITIONS, D_IN, STEPS, SAMPLES, PER_SHARD = "hook", 256, 1280, 50, 24, 8
BATCH = 4096


def make(root: Path) -> tuple[Store, np.ndarray]:
    """Return a store of the shape of SD-1.5 at up_blocks.1.attentions.1, and its tensor."""
    store = Store.create(root, {"model": "benchmark"})
    shape = SAMPLES, STEPS, POSITIONS, D_IN
    values = np.random.default_rng(0).standard_normal(shape, np.float32).astype(np.float16)
    for first in range(0, SAMPLES, PER_SHARD):
        ids = list(range(first, first + PER_SHARD))
        rows = activation_rows(ids, values[first : first + PER_SHARD], HOOK)
        store.append(f"activations/{HOOK}", shard_name(first, ids), rows, ids, made_by={})
    return store, values.reshape(-1, D_IN)


def checksum(batches: Iterable[torch.Tensor]) -> int:
    """Return a sum over the bits of all values, whatever their order."""
    return sum(int(batch.view(torch.int16).long().sum()) for batch in batches)


def main() -> None:
    """Check that all give the same values, then time them on a warm cache; everything makes batches
    of its own memory."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        store, values = make(root / "store")
        files = store.files(f"activations/{HOOK}")
        values.tofile(root / "plain.bin")
        plain_map = np.memmap(root / "plain.bin", np.float16, "r", shape=values.shape)
        loaded = datasets.Dataset.from_parquet([str(f) for f in files], cache_dir=str(root / "hf"))
        torch_set = loaded.with_format("torch", columns=["activation"], dtype=torch.float16)
        whole = torch.empty(values.shape, dtype=torch.float16)
        epochs = ActivationBatches(store, HOOK, BATCH, seed=1)

        def plain() -> Iterable[torch.Tensor]:
            return (
                torch.from_numpy(np.array(plain_map[i : i + BATCH]))
                for i in range(0, len(values), BATCH)
            )

        def with_datasets() -> Iterable[torch.Tensor]:
            shuffled = torch_set.shuffle(seed=0)
            return (
                batch["activation"].flatten(0, 1) for batch in shuffled.iter(BATCH // POSITIONS)
            )

        def in_one_copy() -> Iterable[torch.Tensor]:
            np.copyto(whole.numpy(), plain_map)
            return [whole]

        def mapped() -> Iterable[torch.Tensor]:
            start = 0
            for shard in store.activations(HOOK):
                for group in shard.groups:
                    part = group.reshape(-1, D_IN)
                    np.copyto(whole.numpy()[start : start + len(part)], part)
                    start += len(part)
            return [whole]

        def decoded() -> Iterable[torch.Tensor]:
            for path in files:
                column = pq.read_table(path, columns=["activation"])["activation"].combine_chunks()
                yield torch.from_numpy(
                    column.flatten().flatten().to_numpy(zero_copy_only=False).copy()
                )

        candidates: dict[str, Callable[[], Iterable[torch.Tensor]]] = {
            "shuffled": lambda: epochs, "plain_batches": plain, "datasets_shuffled": with_datasets,
            "mapped": mapped, "plain_one_copy": in_one_copy, "pyarrow_decode": decoded,
        }  # fmt: skip
        expected = checksum([torch.from_numpy(values)])
        for name, call in candidates.items():
            assert checksum(call()) == expected, name
        consume = {
            name: (lambda call=call: [None for _ in call()]) for name, call in candidates.items()
        }
        seconds = interleaved(7, **consume)
        figures: dict[str, Any] = {
            f"{name}_gb_per_s": values.nbytes / 1e9 / s for name, s in seconds.items()
        }
        for ours, peers in {
            "shuffled": ("plain_batches", "datasets_shuffled", "plain_one_copy"),
            "mapped": ("plain_one_copy", "pyarrow_decode"),
        }.items():
            figures |= {f"{ours}_over_{peer}": seconds[peer] / seconds[ours] for peer in peers}
        figures["file_bytes_over_tensor_bytes"] = (
            sum(f.stat().st_size for f in files) / values.nbytes
        )
        record("read", figures)


if __name__ == "__main__":
    main()
