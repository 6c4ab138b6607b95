"""A store of the published size: 50 styles × 20 prompts × 100 steps × 20480 latents, 190 million
rows of statistics at scale 1.

python benchmarks/large_store.py DIRECTORY --scale 1

Written by the store's own writer, a shard of 16 samples at a time, so an interrupted run goes on.
How often features fire is log-normal and drifts over the steps; every style and every object has
some of its own. Samples come in the order of SAeUron's script: style by style, in each all objects;
more samples are more seeds. The rows of ``codes`` hold no features: a real store's are four times
as large as its statistics, and no score reads them.
"""

import argparse
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from tqdm import tqdm

from featurestore import Store
from featurestore.format.canonical import sample_id, shard_name
from featurestore.format.schemas import CODES, samples_schema
from featurestore.saes import commit_sae
from sae.checkpoint import config_bytes, weights_bytes
from sae.codes import Encoded, Rows, codes_table, stats_table
from sae.model import SAE, SAEConfig

SAE_NAME, HOOK = "s", "unet.up_blocks.1.attentions.2"
N_STYLES, N_OBJECTS, N_STEPS, N_LATENTS, SHARD_SAMPLES = 50, 20, 100, 20480, 16
SIDE = 16
FIRING = 1900
"""latents that fire in a map of 256 positions, on average, at k = 32"""
TIMESTEPS = np.linspace(991, 1, N_STEPS, dtype=np.float32)


