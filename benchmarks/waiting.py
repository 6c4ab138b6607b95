"""Collecting behind a denoiser that only waits, as a host does for its GPU, while real tensors of
SD-1.5's shape arrive.

python benchmarks/waiting.py                    calls of 5, 20 and 100 ms, 12 shards
python benchmarks/waiting.py --waits 20 --runs 3

A call takes its time from start to end, whatever the hooks do in it, unless they take longer: so
what is measured is whether the writing of one's tensors gets into the way of the next. Two hooks of
256 positions of 1280 channels, float16, two pictures at a time. Beside it the same collection with
pyarrow's own writer in the place of ours: a shard is gathered in memory, and written while the next
is generated. And the same with an SAE that encodes the first hook on the fly, whose codes and
statistics are kept beside the activations: of few latents, since here the CPU does what a GPU would
do, but with as many active ones (k 32) as a large one writes. Every run's store is verified, and
both writers' tensors are compared.
"""

import argparse
import collections
import itertools
import shutil
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from record import interleaved, record
from torch import Tensor, nn

from collectors.collection import CollectReport, CollectSettings, collect
from featurestore import Store
from featurestore.format import durable
from featurestore.format.activations import tensor_array
from featurestore.format.parquet import layout
from featurestore.maintenance.verify import verify
from featurestore.prompts import Prompt
from sae.checkpoint import save_sae
from sae.diffusion.loading.weights import model_hash
from sae.diffusion.pipelines import Model, RunSettings, generate, load_model
from sae.model import SAE, SAEConfig

HOOKS = ("unet.up_blocks.1.attentions.0", "unet.up_blocks.1.attentions.1")
BATCH, SHARD, STEPS = 2, 4, 20
D_IN, N_LATENTS, K = 1280, 128, 32


class Given(nn.Module):
    """A module whose output is there already: one of a few tensors in turn."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        made = (torch.randn(2 * BATCH, D_IN, 16, 16, generator=generator).half() for _ in range(4))
        self._tensors = itertools.cycle(list(made))

    def forward(self) -> Tensor:
        """Return the next."""
        return next(self._tensors)


def waiting_model(seconds: float) -> Model:
    """Return the included pipeline with a denoiser whose calls take ``seconds`` and compute
    nothing."""
    model = load_model("minicanvas", "cpu")
    unet = model.pipe.unet
    given = [Given(seed) for seed in range(len(HOOKS))]
    for place, module in enumerate(given):
        unet.up_blocks[1].attentions[place] = module

    def forward(sample: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor]:
        ends = time.perf_counter() + seconds
        for module in given:
            time.sleep(seconds / 4)
            module()
        time.sleep(max(0.0, ends - time.perf_counter()))
        return (torch.zeros_like(sample),)

    unet.forward = forward
    return model


def sae_of(model: Model, directory: Path) -> str:
    """Write an SAE of the first hook; return its directory."""
    config = SAEConfig(
        d_in=D_IN,
        n_latents=N_LATENTS,
        k=K,
        hook=HOOKS[0],
        height=16,
        width=16,
        model_hash=model_hash(model.pipe.unet),
    )
    directory.mkdir()
    save_sae(SAE(config, torch.Generator().manual_seed(0)), directory)
    return str(directory)


class PyarrowFile:
    """The file of a shard as pyarrow writes it, gathered in memory; what :class:`TensorFile` does
    for a collection."""

    def __init__(self, path: Path, others: pa.Table, schema: pa.Schema, scratch: Path) -> None:
        self._path, self._others, self.schema = path, others, schema
        self._scratch = scratch / f"{path.parent.name}-{path.name}"
        self.n_rows = others.num_rows
        positions, d_in, dtype = layout.tensor_shape(schema)
        self._values: npt.NDArray = np.empty((self.n_rows, positions, d_in), dtype)

    def put(self, row: int, values: npt.NDArray) -> None:
        """Keep a row."""
        self._values[row] = values

    def seal(self) -> durable.Written:
        """Write the file, durably and hashed as all others, in another place."""
        columns = [*self._others.columns, tensor_array(self._values, self.schema)]
        table = pa.Table.from_arrays(columns, schema=self.schema)
        rows = layout.rows_per_group(self.schema)
        one_page = dict.fromkeys(
            ("data_page_size", "max_rows_per_page", "write_batch_size"), 2**31 - 1
        )

        def write(file: Any) -> None:
            sink = pa.PythonFile(file, mode="w")
            with pq.ParquetWriter(
                sink, self.schema, compression="none", use_dictionary=False,
                write_page_checksum=True, **one_page,
                write_statistics=["sample_id", "step", "timestep", "branch"],
            ) as writer:  # fmt: skip
                for start in range(0, self.n_rows, rows):
                    writer.write_table(table.slice(start, rows), row_group_size=rows)

        return durable.write_file(self._scratch, write)

    def place(self) -> None:
        """Move it."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._scratch.replace(self._path)

    def close(self) -> None:
        """Do nothing."""


