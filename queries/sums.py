"""Sums of features over samples, straight from the Parquet files of ``stats``: what importance is made of.

Dense and in NumPy, since the rows of a (step, sample) lie together and most features of a step fire somewhere: a hash table over
(concept, step, feature), as an SQL engine builds it, takes longer than reading the files. Memory depends on the numbers of
concepts, steps and latents, not on that of rows.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from tqdm import tqdm

from featurestore.errors import DamageError
from featurestore.format.footers import reading
from featurestore.format.records import Record
from queries.scope import Scope

SUMS_BYTES = 2**30
"""the most that the sums of one window of steps may take, if they are of more than one step"""
THREADS = 2
STEPS_AT_ONCE = 4
"""what one call of NumPy works on: long enough for two threads to run, few enough for the processor's cache"""
_COLUMNS = ["sample_id", "step", "feature", "sum"]
_SHOWN_ROWS = 50_000_000

T = TypeVar("T")


class Runs(NamedTuple):
    """The rows of a row group, cut where the concept or the step changes; only runs of wanted concepts and steps."""

    feature: npt.NDArray[np.int32]
    sum: npt.NDArray[np.float32]
    bounds: list[list[int]]
    """of each run its first row, and the first row behind it"""
    place: list[int]
    """of each run the place of its concept"""
    step: list[int]


def windows(scope: Scope, n_concepts: int) -> Iterator[range]:
    """Yield consecutive places in ``scope.steps`` whose sums for ``n_concepts`` concepts fit ``SUMS_BYTES``."""
    n_steps = len(scope.steps)
    n_windows = -(-n_steps // max(1, SUMS_BYTES // (8 * n_concepts * scope.n_latents)))
    size = -(-n_steps // n_windows)
    for first in range(0, n_steps, size):
        yield range(first, min(first + size, n_steps))


def concept_sums(scope: Scope, wanted: Sequence[int], window: range, progress: bool = False) -> npt.NDArray[np.float64]:
    """Return ``[concept, step, latent]``: the sums over samples and positions, for the concepts at the places ``wanted``.

    Rows are added in the order of the shards and of their rows, so equal stores give equal bits. Each file is verified.

    Raises:
        DamageError: a file is not what its record says.
    """
    numbers = list(scope.steps)
    steps = {numbers[i]: i - window.start for i in window}
    rows = {place: row for row, place in enumerate(wanted)}
    sums = np.zeros((len(wanted), len(window), scope.n_latents))
    records = scope.records(wanted)
    n_rows = sum(record.rows for record in records)
    quiet = None if progress and n_rows >= _SHOWN_ROWS else True
    with (
        ThreadPoolExecutor(THREADS) as pool,
        tqdm(
            total=n_rows, desc=f"sum steps {min(steps)} to {max(steps)}", unit=" rows", unit_scale=True, disable=quiet
        ) as bar,
    ):
        for n, runs in _runs(pool, scope, records, set(rows), set(steps)):
            for (start, end), place, step in zip(runs.bounds, runs.place, runs.step, strict=True):
                target = sums[rows[place], steps[step]]
                target += np.bincount(runs.feature[start:end], runs.sum[start:end], scope.n_latents)
            bar.update(n)
    return sums


def _runs(
    pool: ThreadPoolExecutor, scope: Scope, records: Sequence[Record], wanted: set[int], steps: set[int]
) -> Iterator[tuple[int, Runs]]:
    """Yield the number of rows and the runs of every row group; files are checked, read and cut ahead, in ``pool``."""

    def check(record: Record) -> Record:
        scope.store.check([record])
        return record

    def tasks() -> Iterator[Callable[[], tuple[int, Runs]]]:
        for record in ahead(pool, (partial(check, record) for record in records)):
            metadata = pq.read_metadata(scope.store.root / record.files[0].path)
            for group in range(metadata.num_row_groups):
                if _may_hold(metadata.row_group(group), scope.branch, steps):
                    yield partial(_load, scope, record, metadata, group, wanted, steps)

    try:
        yield from ahead(pool, tasks())
    finally:
        pool.shutdown(cancel_futures=True)


def ahead(pool: ThreadPoolExecutor, calls: Iterable[Callable[[], T]]) -> Iterator[T]:
    """Yield the results of calls in their order, while the next ones run."""
    waiting: deque[Future[T]] = deque()
    for call in calls:
        waiting.append(pool.submit(call))
        if len(waiting) > THREADS:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _may_hold(group: pq.RowGroupMetaData, branch: str, steps: set[int]) -> bool:
    """Say whether a row group's statistics allow rows of the branch and of one of the steps."""
    ranges = _ranges(group)
    low, high = ranges.get("step", (min(steps), max(steps)))
    first, last = ranges.get("branch", (branch, branch))
    return any(low <= step <= high for step in steps) and first <= branch <= last


def _ranges(group: pq.RowGroupMetaData) -> dict[str, tuple[Any, Any]]:
    """Return the least and the largest value of each column of a row group that says them."""
    columns = [group.column(i) for i in range(group.num_columns)]
    told = [column for column in columns if column.is_stats_set and column.statistics.has_min_max]
    return {column.path_in_schema: (column.statistics.min, column.statistics.max) for column in told}


def _load(
    scope: Scope, record: Record, metadata: pq.FileMetaData, group: int, wanted: set[int], steps: set[int]
) -> tuple[int, Runs]:
    path = scope.store.root / record.files[0].path
    one_branch = _ranges(metadata.row_group(group)).get("branch") == (scope.branch, scope.branch)
    columns = _COLUMNS if one_branch else [*_COLUMNS, "branch"]
    with reading(path), pq.ParquetFile(path, metadata=metadata, read_dictionary=["branch"]) as file:
        table = file.read_row_group(group, columns=columns, use_threads=False)
    sample_id, step, feature, total = (table[name].to_numpy() for name in _COLUMNS)
    if len(feature) and feature.view(np.uint32).max() >= scope.n_latents:  # a negative one is a large one there
        raise DamageError(f"{path} holds features outside 0…{scope.n_latents - 1}. Run 'featurestore verify --deep'.")
    changes = (sample_id[1:] != sample_id[:-1]) | (step[1:] != step[:-1])
    if not one_branch:
        branch = table["branch"].combine_chunks()
        code, names = branch.indices.to_numpy(), np.array(branch.dictionary.to_pylist())
        changes |= code[1:] != code[:-1]
    starts = np.concatenate([[0], np.flatnonzero(changes) + 1]) if len(feature) else np.empty(0, np.int64)
    place = _places(scope, sample_id[starts])
    mine = np.isin(place, list(wanted)) & np.isin(step[starts], list(steps))
    if not one_branch:
        mine &= names[code[starts]] == scope.branch
    # Neighbours of one concept and step are one run: every run costs a pass over all latents.
    group_of = np.where(mine, place * (max(steps) + 1) + step[starts], -1)
    firsts = np.flatnonzero(np.append(True, group_of[1:] != group_of[:-1])[: len(starts)])
    bounds = np.stack([starts[firsts], np.append(starts[firsts[1:]], len(feature))[: len(firsts)]], axis=1)
    kept = mine[firsts]
    places, numbers = place[firsts][kept].tolist(), step[starts[firsts]][kept].tolist()
    return table.num_rows, Runs(feature, total, bounds[kept].tolist(), places, numbers)


def _places(scope: Scope, sample_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the place of each sample's concept; -1 for those without."""
    found = np.minimum(np.searchsorted(scope.sample_ids, sample_ids), len(scope.sample_ids) - 1)
    return np.where(scope.sample_ids[found] == sample_ids, scope.places[found], -1)
