"""Turn a store's activation shards into shards of codes and of statistics."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import torch
from tqdm import tqdm

import featurestore
from featurestore.card import write_card
from featurestore.errors import SAEError, UsageError
from featurestore.format.activations import ActivationShard, open_shard
from featurestore.format.records import Record
from featurestore.saes import sae_hash
from featurestore.store import Store
from sae.checkpoint import store_sae
from sae.codes import CHUNK_ROWS, Rows, codes_table, encode_rows, stats_table
from sae.devices import pick_device
from sae.diffusion.loading.weights import in_common, same_model
from sae.feed.rows import hook_records
from sae.model import SAE

_KINDS = ("codes", "stats")
_PRE_BYTES = 4 * 2**30


def encode(
    store: Store, name: str, device: str = "auto", progress: bool = True, *, rank: int = 0,
    world_size: int = 1,
) -> int:  # fmt: skip
    """Encode all activation shards of an SAE's hook, all branches; return how many shards were new.

    One of several processes, on machines that share the store, takes every ``world_size``-th shard
    from ``rank`` on; together they write what one alone would.

    Each shard of ``activations/<hook>`` becomes the shards of the same name of ``codes/<name>`` and
    ``stats/<name>``; those that exist are skipped, so an interrupted call is resumed by another.
    The dataset card is brought up to date.

    Raises:
        UsageError: there is no such rank.
        SAEError: the SAE is unknown, or belongs to other activations or another model, or a code
            does not fit.
    """
    if not 0 <= rank < world_size:
        raise UsageError(f"rank {rank} of {world_size}: expected 0 to {world_size - 1}.")
    sae = store_sae(store, name, pick_device(device))
    record = store.record("saes", name)
    assert record is not None, "load_sae has found it"
    check_whole(record)
    made_by = made_by_sae(record)
    check_model(sae, name, str((store.run or {}).get("model_hash", "")), str(store.root))
    whole = _encoded_shards(store, name, made_by)
    mine = hook_records(store, sae.config.hook)[rank::world_size]
    records = [record for record in mine if record.shard not in whole]
    if records:
        n_positions = open_shard(store.root, records[0]).n_positions
        # Two shards at a time: while one is written, rows of the other are encoded.
        with _threads(2) as shards, _row_threads(sae, n_positions) as rows:
            done = shards.map(
                lambda record: _encode_shard(
                    store, sae, name, record, made_by=made_by, threads=rows
                ),
                records,
            )
            bar = tqdm(
                done,
                desc=f"encode {name}",
                unit=" shards",
                total=len(records),
                disable=None if progress else True,
            )
            for _ in bar:
                pass
    write_card(store)
    return len(records)


@contextlib.contextmanager
def _threads(n: int, start: Callable[[], object] | None = None) -> Iterator[Executor]:
    """Yield a pool of threads that each call ``start`` first; what they have not begun when the
    block fails is dropped."""
    pool = ThreadPoolExecutor(n, initializer=start)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _row_threads(sae: SAE, n_positions: int) -> Iterator[Executor]:
    """Yield the threads that rows are encoded on: as many as torch's, but no more than
    ``_PRE_BYTES`` of pre-activations.

    Each computes by itself, so none waits for another, as threads do that share a product.
    """
    n_threads = torch.get_num_threads()
    fit = _PRE_BYTES // (n_positions * sae.config.n_latents * sae.W_enc.element_size())
    n = max(1, min(n_threads, fit)) if sae.W_enc.device.type == "cpu" else 1
    try:
        with _threads(n, lambda: torch.set_num_threads(1)) as pool:
            yield pool
    finally:
        torch.set_num_threads(n_threads)  # or threads that are started later would have one each


def made_by_sae(record: Record) -> dict[str, Any]:
    """Return what the commit records of an SAE's ``codes`` and ``stats`` say under ``made_by``."""
    versions = {"featurestore": featurestore.__version__, "torch": torch.__version__.split("+")[0]}
    return {**versions, "sae": record.shard, "sae_hash": sae_hash(record)}


