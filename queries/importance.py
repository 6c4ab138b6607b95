"""Scores of features for concepts: what ``importance.sql`` says, computed densely, step by step."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.card import write_card
from featurestore.format.records import Record
from featurestore.format.schemas import SCORES
from featurestore.store import Store
from queries.scope import Scope
from queries.summary import BestFeatures
from queries.sums import STEPS_AT_ONCE, SUMS_BYTES, THREADS, ahead, concept_sums, windows
from queries.totals import Totals, append_derived, append_totals, find_scope, read_totals, totals

DELTA = 1e-8
STEPS_A_CALL = 20
"""of a concept, that one call of a thread scores"""

T = TypeVar("T")


class Scores(NamedTuple):
    """One concept's scores at one step, ``[latent]``."""

    place: int
    """of the concept in its scope"""
    concept: str
    step: int
    timestep: float
    score: npt.NDArray[np.float64]
    mean_concept: npt.NDArray[np.float64]
    mean_other: npt.NDArray[np.float64]
    mean_all: npt.NDArray[np.float64]
    fired: npt.NDArray[np.bool_]
    """in any labelled sample; elsewhere all numbers are 0"""


def importance(
    store: Store, sae: str, family: str, branch: str = "cond", concepts: Sequence[str] | None = None
) -> pa.Table:
    """Return the scores of all features for some concepts of a family (None: all), as docs/format.md, section 1.5, has them.

    Ordered by concept, step, feature.

    Raises:
        QueryError: the family, the branch or the codes are not there, the family has one concept only, or a concept is not
            among them.
        SAEError: there is no such SAE.
        DamageError: a file is not what its record says.
    """
    scope, kept = find_scope(store, sae, family, branch)
    parts: dict[str, list[pa.Table]] = {}
    for name, part in tables(scope, score(scope, kept, concepts)):
        parts.setdefault(name, []).append(part)
    every = [part for name in sorted(parts, key=str.encode) for part in parts[name]]
    return pa.concat_tables([SCORES.empty_table(), *every]).combine_chunks()


def score(
    scope: Scope,
    kept: Record | None,
    concepts: Sequence[str] | None = None,
    progress: bool = False,
    totals_to: list[tuple[range, Totals]] | None = None,
) -> Iterator[Scores]:
    """Yield the scores of some concepts (None: of all), window by window of steps, in it concept by concept.

    Raises as :func:`score_each`, which also has ``totals_to``.
    """

    def kept_apart(found: Scores) -> Scores:
        arrays = {name: getattr(found, name).copy() for name in ("score", "mean_concept", "mean_other")}
        return found._replace(**arrays)

    return score_each(scope, kept, kept_apart, concepts, progress, totals_to)


def score_each(
    scope: Scope,
    kept: Record | None,
    use: Callable[[Scores], T],
    concepts: Sequence[str] | None = None,
    progress: bool = False,
    totals_to: list[tuple[range, Totals]] | None = None,
) -> Iterator[T]:
    """Yield what ``use`` makes of the scores of each concept and step, in the order of :func:`score`.

    ``use`` is called in threads, and must not keep the arrays ``score``, ``mean_concept`` and ``mean_other``.

    With kept totals only the shards that hold samples of these concepts are read, unless there are too many concepts for that.
    ``totals_to`` receives the totals of each window, which are then computed anew.

    Raises:
        QueryError: a concept is not among the scope's.
        DamageError: a file is not what its record says.
    """
    every = list(range(len(scope.concepts)))
    wanted = every if concepts is None else [scope.place(name) for name in concepts]
    alone = kept is not None and 8 * len(wanted) * len(scope.steps) * scope.n_latents <= SUMS_BYTES
    if alone and kept is not None and totals_to is None:
        window = range(len(scope.steps))
        sums = concept_sums(scope, wanted, window, progress)
        yield from _each(scope, wanted, sums, read_totals(scope, kept), window, use)
        return
    for window in windows(scope, len(every)):
        sums = concept_sums(scope, every, window, progress)
        found = totals(scope, sums)
        if totals_to is not None:
            totals_to.append((window, found))
        yield from _each(scope, wanted, sums if concepts is None else sums[wanted], found, window, use)


def _each(
    scope: Scope,
    wanted: Sequence[int],
    sums: npt.NDArray[np.float64],
    found: Totals,
    window: range,
    use: Callable[[Scores], T],
) -> Iterator[T]:
    """Yield what ``use`` makes of the scores of a window by concept and step, from the sums ``[concept, step, latent]``."""

    def call(place: int, mine: npt.NDArray[np.float64], part: slice) -> list[T]:
        totals_there = Totals(*(array[part] for array in found))
        return [use(scores) for scores in _scored(scope, place, mine[part], totals_there, window[part])]

    parts = [slice(first, first + STEPS_A_CALL) for first in range(0, len(window), STEPS_A_CALL)]
    calls = (partial(call, place, mine, part) for place, mine in zip(wanted, sums, strict=True) for part in parts)
    with ThreadPoolExecutor(THREADS) as pool:
        for results in ahead(pool, calls):
            yield from results


