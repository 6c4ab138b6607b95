"""The rows (sample, step, branch) of a hook's activation shards: which there are, and their
tensors."""

import hashlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from featurestore.errors import SAEError, TableError, UsageError, nearest
from featurestore.format.activations import ActivationShard, open_shard
from featurestore.format.canonical import sha256_text
from featurestore.format.records import Record
from featurestore.store import Store
from featurestore.vocabulary import BRANCH_CHOICES


def held_out(sample_ids: Iterable[int], fraction: float) -> frozenset[int]:
    """Return about ``fraction`` of the samples: those whose hashed id is small.

    Whether a sample belongs depends on its id alone, so it does not change when the store grows,
    except that of two or more samples at least one is held out and at least one is not.
    """
    draws = {
        i: int(hashlib.sha256(f"holdout {i}".encode()).hexdigest()[:15], 16) / 16**15
        for i in sample_ids
    }
    order = sorted(draws, key=lambda i: (draws[i], i))
    if len(order) < 2 or fraction <= 0:
        return frozenset()
    n = sum(draw < fraction for draw in draws.values())
    return frozenset(order[: min(max(1, n), len(order) - 1)])


class _Part(NamedTuple):
    """The wanted rows of a shard, an array for each thing that is known of them."""

    shard: npt.NDArray[np.int32]
    row: npt.NDArray[np.int32]
    step: npt.NDArray[np.int32]
    timestep: npt.NDArray[np.float32]
    sample_id: npt.NDArray[np.int64]
    branch: npt.NDArray[np.str_]
    offset: npt.NDArray[np.int64]

    @classmethod
    def of(cls, number: int, shard: ActivationShard, wanted: npt.NDArray[np.bool_]) -> "_Part":
        """Return those of shard ``number`` that ``wanted`` marks."""
        rows = np.flatnonzero(wanted).astype(np.int32)
        offset = (
            shard.row_offsets if shard.mapped else np.arange(shard.n_rows) * shard.groups.row_bytes
        )
        return cls(
            shard=np.full(len(rows), number, np.int32),
            row=rows,
            step=shard.step[rows],
            timestep=shard.timestep[rows],
            sample_id=shard.sample_id[rows],
            branch=shard.branch[rows],
            offset=offset[rows],
        )


@dataclass(frozen=True, kw_only=True)
class ActivationRows:
    """Rows (sample, step, branch) of a hook's shards; index ``i`` is row ``row[i]`` of shard
    ``shard[i]``."""

    store: Store
    records: list[Record]
    shards: list[ActivationShard | None]
    """None where the tensors cannot be mapped: such a shard is read anew whenever it is needed, to
    bound memory"""
    shard: npt.NDArray[np.int32]
    row: npt.NDArray[np.int32]
    step: npt.NDArray[np.int32]
    timestep: npt.NDArray[np.float32]
    sample_id: npt.NDArray[np.int64]
    branch: npt.NDArray[np.str_]
    offset: npt.NDArray[np.int64]
    """where the row's tensor begins, in bytes: in its file, or in the decoded tensor of its
    shard"""
    n_positions: int
    d_in: int
    dtype: np.dtype
    metadata: dict[str, str]
    """``io``, ``height`` and ``width`` of the hook"""

    def __len__(self) -> int:
        return len(self.row)

    def fill(self, indices: npt.NDArray[np.integer]) -> npt.NDArray:
        """Return a copy of some rows' tensors, ``[n, n_positions, d_in]``, in the order of
        ``indices``."""
        result = np.empty((len(indices), self.n_positions, self.d_in), self.dtype)
        of_shard = self.shard[indices]
        for number in np.unique(of_shard):
            shard = self.shards[number] or open_shard(self.store.root, self.records[number])
            for place in np.flatnonzero(of_shard == number):
                result[place] = shard.row(int(self.row[indices[place]]))
        return result