def masked_from(record: Record) -> list[str]:
    """Return the words where an SAE's codes are taken (:mod:`sae.masking`); empty: everywhere."""
    return list(record.made_by.get("mask_from", []))


def check_whole(record: Record) -> None:
    """Refuse an SAE whose codes are those of another one at some of the positions.

    Raises:
        SAEError: it is one.
    """
    if words := masked_from(record):
        whole = str(record.made_by.get("masked"))
        ways = " ".join(f"--mask-from {word}" for word in words)
        raise SAEError(
            f"SAE {record.shard!r} is {whole!r} where words look: encode with {whole!r}, then "
            f"'featurestore encode --sae {whole} {ways} --name {record.shard}'."
        )


def check_model(sae: SAE, name: str, model_hash: str, where: str) -> None:
    """Refuse an SAE of another model than that of the activations at ``where``.

    Raises:
        SAEError: it is.
    """
    mine = sae.config.model_hash
    if mine and model_hash and not same_model(mine, model_hash):
        raise SAEError(
            f"SAE {name!r} was trained on model {mine[:20]}…, the activations of {where} are of "
            f"{model_hash[:20]}…{in_common(mine, model_hash)}."
        )


def _encoded_shards(store: Store, name: str, made_by: Mapping[str, Any]) -> set[str]:
    """Return the shards that have both codes and statistics.

    Raises:
        SAEError: they were made by another SAE of that name.
    """
    for kind in _KINDS:
        for found in store.records(f"{kind}/{name}"):
            if found.made_by.get("sae_hash") != made_by["sae_hash"]:
                raise SAEError(
                    f"{found.table} of {store.root} was made by another SAE of that name, with "
                    f"hash {str(found.made_by.get('sae_hash'))[:12]}…: give the new SAE another "
                    f"name."
                )
    codes, stats = (store.shard_names(f"{kind}/{name}") for kind in _KINDS)
    return codes & stats


def _encode_shard(
    store: Store,
    sae: SAE,
    name: str,
    record: Record,
    *,
    made_by: Mapping[str, Any],
    threads: Executor,
) -> None:
    shard = open_shard(store.root, record)
    _check_fits(store, sae, name, shard)
    metadata = codes_metadata(sae, made_by, shard.metadata["height"], shard.metadata["width"])
    rows = Rows(shard.sample_id, shard.step, shard.timestep, shard.branch)
    starts = range(0, shard.n_rows, CHUNK_ROWS)
    encoded = [encode_rows(sae, shard.rows(slice(i, i + CHUNK_ROWS)), threads.map) for i in starts]
    codes, stats = (
        codes_table(encoded, rows, metadata),
        stats_table(encoded, rows, record.sample_ids, metadata),
    )
    for kind, data in zip(_KINDS, (codes, stats), strict=True):
        store.append(f"{kind}/{name}", record.shard, data, record.sample_ids, made_by=made_by)


def _check_fits(store: Store, sae: SAE, name: str, shard: ActivationShard) -> None:
    io = shard.metadata.get("io", "output")
    if io != sae.config.io or shard.d_in != sae.config.d_in:
        raise SAEError(
            f"SAE {name!r} was trained on the {sae.config.io} of {sae.config.hook!r} with "
            f"{sae.config.d_in} channels, {store.root} holds its {io} with {shard.d_in}."
        )


def codes_metadata(
    sae: SAE, made_by: Mapping[str, Any], height: object, width: object
) -> dict[str, str]:
    """Return the schema metadata of ``codes`` and ``stats`` shards; ``made_by`` is what
    :func:`made_by_sae` returns."""
    about = {"sae": made_by["sae"], "sae_hash": made_by["sae_hash"], "hook": sae.config.hook}
    about |= {"height": height, "width": width, "n_latents": sae.config.n_latents}
    return {key: str(value) for key, value in about.items()}
