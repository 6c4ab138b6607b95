"""Encode only where words look: an SAE's codes at the positions that words of the prompt attend to,
under a name of their own (docs/format.md, section 1.3)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from tqdm import tqdm

from featurestore.card import write_card
from featurestore.errors import SAEError, UsageError
from featurestore.format.canonical import canonical_json, shard_name
from featurestore.format.footers import read_table
from featurestore.format.records import Record
from featurestore.format.schemas import check_name
from featurestore.saes import load_config, sae_record
from featurestore.store import Store
from sae.adding import Candidate, add_sae, make_candidate
from sae.checkpoint import CONFIG, METRICS, WEIGHTS, store_sae
from sae.codes import CHUNK_ROWS, Encoded, Rows, codes_table, columns_of, stats_table
from sae.diffusion.attention import looked_at
from sae.encoding import made_by_sae, masked_from

_KINDS = ("codes", "stats")
Masks = dict[tuple[int, int], npt.NDArray[np.bool_]]
"""sample id, step → bool ``[positions]``: where any of the words looks"""


def encode_where(
    store: Store, name: str, words: Sequence[str], new_name: str, *, progress: bool = True
) -> int:
    """Keep an SAE's codes of the positions where any of ``words`` looks, as those of ``new_name``;
    return how many shards were new.

    ``new_name`` is the same SAE once more. Its ``codes`` are those of ``name`` without what lies
    elsewhere, in every branch; its ``stats`` are sums over what is left, of the activations as
    ``codes`` has them. So whatever is computed from statistics, scores above all, is computed with
    0 where no word looks. A word looks where its attention, as ``attention/<hook>`` has it, is at
    least ``WORD_SHARE`` of its largest value in the map. A sample whose prompt has none of the
    words is left out. Resumable, as :func:`sae.encoding.encode` is.

    Raises:
        UsageError: no word is given.
        SAEError: there is no such SAE, it has no codes, ``new_name`` is another, or the words have
            no maps, or none that fit the codes.
        TableError: ``new_name`` cannot be a name.
    """
    words = sorted(set(words))
    if not words:
        raise UsageError("no word to mask from: name at least one.")
    hook = load_config(store, name)["hook"]
    if masked_from(sae_record(store, name)):
        raise SAEError(f"SAE {name!r} has codes of a part of the positions: name the whole one.")
    codes = store.records(f"codes/{name}")
    if not codes:
        raise SAEError(
            f"{store.root} has no codes of SAE {name!r}: run 'featurestore encode --store "
            f"{store.root} --sae {name}' first."
        )
    maps = store.records(f"attention/{hook}")
    _check_words(store, hook, words, maps)
    made = _named(store, name, words, check_name(new_name, "--name"))
    made_by = made_by_sae(made.record) | {"mask_from": words}
    items = _items(store, new_name, codes, maps=maps, words=words)
    if not items and not store.records(f"codes/{new_name}"):
        raise SAEError(f"no prompt that SAE {name!r} encoded has the word {' or '.join(words)}.")
    add_sae(store, made)
    there = {kind: store.committed_samples(f"{kind}/{new_name}") for kind in _KINDS}
    for shard, ids in tqdm(
        items, desc=f"encode {new_name}", unit=" shards", disable=None if progress else True
    ):
        masks = _masks(store, maps, words, ids)
        tables = _masked(
            _rows(store, codes, ids),
            masks,
            ids,
            made_by=made_by,
            n_latents=made.sae.config.n_latents,
        )
        for kind, table in zip(_KINDS, tables, strict=True):
            if there[kind].isdisjoint(ids):
                store.append(f"{kind}/{new_name}", shard, table, ids, made_by=made_by)
    write_card(store)
    return len(items)


def _check_words(store: Store, hook: str, words: Sequence[str], maps: Sequence[Record]) -> None:
    advice = " ".join(f"--attention {word}" for word in words)
    if not maps:
        raise SAEError(
            f"{store.root} does not know where words look at {hook!r}: collect it with {advice}."
        )
    kept = maps[0].made_by.get("words", [])
    missing = [word for word in words if word not in kept]
    if missing:
        raise SAEError(
            f"attention/{hook} of {store.root} has the words {', '.join(kept)}, not "
            f"{', '.join(missing)}: collect another store with {advice}."
        )


def _named(store: Store, name: str, words: list[str], new_name: str) -> Candidate:
    """Return the SAE under its new name, in the store or not yet."""
    there = store.record("saes", new_name)
    made_by = {"masked": name, "mask_from": words}
    if there is not None and any(there.made_by.get(key) != made_by[key] for key in made_by):
        raise SAEError(f"{store.root} has another SAE {new_name!r}: give this one another --name.")
    sae = store_sae(store, name, torch.device("cpu"))
    directory = store.root / "saes" / name
    files = {
        file: (directory / file).read_bytes()
        for file in (CONFIG, METRICS, WEIGHTS)
        if (directory / file).is_file()
    }
    return make_candidate(
        store, new_name, sae, files=files, made_by=made_by, otherwise="give this one another --name"
    )


def _items(
    store: Store, new: str, codes: Sequence[Record], *, maps: Sequence[Record], words: Sequence[str]
) -> list[tuple[str, list[int]]]:
    """Return the shards that are to be made, each with its samples: those of each shard of the
    whole codes whose prompts have a word."""
    done, summed = (store.committed_samples(f"{kind}/{new}") for kind in _KINDS)
    items = []
    for record in store.records(f"codes/{new}"):  # of which an interruption left no statistics
        if ids := [i for i in record.sample_ids if i not in summed]:
            items.append((shard_name(int(record.shard[:8]), ids), ids))
    having: set[int] = set()
    for record in maps:
        table = _table(store, record, ["sample_id", "word"])
        table = table.filter(pc.is_in(table["word"], pa.array(words)))
        having |= set(table["sample_id"].to_pylist())
    for record in codes:
        ids = [i for i in record.sample_ids if i in having and i not in done]
        if ids:
            items.append((shard_name(int(record.shard[:8]), ids), ids))
    return items


def _table(store: Store, record: Record, columns: list[str] | None = None) -> pa.Table:
    store.check([record])
    (path,) = store.paths(record)
    return read_table(path, columns)


def _rows(store: Store, records: Sequence[Record], ids: Sequence[int]) -> pa.Table:
    """Return a table's rows of some samples, in the order of the shards that hold them."""
    wanted = pa.array(ids, pa.int64())
    parts = []
    for record in records:
        if not set(ids).isdisjoint(record.sample_ids):
            table = _table(store, record)
            parts.append(table.filter(pc.is_in(table["sample_id"], wanted)))
    metadata = parts[0].schema.metadata
    return pa.concat_tables([part.replace_schema_metadata(metadata) for part in parts])


