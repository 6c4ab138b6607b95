"""Small real stores of given codes."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa

from featurestore import Store
from featurestore.format.canonical import sample_id, shard_name
from featurestore.format.schemas import CODES, STATS, samples_schema
from featurestore.saes import commit_sae

HOOK = "unet.up_blocks.1.attentions.1"
METRICS: dict = {}
RUN = {
    "model": "m", "model_hash": "f16:0", "scheduler": {"class": "DDIMScheduler", "config": {}}, "n_steps": 3,
    "guidance": 3.0, "negative_prompt": "", "height": 64, "width": 64, "dtype": "float32",
}  # fmt: skip


def make_store(
    root: Path, z: np.ndarray, labels: dict[str, list], sae="s", encoded=None, size=None, branch="cond", told=True,
    uncond: np.ndarray | None = None, prompts: list[str] | None = None, pictures: list[bytes] | None = None,
    weights: bytes = b"weights",
) -> Store:  # fmt: skip
    """A store whose SAE gave the dense codes ``z [samples, steps, positions, n_latents]``, without
    activations.

    ``encoded`` are the indices of the samples that were encoded (default: all), one shard a call;
    ``size`` the map (default: a row); ``told``: the statistics say which steps they are of;
    ``uncond``: the codes of the other branch, in the same shard; ``pictures``: PNG files, one a
    sample; ``weights``: the bytes of the SAE's file.
    """
    n, _, positions, n_latents = z.shape
    store = Store.create(root, RUN)
    texts = prompts or [f"prompt {i}" for i in range(n)]
    ids = [sample_id(store.run_id, text, 0) for text in texts]
    store.append(
        "samples", shard_name(0, ids), _samples(ids, texts, labels, pictures), ids, made_by={}
    )
    height, width = size or (1, positions)
    config = {"architecture": "topk", "d_in": 8, "n_latents": n_latents, "k": 4, "hook": HOOK, "io": "output",
              "height": height, "width": width}  # fmt: skip
    files = {
        "config.json": json.dumps(config).encode(),
        "sae.safetensors": weights,
        "metrics.json": json.dumps(METRICS).encode(),
    }
    commit_sae(store, sae, files, {})
    chosen = list(range(n)) if encoded is None else encoded
    kept = [ids[i] for i in chosen]
    metadata = {
        "sae": sae,
        "hook": HOOK,
        "height": str(height),
        "width": str(width),
        "n_latents": str(n_latents),
    }
    if told:
        branches = [branch, "uncond"] if uncond is not None else [branch]
        metadata["steps"] = json.dumps(
            {name: [[i, timestep(i)] for i in range(z.shape[1])] for name in branches}
        )
    named = {f"featurestore.{key}": value for key, value in metadata.items()}
    for kind, make in (("codes", _codes), ("stats", _stats)):
        rows = make(z[chosen], kept, branch)
        if uncond is not None:
            rows = pa.concat_tables([rows, make(uncond[chosen], kept, "uncond")])
            rows = rows.take(np.lexsort((np.arange(len(rows)), rows["step"].to_numpy())))
        store.append(
            f"{kind}/{sae}",
            shard_name(0, kept),
            rows.replace_schema_metadata(named),
            kept,
            made_by={},
        )
    return store


def timestep(step: int) -> float:
    return 981.0 - 20 * step


def _samples(
    ids: list[int], prompts: list[str], labels: dict[str, list], pictures: list[bytes] | None
) -> pa.Table:
    n = len(ids)
    columns = {"sample_id": ids, "prompt": prompts, "seed": [0] * n, **labels}
    shared = {
        "guidance": 3.0,
        "n_steps": 3,
        "scheduler": "DDIMScheduler",
        "model": "m",
        "model_hash": "f16:0",
    }
    columns |= {key: [value] * n for key, value in (shared | {"height": 64, "width": 64}).items()}
    if pictures is not None:
        columns["image"] = [{"bytes": png, "path": f"{i}.png"} for i, png in enumerate(pictures)]
    return pa.Table.from_pydict(columns, schema=samples_schema(labels, pictures is not None))


def _codes(z, ids, branch):
    rows = [(i, s) for i in range(z.shape[0]) for s in range(z.shape[1])]
    active = [[np.flatnonzero(z[i, s, p]).tolist() for p in range(z.shape[2])] for i, s in rows]
    columns = {
        "sample_id": [ids[i] for i, _ in rows],
        "step": [s for _, s in rows],
        "timestep": [timestep(s) for _, s in rows],
    }
    columns |= {"branch": [branch] * len(rows), "features": active}
    columns["values"] = [
        [[float(z[i, s, p, f]) for f in fs] for p, fs in enumerate(positions)]
        for (i, s), positions in zip(rows, active, strict=True)
    ]
    half = pa.array(columns.pop("values"), pa.list_(pa.list_(pa.float32()))).cast(
        CODES.field("values").type
    )
    arrays = [pa.array(columns[name], CODES.field(name).type) for name in CODES.names[:-1]]
    return pa.Table.from_arrays([*arrays, half], schema=CODES)


def _stats(z, ids, branch):
    rows = [
        (s, i, f)
        for s in range(z.shape[1])
        for i in range(z.shape[0])
        for f in np.flatnonzero(z[i, s].any(0)).tolist()
    ]
    columns = {
        "sample_id": [ids[i] for _, i, _ in rows],
        "step": [s for s, _, _ in rows],
        "timestep": [timestep(s) for s, _, _ in rows],
        "branch": [branch] * len(rows),
        "feature": [f for _, _, f in rows],
        "sum": [float(z[i, s, :, f].sum()) for s, i, f in rows],
        "max": [float(z[i, s, :, f].max()) for s, i, f in rows],
        "n_positions": [int((z[i, s, :, f] > 0).sum()) for s, i, f in rows],
    }
    return pa.Table.from_pydict(columns, schema=STATS)