def measure(seconds: float, shards: int, runs: int, directory: Path) -> dict[str, Any]:
    """Return the figures for calls of some length."""
    model, fresh = waiting_model(seconds), (directory / f"{i}" for i in itertools.count())
    prompts = [Prompt(f"An image of cat {i}.", i, {}, i + 1) for i in range(shards * SHARD)]
    run = RunSettings(STEPS, 3.0)
    settings = CollectSettings(hooks=HOOKS, batch_size=BATCH, shard_samples=SHARD)
    with_sae = replace(settings, saes=[sae_of(model, directory / "few")])
    reports: dict[str, CollectReport] = {}
    totals: dict[str, list[float]] = collections.defaultdict(list)

    def plain() -> None:
        for i in range(0, len(prompts), BATCH):
            part = prompts[i : i + BATCH]
            generate(
                model, run, [p.prompt for p in part], [p.seed for p in part], output_type="latent"
            )

    def collecting(name: str, settings: CollectSettings = settings) -> None:
        if name in reports:
            shutil.rmtree(reports[name].store.root)
        reports[name] = collect(next(fresh), model, prompts, run, settings, progress=False)
        totals[name].append(
            reports[name].timing.total
        )  # without the model's hash, taken once before

    def pyarrow() -> None:
        with mock.patch("featurestore.store.writing.TensorFile", PyarrowFile):
            collecting("pyarrow")

    torch.set_num_threads(1)  # As a host does that leaves computing to its GPU.
    times = interleaved(
        runs,
        plain=plain,
        collecting=lambda: collecting("collecting"),
        with_sae=lambda: collecting("with_sae", with_sae),
        pyarrow=pyarrow,
    )
    assert verify(reports["with_sae"].store, deep=True) == []
    assert len(reports["with_sae"].store.records("stats/few")) == shards
    check(reports["collecting"].store, reports["pyarrow"].store, shards)
    figures: dict[str, Any] = {
        "call_ms": 1000 * seconds,
        "shards": shards,
        "plain_s": times["plain"],
    }
    for name, report in reports.items():
        tail = report.timing.tail
        total = statistics.median(totals[name])
        figures |= {
            f"{name}_s": total,
            f"{name}_over_plain": total / times["plain"],
            f"{name}_tail_s": tail,
        }
        figures |= {f"{name}_but_the_tail_over_plain": (total - tail) / times["plain"]}
        figures |= {
            f"{name}_waiting_s": report.timing.waiting,
            f"{name}_busy_s": report.timing.writing,
        }
        shutil.rmtree(report.store.root)
    return figures | {"mb_per_s": reports["collecting"].n_bytes / 1e6 / times["plain"]}


def check(ours: Store, theirs: Store, shards: int) -> None:
    """Check both stores, and that they hold the same tensors."""
    for store in (ours, theirs):
        assert verify(store, deep=True) == [], "a sound store"
        assert len(store.records(f"activations/{HOOKS[0]}")) == shards
    for hook in HOOKS:
        shard = next(iter(ours.records(f"activations/{hook}"))).shard
        names = [store.root / "activations" / hook / f"{shard}.parquet" for store in (ours, theirs)]
        one, other = (pq.read_table(name, page_checksum_verification=True) for name in names)
        assert one.schema == other.schema and one.num_rows == other.num_rows == SHARD * STEPS


def main() -> None:
    """Measure every wait."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--waits", type=float, nargs="+", default=[5, 20, 100], help="milliseconds")
    parser.add_argument("--shards", type=int, default=12)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    for wait in options.waits:
        with tempfile.TemporaryDirectory() as directory:
            record("waiting", measure(wait / 1000, options.shards, options.runs, Path(directory)))


if __name__ == "__main__":
    main()