def _masks(store: Store, records: Sequence[Record], words: Sequence[str], ids: list[int]) -> Masks:
    table = _rows(store, records, ids)
    table = table.filter(pc.is_in(table["word"], pa.array(words)))
    column = table["attention"].combine_chunks()
    maps = column.flatten().to_numpy().reshape(len(table), -1).astype(np.float32)
    found: Masks = {}
    keys = zip(table["sample_id"].to_pylist(), table["step"].to_pylist(), strict=True)
    for key, inside in zip(keys, looked_at(torch.from_numpy(maps)).numpy(), strict=True):
        found[key] = found[key] | inside if key in found else inside
    return found


def _masked(
    codes: pa.Table, masks: Masks, ids: list[int], *, made_by: dict[str, Any], n_latents: int
) -> tuple[pa.Table, pa.Table]:
    """Return the rows of ``codes`` and ``stats`` that are left of codes."""
    encoded = [
        _encoded(codes.slice(i, CHUNK_ROWS), masks, n_latents)
        for i in range(0, len(codes), CHUNK_ROWS)
    ]
    told = {
        k.decode().removeprefix("featurestore."): v.decode()
        for k, v in codes.schema.metadata.items()
    }
    told |= {"sae": made_by["sae"], "mask_from": canonical_json(made_by["mask_from"])}
    told.pop("replaces", None)
    sample_id, step, timestep = (codes[n].to_numpy() for n in ("sample_id", "step", "timestep"))
    rows = Rows(sample_id, step, timestep, np.array(codes["branch"].to_pylist()))
    return codes_table(encoded, rows, told), stats_table(encoded, rows, ids, told)


def _encoded(codes: pa.Table, masks: Masks, n_latents: int) -> Encoded:
    features, values = (codes[name].combine_chunks() for name in ("features", "values"))
    n_positions = np.diff(features.offsets.to_numpy())
    lengths = features.flatten().value_lengths().to_numpy()
    keys = list(zip(codes["sample_id"].to_pylist(), codes["step"].to_pylist(), strict=True))
    for key, n in zip(keys, n_positions.tolist(), strict=True):
        if key not in masks or len(masks[key]) != n:
            what = f"of {len(masks[key])} positions" if key in masks else "of no position"
            raise SAEError(
                f"sample {key[0]} has codes of {n} positions at step {key[1]} and a map {what}: "
                f"collect both at the same --timesteps, and with --positions all."
            )
    inside = np.stack([masks[key] for key in keys])
    kept = np.repeat(inside.reshape(-1), lengths)
    feature, value = (part.flatten().flatten().to_numpy()[kept] for part in (features, values))
    per_position = np.where(inside, lengths.reshape(inside.shape), 0)
    return columns_of(feature.astype(np.int64), value.astype(np.float32), per_position, n_latents)
