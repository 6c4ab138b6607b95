"""Small stores with activations for the SAE's tests."""

import numpy as np
import pyarrow as pa
import torch

from featurestore import Store
from featurestore.format.activations import tensor_array
from featurestore.format.canonical import sample_id, shard_name
from featurestore.format.schemas import activations_schema
from sae.model import SAE, SAEConfig

HOOK = "unet.up_blocks.1.attentions.1"
RUN = {"model": "m", "model_hash": "f16:aa,bf16:bb", "n_steps": 3}


def sparse_data(n, d_in=16, n_true=32, active=3, seed=0):
    """Positions made of a few of ``n_true`` unit directions, about a mean that is not zero:
    ``[n, d_in]`` float32."""
    rng = np.random.default_rng(seed)
    directions = np.random.default_rng(99).standard_normal((n_true, d_in))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    z = np.zeros((n, n_true))
    for row in z:
        row[rng.choice(n_true, active, replace=False)] = rng.uniform(1, 3, active)
    return (z @ directions + 0.7 + 0.02 * rng.standard_normal((n, d_in))).astype(np.float32)


def activation_table(
    ids, steps=3, positions=16, d_in=16, branches=("cond",), seed=0, dtype="float16", io="output"
):
    """Rows as a collector writes them, and their tensors ``[rows, positions, d_in]``."""
    n = len(ids) * steps * len(branches)
    values = sparse_data(n * positions, d_in, seed=seed).reshape(n, positions, d_in).astype(dtype)
    schema = activations_schema(positions, d_in, dtype)
    step = np.tile(np.repeat(np.arange(steps, dtype=np.int32), len(branches)), len(ids))
    columns = [
        pa.array(np.repeat(ids, steps * len(branches))),
        pa.array(step),
        pa.array((981 - 20 * step).astype(np.float32)),
        pa.array(list(branches) * (len(ids) * steps)),
        tensor_array(values, schema),
    ]
    about = {"hook": HOOK, "io": io, "height": "4", "width": str(positions // 4)}
    named = {f"featurestore.{key}": value for key, value in about.items()}
    return pa.Table.from_arrays(columns, schema=schema.with_metadata(named)), values


def make_store(root, n_shards=3, samples_per_shard=2, hook=HOOK, **kwargs):
    """A store with the activations of ``n_shards · samples_per_shard`` samples."""
    store = Store.create(root, RUN)
    for number in range(n_shards):
        add_shard(store, number, samples_per_shard, hook, **kwargs)
    return store


def add_shard(store, number, n_samples=2, hook=HOOK, **kwargs):
    first = number * n_samples
    ids = [sample_id(store.run_id, f"prompt {i}", 0) for i in range(first, first + n_samples)]
    rows, values = activation_table(ids, seed=number, **kwargs)
    store.append(
        f"activations/{hook}", shard_name(first, ids), rows, ids, made_by={"featurestore": "test"}
    )
    return ids, values


def random_sae(d_in=16, n_latents=40, k=4, seed=0, **kwargs):
    """An SAE whose four parameters are all random."""
    generator = torch.Generator().manual_seed(seed)
    sae = SAE(SAEConfig(d_in, n_latents, k, **kwargs), generator)
    with torch.no_grad():
        for parameter in (sae.W_enc, sae.b_enc, sae.b_dec):
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return sae
