"""Collecting: generation with two hooks captured to disk against plain generation; and the writers
on the same tensors.

python benchmarks/collect.py              on the included model, CPU
python benchmarks/collect.py --cuda       Stable Diffusion 1.5's shape, random weights, float16
python benchmarks/collect.py --rehearse   a tiny UNet, in seconds
"""

import argparse
import itertools
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from record import interleaved, record
from rows import activation_rows
from sd15 import sd15_shape

from collectors.collection import CollectReport, CollectSettings, collect
from collectors.planning.estimate import table_bytes
from featurestore import Store
from featurestore.maintenance.verify import verify
from featurestore.prompts import Prompt
from sae.codes import RowCodes, Rows, codes_table, stats_table, to_columns
from sae.diffusion.pipelines import RunSettings, generate, load_model

PICTURES, BATCH = 16, 8


def sd15_rows(n_samples: int = 4, n_steps: int = 50) -> dict[str, pa.Table]:
    """Return activations of SD-1.5's shape (256 positions of 1280) at two hooks, as a collection
    holds them."""
    rng, shape = np.random.default_rng(0), (n_samples, n_steps, 256, 1280)
    drawn = (rng.standard_normal(shape, np.float32).astype(np.float16) for _ in range(2))
    return {
        hook: activation_rows(range(n_samples), values, hook)
        for hook, values in zip(("first", "second"), drawn, strict=True)
    }


def their_writer(rows: dict[str, pa.Table], out: Path) -> None:
    """Write activations as SAeUron's runner does: ``datasets`` from a tensor, Array2D,
    ``save_to_disk``."""
    for hook, table in rows.items():
        flat = (
            table["activation"].combine_chunks().flatten().flatten().to_numpy(zero_copy_only=False)
        )
        column = datasets.Array2D(shape=(256, 1280), dtype="float16")
        features = datasets.Features({"activations": column, "timestep": datasets.Value("uint16")})
        values = torch.from_numpy(flat.reshape(-1, 256, 1280))
        contents = {
            "activations": values,
            "timestep": table["timestep"].to_numpy().astype(np.uint16),
        }
        datasets.Dataset.from_dict(contents, features=features).save_to_disk(
            out / hook, num_shards=1
        )


def our_writer(rows: dict[str, pa.Table], out: Path) -> None:
    """Write them as a collection does: durable, hashed, memory-mappable shards, the tables beside
    each other."""
    store = Store.create(out, {})
    with ThreadPoolExecutor(len(rows)) as pool:
        list(
            pool.map(
                lambda hook: store.append(
                    f"activations/{hook}",
                    "0",
                    rows[hook],
                    pc.unique(rows[hook]["sample_id"]).to_pylist(),
                    made_by={},
                ),
                rows,
            )
        )


def codes_share(n_rows: int = 16, n_firing: int = 1900) -> float:
    """Return the bytes of codes and statistics over those of float16 activations, 256 positions of
    1280, 20480 latents, k 32.

    In each map ``n_firing`` latents fire, the common ones of a popularity law oftener: 94 million
    rows of statistics at the published scale (50 concepts × 20 prompts × 50 steps).
    """
    rng, codes = np.random.default_rng(0), []
    known = rng.permutation(20480)[: 4 * n_firing]
    for _ in range(n_rows):
        pool = rng.choice(known, n_firing, replace=False)
        draws = -0.6 * np.log(np.arange(1, n_firing + 1)) + rng.gumbel(size=(256, n_firing))
        latents = np.sort(pool[np.argsort(-draws, axis=1)[:, :32]], axis=1)
        values = rng.gamma(2, 0.5, size=latents.shape).astype(np.float32)
        codes.append(RowCodes(torch.from_numpy(values), torch.from_numpy(latents).int()))
    step = np.arange(n_rows, dtype=np.int32)
    rows = Rows(
        np.zeros(n_rows, np.int64), step, step.astype(np.float32), np.array(["cond"] * n_rows)
    )
    encoded = [to_columns(codes, 20480)]
    written = sum(
        map(table_bytes, (codes_table(encoded, rows, {}), stats_table(encoded, rows, [0], {})))
    )
    return written / (n_rows * 256 * 1280 * 2)


