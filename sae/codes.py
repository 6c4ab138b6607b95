"""Codes and statistics of activation rows, as the columns of the store (docs/format.md, sections
1.3 and 1.4)."""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor

from featurestore.errors import SAEError
from featurestore.format import schemas
from featurestore.format.canonical import canonical_json
from sae.model import SAE


class Rows(NamedTuple):
    """What tells rows apart, an array each."""

    sample_id: npt.NDArray[np.int64]
    step: npt.NDArray[np.int32]
    timestep: npt.NDArray[np.float32]
    branch: npt.NDArray[np.str_]


class Encoded(NamedTuple):
    """The codes and statistics of some rows, as Arrow columns and arrays."""

    features: pa.Array
    """a row: list<list<int32>>, per position, ascending"""
    values: pa.Array
    """a row: list<list<float16>>, in the same order; a positive activation below 2⁻²⁵ is stored as
    0"""
    row: npt.NDArray[np.int64]
    """of each statistic: the row it belongs to; ascending, then ``feature``"""
    feature: npt.NDArray[np.int32]
    sum: npt.NDArray[np.float32]
    max: npt.NDArray[np.float32]
    n_positions: npt.NDArray[np.int32]


class RowCodes(NamedTuple):
    """The codes of one row, on the SAE's device."""

    values: Tensor
    """float32 ``[n_positions, width]``; rows may differ in width"""
    indices: Tensor
    """int32 ``[n_positions, width]``, ascending; ``n_latents`` where nothing is active"""


CHUNK_ROWS = 64
"""Rows that are turned into columns at once; it decides how a shard's bytes are cut into pages."""


