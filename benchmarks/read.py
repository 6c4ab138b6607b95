"""Reading activations: our memory map, a plain memory map of the same bytes, pyarrow's decoder, and datasets.

python benchmarks/read.py
"""

import tempfile
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from record import interleaved, record

from featurestore import Store
from featurestore.canonical import shard_name
from featurestore.schemas import activations_schema

HOOK, POSITIONS, D_IN, ROWS = "hook", 256, 1280, 200


def make(root: Path) -> tuple[Store, np.ndarray]:
    """A store of the shape of SD-1.5 at up_blocks.1.attentions.1, 4 samples of 50 steps."""
    store = Store.create(root, {"model": "benchmark"})
    values = np.random.default_rng(0).standard_normal((ROWS, POSITIONS, D_IN), np.float32).astype(np.float16)
    schema = activations_schema(POSITIONS, D_IN)
    outer = schema.field("activation").type
    nested = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), type=outer.value_type)
    ids = np.arange(ROWS // 50)
    step = np.tile(np.arange(50, dtype=np.int32), len(ids))
    columns = [np.repeat(ids, 50), step, step.astype(np.float32), pa.array(["cond"] * ROWS)]
    arrays = [*map(pa.array, columns), pa.FixedSizeListArray.from_arrays(nested, type=outer)]
    store.append(
        f"activations/{HOOK}", shard_name(0, ids), pa.Table.from_arrays(arrays, schema=schema), ids.tolist(), {}
    )
    return store, values


def main() -> None:
    """Check that all give the same tensor, then time them on a warm cache."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        store, values = make(root / "store")
        (path,) = store.files(f"activations/{HOOK}")
        values.tofile(root / "plain.bin")
        target = torch.empty(values.shape, dtype=torch.float16)
        loaded = datasets.Dataset.from_parquet(str(path), cache_dir=str(root / "hf")).with_format(
            "torch", dtype=torch.float16
        )

        def ours() -> torch.Tensor:
            (shard,) = store.activations(HOOK)
            assert shard.mapped
            start = 0
            for group in shard.groups:
                np.copyto(target.numpy()[start : start + len(group)], group)
                start += len(group)
            return target

        def plain() -> torch.Tensor:
            np.copyto(target.numpy(), np.memmap(root / "plain.bin", np.float16, "r", shape=values.shape))
            return target

        def decoded() -> torch.Tensor:
            column = pq.read_table(path, columns=["activation"])["activation"].combine_chunks()
            return torch.from_numpy(
                column.flatten().flatten().to_numpy(zero_copy_only=False).reshape(values.shape).copy()
            )

        def with_datasets() -> torch.Tensor:
            return torch.cat([batch["activation"] for batch in loaded.iter(20)])

        candidates = {"ours": ours, "plain_memmap": plain, "pyarrow_decode": decoded, "datasets_torch": with_datasets}
        expected = torch.from_numpy(values)
        for name, call in candidates.items():
            assert torch.equal(call(), expected), name
        seconds = interleaved(5, **candidates)
        gigabytes = values.nbytes / 1e9
        figures: dict[str, float] = {f"{name}_gb_per_s": gigabytes / s for name, s in seconds.items()}
        figures |= {f"ours_over_{name}": s / seconds["ours"] for name, s in seconds.items() if name != "ours"}
        figures["file_bytes_over_tensor_bytes"] = path.stat().st_size / values.nbytes
        record("read", figures)


if __name__ == "__main__":
    main()