def main() -> None:
    """Check the store, then time everything in turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cuda", action="store_true")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--rehearse", action="store_true", help="two pictures of two steps, once")
    options = parser.parse_args()
    cuda = options.cuda
    n_pictures, batch, runs = (2, 1, 1) if options.rehearse else (PICTURES, BATCH, options.runs)
    if cuda or options.rehearse:
        device, numbers = "cuda" if cuda else "cpu", (1, 2)
        model = sd15_shape(device, torch.float16, small=options.rehearse)
    else:
        model, numbers = load_model("minicanvas", "cpu"), (0, 1)
    hooks = [f"unet.up_blocks.1.attentions.{i}" for i in numbers]
    run = RunSettings(2 if options.rehearse else model.steps, model.guidance)
    prompts = [Prompt(f"An image of cat {i}.", i, {}, i + 1) for i in range(n_pictures)]
    settings = CollectSettings(hooks=hooks, batch_size=batch)
    with tempfile.TemporaryDirectory() as directory:
        fresh = (Path(directory) / f"{i}" for i in itertools.count())
        reports: list[CollectReport] = []

        def plain() -> None:
            for i in range(0, n_pictures, batch):
                part = prompts[i : i + batch]
                generate(
                    model,
                    run,
                    [p.prompt for p in part],
                    [p.seed for p in part],
                    output_type="latent",
                )
            if cuda:
                torch.cuda.synchronize()

        def collecting() -> None:
            reports.append(collect(next(fresh), model, prompts, run, settings, progress=False))
            shutil.rmtree(reports[-2].store.root) if len(reports) > 1 else None

        seconds = interleaved(runs, plain=plain, collecting=collecting)
        report = reports[-1]
        assert verify(report.store, deep=True) == []
        raw = sum(
            group.nbytes
            for hook in hooks
            for shard in report.store.activations(hook)
            for group in shard.groups
        )
        n_bytes = sum(
            path.stat().st_size
            for hook in hooks
            for path in report.store.files(f"activations/{hook}")
        )
        rows = sd15_rows(1, 2) if options.rehearse else sd15_rows()
        ours, theirs = next(fresh), next(fresh)
        our_writer(rows, ours)
        assert all(
            Store.open(ours).arrow(f"activations/{hook}").equals(table)
            for hook, table in rows.items()
        )
        their_writer(rows, theirs)
        assert all(
            len(datasets.load_from_disk(theirs / hook)) == len(table)
            for hook, table in rows.items()
        )
        alone = {"first": rows["first"]}
        writers = interleaved(
            min(5, runs),
            ours=lambda: our_writer(rows, next(fresh)),
            ours_one_hook=lambda: our_writer(alone, next(fresh)),
            datasets=lambda: their_writer(rows, next(fresh)),
        )
        n_hook = alone["first"]["activation"].nbytes
        n_written = {"ours": 2 * n_hook, "ours_one_hook": n_hook, "datasets": 2 * n_hook}
    figures: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "model": model.name,
    }
    figures |= {f"{name}_s": value for name, value in seconds.items()}
    figures["collecting_over_plain"] = seconds["collecting"] / seconds["plain"]
    figures["waiting_for_the_writer_share"] = report.timing.waiting / report.timing.total
    figures["writer_busy_share"] = report.timing.writing / report.timing.total
    figures["disk_bytes_over_raw"] = n_bytes / raw
    figures |= {
        f"write_{name}_mb_per_s": n_written[name] / 1e6 / value for name, value in writers.items()
    }
    figures["our_writer_over_datasets"] = writers["datasets"] / writers["ours"]
    figures["codes_and_stats_bytes_over_activations"] = codes_share(1 if options.rehearse else 16)
    record("collect", figures)


if __name__ == "__main__":
    main()
