"""Row groups of activation files: what their size costs those who read the first row, a page of
rows, or everything.

python benchmarks/layout.py
"""

import itertools
import tempfile
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
from read import BATCH, HOOK, make
from record import interleaved, record

from featurestore import Store
from featurestore.format.parquet import layout
from sae.feed.batches import ActivationBatches

MEGABYTES = (2, 8, 32, 128, 512)
PAGE_ROWS = 100  # what the hub's viewer shows at once; it reads whole row groups, 286 MiB at most
VIEWER_BYTES = 286 * 2**20


def page_bytes(path: Path) -> int:
    """Return the most bytes that row groups with 100 consecutive rows hold."""
    with pq.ParquetFile(path) as file:
        groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
    starts = [0, *itertools.accumulate(group.num_rows for group in groups)]
    pages = [
        sum(
            g.total_byte_size for g, a, b in zip(groups, starts, starts[1:], strict=False)
            if a < first + PAGE_ROWS and b > first
        )
        for first in range(max(1, starts[-1] - PAGE_ROWS + 1))
    ]  # fmt: skip
    return max(pages)


def main() -> None:
    """Write the same store with row groups of each size; read them in turns."""
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as directory:
        stores: dict[int, Store] = {}
        for size in MEGABYTES:
            layout.ROW_GROUP_BYTES = size * 2**20
            stores[size], values = make(Path(directory) / str(size))
        files = {size: store.files(f"activations/{HOOK}") for size, store in stores.items()}
        batches = {
            size: ActivationBatches(store, HOOK, BATCH, seed=1) for size, store in stores.items()
        }

        def first_streamed(size: int) -> None:
            rows = datasets.load_dataset(
                "parquet", data_files=[str(f) for f in files[size]], split="train", streaming=True
            )
            assert next(iter(rows))["step"] == 0

        def decode(size: int) -> None:
            assert (
                sum(pq.read_table(f, columns=["activation"]).num_rows for f in files[size])
                == len(values) // 256
            )

        def shuffled(size: int) -> None:
            assert sum(1 for _ in batches[size]) == len(values) // BATCH

        for read in (first_streamed, decode, shuffled):
            seconds = interleaved(
                3, **{str(size): (lambda read=read, size=size: read(size)) for size in MEGABYTES}
            )
            figures |= {f"{read.__name__}_s_{size}mb": s for size, s in seconds.items()}
        for size in MEGABYTES:
            figures[f"viewer_page_mb_{size}mb"] = page_bytes(files[size][0]) / 1e6
            figures[f"viewer_can_{size}mb"] = page_bytes(files[size][0]) <= VIEWER_BYTES
            figures[f"file_over_raw_{size}mb"] = (
                sum(f.stat().st_size for f in files[size]) / values.nbytes
            )
    record("layout", figures)


if __name__ == "__main__":
    main()