def make(root: Path, scale: float) -> Store:
    """Return the store at ``root``, made, or made whole, if it is not there: ``20 · scale`` samples
    a style."""
    run = {
        "model": "benchmark",
        "model_hash": "f16:0",
        "scheduler": {"class": "DDIMScheduler", "config": {}},
    }
    run |= {
        "n_steps": N_STEPS,
        "guidance": 9.0,
        "negative_prompt": "",
        "height": 512,
        "width": 512,
        "dtype": "float16",
    }
    store = Store.create(root, run)
    chosen = [
        (style, i % N_OBJECTS, i // N_OBJECTS)
        for style in range(N_STYLES)
        for i in range(round(20 * scale))
    ]
    ids = [sample_id(store.run_id, prompt(style, thing), seed) for style, thing, seed in chosen]
    store.append("samples", shard_name(0, ids), _samples(chosen, ids), ids, made_by={})
    made_by, metadata = _add_sae(store)
    for first in tqdm(
        range(0, len(ids), SHARD_SAMPLES), desc=f"make {scale:g} ×", unit=" shards", disable=None
    ):
        part = slice(first, first + SHARD_SAMPLES)
        name = shard_name(first, ids[part])
        if store.record(f"stats/{SAE_NAME}", name) is None:
            rows, encoded = _encoded(chosen[part], ids[part], first)
            codes, stats = (
                codes_table([encoded], rows, metadata),
                stats_table([encoded], rows, ids[part], metadata),
            )
            store.append(f"codes/{SAE_NAME}", name, codes, ids[part], made_by=made_by)
            store.append(f"stats/{SAE_NAME}", name, stats, ids[part], made_by=made_by)
    return store


def prompt(style: int, thing: int) -> str:
    """Return the prompt of a style and an object."""
    return f"A thing {thing} image in style {style} style."


def _samples(chosen: list[tuple[int, int, int]], ids: list[int]) -> pa.Table:
    n = len(ids)
    columns = {
        "sample_id": ids,
        "prompt": [prompt(s, t) for s, t, _ in chosen],
        "seed": [seed for *_, seed in chosen],
    }
    columns |= {
        "style": [f"style {s}" for s, *_ in chosen],
        "object": [f"thing {t}" for _, t, _ in chosen],
    }
    columns |= {"guidance": [9.0] * n, "n_steps": [N_STEPS] * n, "scheduler": ["DDIMScheduler"] * n}
    columns |= {
        "model": ["benchmark"] * n,
        "model_hash": ["f16:0"] * n,
        "height": [512] * n,
        "width": [512] * n,
    }
    return pa.Table.from_pydict(columns, schema=samples_schema(["style", "object"]))


def _add_sae(store: Store) -> tuple[dict[str, str], dict[str, str]]:
    """Commit an SAE of few inputs; return ``made_by`` and the schema metadata of its codes and
    statistics."""
    torch.manual_seed(0)
    sae = SAE(
        SAEConfig(
            d_in=4, n_latents=N_LATENTS, k=4, hook=HOOK, height=SIDE, width=SIDE, model_hash="f16:0"
        )
    )
    files = {"config.json": config_bytes(sae.config), "sae.safetensors": weights_bytes(sae)}
    if store.record("saes", SAE_NAME) is None:
        commit_sae(store, SAE_NAME, files, {})
    metadata = {
        "sae": SAE_NAME,
        "hook": HOOK,
        "height": str(SIDE),
        "width": str(SIDE),
        "n_latents": str(N_LATENTS),
    }
    return {"sae": SAE_NAME}, metadata


@cache
def _frequencies() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the share of maps in which a latent fires ``[step, latent]``, and the own latents of
    each style and object."""
    rng = np.random.default_rng(0)
    share = np.exp(rng.normal(0, 2.5, N_LATENTS))
    share[rng.random(N_LATENTS) < 0.05] = 0
    for _ in range(100):
        share *= FIRING / np.minimum(share, 0.97).sum()
    centre, width = rng.uniform(0, N_STEPS, N_LATENTS), rng.uniform(20, 200, N_LATENTS)
    drift = np.exp(-(((np.arange(N_STEPS)[:, None] - centre) / width) ** 2))
    steps = np.minimum(share * drift / drift.mean(0), 0.97)
    rare = rng.permutation(np.flatnonzero(share < 0.05))
    styles, objects = np.split(rare[: 40 * N_STYLES + 20 * N_OBJECTS], [40 * N_STYLES])
    return steps.astype(np.float32), styles.reshape(N_STYLES, -1), objects.reshape(N_OBJECTS, -1)


def _encoded(
    chosen: list[tuple[int, int, int]], ids: list[int], first: int
) -> tuple[Rows, Encoded]:
    """Return the keys and columns of a shard; they depend on its number only."""
    rng = np.random.Generator(np.random.SFC64([1, first]))
    share, styles, objects = _frequencies()
    row, feature = [], []
    for number, (style, thing, _) in enumerate(chosen):
        mine = share.copy()
        mine[:, styles[style]] = np.maximum(mine[:, styles[style]], 0.6)
        mine[:, objects[thing]] = np.maximum(mine[:, objects[thing]], 0.5)
        fired = np.flatnonzero(rng.random(mine.shape, np.float32) < mine)
        row.append(number * N_STEPS + fired // N_LATENTS)
        feature.append(fired % N_LATENTS)
    rows, features = np.concatenate(row), np.concatenate(feature).astype(np.int32)
    n_positions = np.minimum(rng.geometric(0.23, len(rows)), SIDE * SIDE).astype(np.int32)
    mean = np.exp(rng.standard_normal(len(rows), np.float32) * 0.8 - 0.5)
    largest = (mean * (1 + 0.5 * rng.random(len(rows), np.float32) * (n_positions > 1))).astype(
        np.float16
    )
    keys = Rows(
        np.repeat(np.array(ids), N_STEPS), np.tile(np.arange(N_STEPS, dtype=np.int32), len(ids)),
        np.tile(TIMESTEPS, len(ids)), np.full(len(ids) * N_STEPS, "cond"),
    )  # fmt: skip
    empty = [
        pa.array([[]] * len(keys.step), CODES.field(name).type) for name in ("features", "values")
    ]
    # The mean over the map is a float16: SAeUron's dictionary and this store then hold the same
    # numbers.
    total = (mean * n_positions / SIDE**2).astype(np.float16).astype(np.float32) * SIDE**2
    columns = (rows, features, total, largest.astype(np.float32), n_positions)
    return keys, Encoded(*empty, *columns)  # type: ignore[call-arg]


def main() -> None:
    """Make a store and say how large it is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--scale", type=float, default=1.0)
    arguments = parser.parse_args()
    records = make(arguments.directory, arguments.scale).records(f"stats/{SAE_NAME}")
    n_rows, n_bytes = sum(r.rows for r in records), sum(f.bytes for r in records for f in r.files)
    print(
        f"{n_rows:,} rows in {len(records)} shards, {n_bytes:,} bytes, {n_bytes / n_rows:.2f} a row"
    )


if __name__ == "__main__":
    main()