def _scored(scope: Scope, place: int, sums: npt.NDArray[np.float64], found: Totals, window: range) -> Iterator[Scores]:
    """Yield a concept's scores at a few steps; the arrays hold until the next is asked for.

    A few steps at a time in arrays that are used again: threads that allocate, or call for single steps, wait for each other.
    """
    n, steps = scope.counts[place], list(scope.steps.items())[window.start : window.stop]
    scratch = [np.empty((STEPS_AT_ONCE, scope.n_latents)) for _ in range(4)]
    pairs = [np.empty((STEPS_AT_ONCE, scope.n_latents), np.complex128) for _ in range(2)]
    for first in range(0, len(steps), STEPS_AT_ONCE):
        own, total, mean_all = (array[first : first + STEPS_AT_ONCE] for array in (sums, *found))
        mean, other, value, work = (array[: len(own)] for array in scratch)
        np.divide(own, n, out=mean)
        mean /= scope.n_positions
        np.subtract(total, own, out=other)
        np.maximum(other, 0, out=other)
        other /= sum(scope.counts) - n
        other /= scope.n_positions
        mean_sum, other_sum = _in_order(mean, other, *(array[: len(own)] for array in pairs))
        np.divide(mean, mean_sum + DELTA, out=value)
        value -= np.divide(other, other_sum + DELTA, out=work)
        rows = zip(steps[first : first + STEPS_AT_ONCE], value, mean, other, mean_all, total > 0, strict=True)
        yield from (Scores(place, scope.concepts[place], *step, *arrays) for step, *arrays in rows)


def _in_order(
    one: npt.NDArray[np.float64],
    two: npt.NDArray[np.float64],
    pairs: npt.NDArray[np.complex128],
    work: npt.NDArray[np.complex128],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the sums of each row of two arrays, ``[step, 1]`` each, added up one by one as SQL does: equal to the last bit.

    As real and imaginary parts both are added in the time of one.
    """
    pairs.real, pairs.imag = one, two
    total = np.add.accumulate(pairs, axis=1, out=work)[:, -1:]
    return total.real, total.imag


def tables(scope: Scope, scores: Iterator[Scores]) -> Iterator[tuple[str, pa.Table]]:
    """Yield each concept's scores as rows of the table ``scores``, a concept and a window of steps at a time."""
    waiting: list[Scores] = []
    for found in scores:
        if waiting and (waiting[0].concept != found.concept or found.step <= waiting[-1].step):
            yield waiting[0].concept, _table(scope, waiting)
            waiting = []
        waiting.append(found)
    if waiting:
        yield waiting[0].concept, _table(scope, waiting)


def _table(scope: Scope, scores: list[Scores]) -> pa.Table:
    """Return the rows of one concept, by step and feature."""
    fired = [np.flatnonzero(found.fired) for found in scores]
    sizes = [len(features) for features in fired]
    texts = [pa.repeat(text, sum(sizes)) for text in (scope.family, scores[0].concept, scope.branch)]
    numbers = [np.repeat([found.step for found in scores], sizes).astype(np.int32)]
    numbers += [np.repeat([found.timestep for found in scores], sizes).astype(np.float32)]
    numbers += [np.concatenate(fired).astype(np.int32)]
    columns = ((found.score, found.mean_concept, found.mean_other, found.mean_all) for found in scores)
    numbers += [
        np.concatenate([column[features] for column, features in zip(part, fired, strict=True)])
        for part in zip(*columns, strict=True)
    ]
    return pa.Table.from_arrays([*texts, *map(pa.array, numbers)], schema=SCORES)


def save_scores(
    store: Store, sae: str, family: str, branch: str = "cond", top: int = 5, progress: bool = False
) -> tuple[Record, pa.Table]:
    """Compute the scores of a family and keep them in the table ``scores/<sae>``, and the totals in ``totals/<sae>``.

    Returns the record, and the ``top`` features of each concept by mean score, as ``best_features.sql`` has them. What was
    computed from other samples is removed first; the same again changes nothing. Raises as :func:`importance`.
    """
    scope, kept = find_scope(store, sae, family, branch)
    best = BestFeatures(scope.concepts, scope.n_latents, top)
    parts: list[tuple[range, Totals]] = []

    def noted() -> Iterator[Scores]:
        for found in score(scope, kept, progress=progress, totals_to=parts):
            best.add(found.place, found.timestep, found.score, found.fired)
            yield found

    rows = (part for _, part in tables(scope, noted()))
    record = append_derived(scope, "scores", SCORES, rows)
    for _ in rows:  # they were kept already: nothing has been computed yet
        pass
    append_totals(scope, parts)
    write_card(store)
    return record, best.table()