@torch.no_grad()
def encode_row(sae: SAE, row: npt.NDArray | Tensor) -> RowCodes:
    """Return the codes of one row ``[n_positions, d_in]``; of a TopK SAE without waiting for a GPU.

    Each row goes through the encoder alone and, on a CPU, on one thread, since the rounding of a
    matrix product may depend on its shape and on how many threads share it: so a row's result does
    not depend on the rows beside it nor on the threads there are, to the last bit on one machine.
    """
    with one_thread():
        codes = sae.encode(_on(sae.W_enc.device, row))
        values = codes.values.float()
        # Empty places go last; the others in ascending order of latents.
        indices, order = codes.indices.masked_fill(values <= 0, sae.config.n_latents).sort(dim=-1)
        return RowCodes(values.gather(-1, order), indices.int())


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Have torch compute on the calling thread alone in the block."""
    before = torch.get_num_threads()
    if before > 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if before > 1:
            torch.set_num_threads(before)


def to_columns(rows: Sequence[RowCodes], n_latents: int) -> Encoded:
    """Return the columns of at least one row's codes.

    Raises:
        SAEError: an activation of a latent is not finite, or does not fit float16.
    """
    width = max(row.values.shape[-1] for row in rows)
    values, indices = (
        torch.stack([F.pad(part, (0, width - part.shape[-1]), value=empty) for part in parts])
        .cpu()
        .numpy()
        for parts, empty in zip(zip(*rows, strict=True), (0, n_latents), strict=True)
    )
    return _columns(values, indices.astype(np.int64), n_latents)


def encode_rows(
    sae: SAE, activations: npt.NDArray | Tensor, map_rows: Callable[..., Iterable[RowCodes]] = map
) -> Encoded:
    """Return the codes and statistics of activations ``[rows, n_positions, d_in]``, at least one
    row.

    ``map_rows`` is ``map``, or that of a pool of threads.

    Raises:
        SAEError: an activation of a latent is not finite, or does not fit float16.
    """
    return to_columns(
        list(map_rows(functools.partial(encode_row, sae), activations)), sae.config.n_latents
    )


def _on(device: torch.device, row: npt.NDArray | Tensor) -> Tensor:
    tensor = row if isinstance(row, Tensor) else torch.from_numpy(np.array(row))
    return tensor.to(device, torch.float32)


def _columns(
    values: npt.NDArray[np.float32], indices: npt.NDArray[np.int64], n_latents: int
) -> Encoded:
    active = indices < n_latents
    return columns_of(indices[active], values[active], active.sum(axis=-1), n_latents)


def columns_of(
    feature: npt.NDArray[np.int64],
    value: npt.NDArray[np.float32],
    per_position: npt.NDArray[np.integer],
    n_latents: int,
) -> Encoded:
    """Return the columns of rows whose active latents and their values follow each other, position
    by position; ``per_position`` ``[rows, n_positions]`` says how many each position has.

    Raises:
        SAEError: an activation of a latent is not finite, or does not fit float16.
    """
    n_rows = len(per_position)
    _check_values(feature, value)
    row = np.repeat(np.arange(n_rows), per_position.sum(axis=1))
    features = _nested(pa.array(feature, pa.int32()), per_position)
    halves = _nested(pa.array(value.astype(np.float16)), per_position)
    return Encoded(
        features, halves, *_statistics(row, feature, value, n_rows=n_rows, n_latents=n_latents)
    )


def _nested(flat: pa.Array, per_position: npt.NDArray[np.integer]) -> pa.Array:
    """Return the list<list<…>> of ``per_position`` ``[rows, n_positions]`` lengths over flat
    values."""
    n_rows, n_positions = per_position.shape
    ends = np.concatenate([[0], np.cumsum(per_position)]).astype(np.int32)
    outer = pa.list_(
        pa.field("item", pa.list_(pa.field("item", flat.type, nullable=False)), nullable=False)
    )
    inner = pa.ListArray.from_arrays(pa.array(ends), flat, type=outer.value_type)
    starts = pa.array(np.arange(n_rows + 1, dtype=np.int32) * n_positions)
    return pa.ListArray.from_arrays(starts, inner, type=outer)


def _check_values(feature: npt.NDArray[np.int64], value: npt.NDArray[np.float32]) -> None:
    largest = np.finfo(np.float16).max
    wrong = np.flatnonzero(~(value <= largest))
    if len(wrong):
        raise SAEError(
            f"latent {feature[wrong[0]]} has an activation of {value[wrong[0]]}, codes hold at "
            f"most {largest:g} (float16): the SAE does not fit these activations."
        )


def _statistics(
    row: npt.NDArray[np.int64],
    feature: npt.NDArray[np.int64],
    value: npt.NDArray[np.float32],
    *,
    n_rows: int,
    n_latents: int,
) -> tuple[npt.NDArray, ...]:
    """Return row, feature, sum, max and n_positions of each (row, feature) that fired.

    Sums are added up in float64; the largest is rounded to float16 as in ``codes``.
    """
    key = row * n_latents + feature
    count = np.bincount(key, minlength=n_rows * n_latents)
    total = np.bincount(key, weights=value, minlength=n_rows * n_latents)
    largest = np.zeros(n_rows * n_latents, np.float32)
    np.maximum.at(largest, key, value)
    fired = np.flatnonzero(count)
    return (
        fired // n_latents,
        (fired % n_latents).astype(np.int32),
        total[fired].astype(np.float32),
        largest[fired].astype(np.float16).astype(np.float32),
        count[fired].astype(np.int32),
    )


def codes_table(encoded: list[Encoded], rows: Rows, metadata: Mapping[str, str]) -> pa.Table:
    """Return the rows of a ``codes`` shard, in the order of ``rows``."""
    features = pa.chunked_array(
        [part.features for part in encoded], schemas.CODES.field("features").type
    )
    values = pa.chunked_array([part.values for part in encoded], schemas.CODES.field("values").type)
    return pa.Table.from_arrays(
        [*_arrays(rows), features, values], schema=_with(schemas.CODES, metadata)
    )


def stats_table(
    encoded: list[Encoded], rows: Rows, sample_ids: Sequence[int], metadata: Mapping[str, str]
) -> pa.Table:
    """Return the rows of a ``stats`` shard, by step, branch, sample and feature.

    ``cond`` comes first, samples in the order of ``sample_ids``. The schema's metadata say which
    steps were encoded, if they are the same for all samples: whoever counts the samples need not
    read ``codes``.
    """
    firsts = np.cumsum([0, *(len(part.features) for part in encoded)])
    row = np.concatenate([part.row + first for part, first in zip(encoded, firsts, strict=False)])
    place = {sample: number for number, sample in enumerate(sample_ids)}
    sample = np.array([place[i] for i in rows.sample_id.tolist()])
    rank = np.empty(len(rows.step), np.int64)
    rank[np.lexsort((sample, rows.branch != "cond", rows.step))] = np.arange(len(rank))
    order = np.argsort(rank[row], kind="stable")
    place_of = pa.array(row[order])
    head = [array.take(place_of) for array in _arrays(rows)]
    columns = [
        np.concatenate([getattr(part, name) for part in encoded])[order]
        for name in ("feature", "sum", "max", "n_positions")
    ]
    arrays = [*head, *map(pa.array, columns)]
    return pa.Table.from_arrays(
        arrays, schema=_with(schemas.STATS, {**metadata, **_steps(rows, len(sample_ids))})
    )


def _arrays(rows: Rows) -> list[pa.Array]:
    return [
        pa.array(column, field.type) for column, field in zip(rows, schemas.CODES, strict=False)
    ]


def _steps(rows: Rows, n_samples: int) -> dict[str, str]:
    """Return the steps of each branch with their timesteps as JSON, if every sample has all of
    them."""
    kinds = sorted(
        set(zip(rows.branch.tolist(), rows.step.tolist(), rows.timestep.tolist(), strict=True))
    )
    if len(kinds) * n_samples != len(rows.step):
        return {}
    steps: dict[str, list[list[float]]] = {}
    for branch, step, timestep in kinds:
        steps.setdefault(branch, []).append([step, timestep])
    return {"steps": canonical_json(steps)}


def _with(schema: pa.Schema, metadata: Mapping[str, str]) -> pa.Schema:
    return schema.with_metadata({f"featurestore.{key}": value for key, value in metadata.items()})