def activation_rows(
    store: Store,
    hook: str,
    branch: str,
    *,
    steps: Collection[int] | None = None,
    samples: Collection[int] | None = None,
) -> ActivationRows:
    """Open the rows of a hook that belong to a branch (``cond``, ``uncond`` or ``both``), in the
    order of the shards.

    ``steps`` and ``samples`` (ids) leave out others; shards without any of the samples are not
    opened.

    Raises:
        SAEError: nothing was collected at ``hook`` or of what is wanted, or the shards do not
            belong together.
        UsageError: there is no such branch.
        DamageError: a file is not what its record says.
    """
    if branch not in BRANCH_CHOICES:
        raise UsageError(f"branch {branch!r} is not one of {', '.join(BRANCH_CHOICES)}.")
    records = hook_records(store, hook)
    if samples is not None:
        records = [record for record in records if not set(samples).isdisjoint(record.sample_ids)]
    shards: list[ActivationShard | None] = []
    parts: list[_Part] = []
    found: set[str] = set()
    first: ActivationShard | None = None
    for number, record in enumerate(records):
        shard = open_shard(store.root, record)
        first = first or shard
        _check_alike(store, hook, first, shard)
        found |= set(shard.branch.tolist())
        wanted = (shard.branch == branch) | (branch == "both")
        wanted &= np.isin(shard.step, list(steps)) if steps is not None else True
        wanted &= np.isin(shard.sample_id, list(samples)) if samples is not None else True
        parts.append(_Part.of(number, shard, wanted))
        shards.append(shard if shard.mapped else None)
    if first is None:
        raise SAEError(
            f"{store.root}: hook {hook!r} has no rows of the {len(samples or ())} samples that "
            f"are wanted."
        )
    found_rows = {
        name: np.concatenate([getattr(part, name) for part in parts]) for name in _Part._fields
    }
    n_rows = len(found_rows["row"])
    if (
        not n_rows
        and (steps is not None or samples is not None)
        and (branch == "both" or branch in found)
    ):
        raise SAEError(
            f"{store.root}: hook {hook!r} has no rows of the steps and samples that are wanted."
        )
    if not n_rows:
        raise SAEError(
            f"{store.root}: hook {hook!r} has no rows of branch "
            f"{branch!r}.{nearest(branch, sorted(found))}"
        )
    return ActivationRows(
        store=store,
        records=records,
        shards=shards,
        n_positions=first.n_positions,
        d_in=first.d_in,
        dtype=first.groups.dtype,
        metadata={key: first.metadata.get(key, "") for key in ("io", "height", "width")},
        **found_rows,
    )


def hook_records(store: Store, hook: str) -> list[Record]:
    """Return the records of a hook's activations.

    Raises:
        SAEError: the hook has no activations; near hooks are offered.
    """
    try:
        return store.require(f"activations/{hook}")
    except TableError as error:
        known = store.names("activations")
        hint = (
            nearest(hook, known) or " Nothing was collected yet: 'featurestore collect' does that."
        )
        raise SAEError(f"{store.root} has no activations of hook {hook!r}.{hint}") from error


def _check_alike(store: Store, hook: str, first: ActivationShard, shard: ActivationShard) -> None:
    for key in ("io", "height", "width"):
        here, there = shard.metadata.get(key), first.metadata.get(key)
        if here != there:
            raise SAEError(
                f"{store.root}: shards of hook {hook!r} differ: {key} is {there} in "
                f"{first.record.shard} and {here} in {shard.record.shard}: run 'featurestore "
                f"verify {store.root}'."
            )


def data_hash(records: list[Record]) -> str:
    """Return the 64 hexadecimal digits that name the contents of a list of shards."""
    return sha256_text("".join(f"{r.shard} {entry.sha256}\n" for r in records for entry in r.files))


def split_rows(
    rows: ActivationRows, holdout: float
) -> tuple[npt.NDArray[np.integer], npt.NDArray[np.integer]]:
    """Return the indices of the rows to train on, and of those whose samples are
    :func:`held_out`."""
    out = held_out(np.unique(rows.sample_id).tolist(), holdout)
    is_out = np.isin(rows.sample_id, np.fromiter(out, np.int64, len(out)))
    return np.flatnonzero(~is_out), np.flatnonzero(is_out)


def rows_to_measure(
    train: npt.NDArray[np.integer], test: npt.NDArray[np.integer]
) -> tuple[npt.NDArray[np.integer], bool]:
    """Return the indices of the held-out rows, or of all if none are, and whether they are held
    out."""
    return (test, True) if len(test) else (train, False)
