"""Bits flipped in, and ends cut off, the files of a store: nothing may be read as if it were what
was written."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from featurestore import Store
from featurestore.errors import FeatureStoreError
from featurestore.format.canonical import sample_id, shard_name
from featurestore.saes import commit_sae, load_config
from queries.connection.session import connect
from queries.connection.statement import sql
from sae.checkpoint import config_bytes, store_sae, weights_bytes
from sae.model import SAE, SAEConfig
from tests.builders.saes import activation_table
from tests.builders.stores import HOOK, make_store
from tests.torture.crashes import Outcome

VIEWS = ("samples", "activations", "codes", "stats")


def make(root: Path) -> Store:
    """Return a small store with every kind of table and an SAE."""
    rng = np.random.default_rng(0)
    z = rng.random((4, 3, 6, 16)).astype(np.float32) * (rng.random((4, 3, 6, 16)) < 0.3)
    store = make_store(root, z, {"style": ["a", "b", "a", "b"]})
    ids = [sample_id(store.run_id, f"prompt {i}", 0) for i in range(4)]
    rows, _ = activation_table(ids, positions=8, d_in=8)
    store.append(f"activations/{HOOK}", shard_name(0, ids), rows, ids, made_by={})
    (record,) = store.records("saes")
    store.remove(record)
    config = SAEConfig(d_in=8, n_latents=16, k=4, hook=HOOK, height=1, width=6)
    sae = SAE(config, torch.Generator().manual_seed(0))
    commit_sae(
        store,
        "s",
        {"config.json": config_bytes(sae.config), "sae.safetensors": weights_bytes(sae)},
        {},
    )
    return store


def read_everything(root: Path) -> None:
    """Read all of a store through Python and through SQL."""
    store = Store.open(root)
    for table in store.tables():
        store.arrow(table)
    for shard in store.activations(HOOK):
        shard.rows()
    store_sae(store, "s")
    load_config(store, "s")
    with connect(store) as connection:
        for view in VIEWS:
            connection.sql(f"select * from {view}").to_arrow_table()
    for view in VIEWS:
        sql(store, f"select * from {view}")


def readers(path: str) -> dict[str, Callable[[Store], object]]:
    """Return the ways in which a file's contents are read: each must refuse it."""
    kind = path.split("/")[0]
    if kind in VIEWS:
        table = path.rpartition("/")[0]
        ways: dict[str, Callable[[Store], object]] = {
            "Store.arrow": lambda store: store.arrow(table), "connect": lambda store: connect(store, tables=[table]).close(),
            "sql": lambda store: sql(store, f"select * from {kind}"),
        }  # fmt: skip
        return ways | (
            {"activations": lambda store: [shard.rows() for shard in store.activations(HOOK)]}
            if kind == "activations"
            else {}
        )
    if kind == "saes":
        return {"store_sae": lambda store: store_sae(store, "s")}
    if path == "manifest/store.json":
        return {"open": lambda store: Store.open(store.root)}
    table = path.removeprefix("manifest/").rpartition("/")[0]
    if table == "saes":
        return {"store_sae": lambda store: store_sae(store, "s")}
    return {
        "Store.arrow": lambda store: store.arrow(table),
        "connect": lambda store: connect(store, tables=[table]).close(),
    }


def damage(root: Path, n: int, seed: int = 0) -> Outcome:
    """Damage one file at a time, ``n`` times, each time undone; every reader of that file must
    refuse it with one line."""
    store, rng, outcome = Store.open(root), random.Random(seed), Outcome()
    read_everything(root)  # nothing is damaged yet; what was checked once is known by now
    derived = ("README.md", "SHA256SUMS", "metrics.json")
    files = sorted(p for p in root.rglob("*") if p.is_file() and p.name not in derived)
    for number in range(n):
        path = files[number % len(files)]
        whole = path.read_bytes()
        if rng.random() < 0.3:
            what, left = "cut", whole[: rng.randrange(len(whole))]
        else:
            at, bit = rng.randrange(len(whole)), rng.randrange(8)
            what, left = (
                f"bit {bit} of byte {at}",
                whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :],
            )
        path.write_bytes(left)
        relative = path.relative_to(root).as_posix()
        for way, read in readers(relative).items():
            outcome.tried += 1
            try:
                read(store)
                outcome.broken.append(f"{relative}, {what}: read by {way}")
            except FeatureStoreError as error:
                if "\n" in str(error):
                    outcome.broken.append(f"{relative}, {what}: {way} says it in several lines")
        path.write_bytes(whole)
    return outcome
