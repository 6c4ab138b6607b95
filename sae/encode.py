"""Turn a store's activation shards into shards of codes and of statistics."""

from collections.abc import Mapping
from typing import Any

import torch
from tqdm import tqdm

import featurestore
from featurestore.activations import ActivationShard, read_shard
from featurestore.card import write_card
from featurestore.errors import SAEError
from featurestore.records import Record
from featurestore.saes import sae_hash
from featurestore.store import Store
from sae.checkpoint import load_sae, pick_device
from sae.codes import CHUNK_ROWS, Rows, codes_table, encode_rows, stats_table
from sae.data import hook_records
from sae.identity import same_model
from sae.model import SAE


def encode(store: Store, name: str, device: str = "auto", progress: bool = True) -> int:
    """Encode all activation shards of an SAE's hook, all branches; return how many shards were new.

    Each shard of ``activations/<hook>`` becomes the shards of the same name of ``codes/<name>`` and ``stats/<name>``;
    those that exist are skipped, so an interrupted call is resumed by another. The dataset card is brought up to
    date.

    Raises:
        SAEError: the SAE is unknown, or belongs to other activations or another model, or a code does not fit.
    """
    sae = load_sae((store, name), pick_device(device))
    record = store.record("saes", name)
    assert record is not None, "load_sae has found it"
    made_by = made_by_sae(record)
    check_model(sae, name, str((store.run or {}).get("model_hash", "")), str(store.root))
    n_new = 0
    records, quiet = hook_records(store, sae.config.hook), None if progress else True
    for shard_record in tqdm(records, desc=f"encode {name}", unit=" shards", disable=quiet):
        n_new += _encode_shard(store, sae, name, shard_record, made_by)
    write_card(store)
    return n_new


def made_by_sae(record: Record) -> dict[str, Any]:
    """Return what the commit records of an SAE's ``codes`` and ``stats`` say under ``made_by``."""
    versions = {"featurestore": featurestore.__version__, "torch": torch.__version__.split("+")[0]}
    return {**versions, "sae": record.shard, "sae_hash": sae_hash(record)}


def check_model(sae: SAE, name: str, model_hash: str, where: str) -> None:
    """Refuse an SAE of another model than that of the activations at ``where``.

    Raises:
        SAEError: it is.
    """
    mine = sae.config.model_hash
    if mine and model_hash and not same_model(mine, model_hash):
        raise SAEError(
            f"SAE {name!r} was trained on model {mine[:20]}…, the activations of {where} are of {model_hash[:20]}…."
        )


def _encode_shard(store: Store, sae: SAE, name: str, record: Record, made_by: Mapping[str, Any]) -> bool:
    tables = [f"codes/{name}", f"stats/{name}"]
    existing = [found for found in (store.record(table, record.shard) for table in tables) if found]
    for found in existing:
        if found.made_by.get("sae_hash") != made_by["sae_hash"]:
            raise SAEError(
                f"{found.table} of {store.root} was made by another SAE of that name, with hash "
                f"{str(found.made_by.get('sae_hash'))[:12]}…: give the new SAE another name."
            )
    if len(existing) == 2:
        return False
    store.check([record])
    shard = read_shard(store.root, record)
    _check_fits(store, sae, name, shard)
    metadata = codes_metadata(sae, made_by, shard.metadata["height"], shard.metadata["width"])
    rows = Rows(shard.sample_id, shard.step, shard.timestep, shard.branch)
    starts = range(0, shard.n_rows, CHUNK_ROWS)
    encoded = [encode_rows(sae, shard.rows(slice(i, i + CHUNK_ROWS))) for i in starts]
    codes, stats = codes_table(encoded, rows, metadata), stats_table(encoded, rows, record.sample_ids, metadata)
    for table, data in zip(tables, (codes, stats), strict=True):
        store.append(table, record.shard, data, record.sample_ids, made_by)
    return True


def _check_fits(store: Store, sae: SAE, name: str, shard: ActivationShard) -> None:
    io = shard.metadata.get("io", "output")
    if io != sae.config.io or shard.d_in != sae.config.d_in:
        raise SAEError(
            f"SAE {name!r} was trained on the {sae.config.io} of {sae.config.hook!r} with {sae.config.d_in} channels, "
            f"{store.root} holds its {io} with {shard.d_in}."
        )


def codes_metadata(sae: SAE, made_by: Mapping[str, Any], height: object, width: object) -> dict[str, str]:
    """Return the schema metadata of ``codes`` and ``stats`` shards; ``made_by`` is what :func:`made_by_sae` returns."""
    about = {"sae": made_by["sae"], "sae_hash": made_by["sae_hash"], "hook": sae.config.hook}
    about |= {"height": height, "width": width, "n_latents": sae.config.n_latents}
    return {key: str(value) for key, value in about.items()}
