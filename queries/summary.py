"""Scores, condensed for reading."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from queries.ranks import largest

COLUMNS = pa.schema(
    {
        "concept": pa.string(),
        "feature": pa.int32(),
        "mean_score": pa.float64(),
        "best_score": pa.float64(),
        "best_timestep": pa.float32(),
        "n_steps_in_top": pa.int64(),
    }
)


class BestFeatures:
    """The answer of ``best_features.sql``, gathered while scores pass by."""

    def __init__(self, concepts: Sequence[str], n_latents: int, top: int) -> None:
        self._top, self._concepts = top, concepts
        shape = (len(concepts), n_latents)
        self._sum, self._best = np.zeros(shape), np.full(shape, -np.inf)
        self._timestep, self._n_in_top = np.zeros(shape, np.float32), np.zeros(shape, np.int64)
        self._n_steps = 0

    def add(self, place: int, timestep: float, score: npt.NDArray[np.float64], fired: npt.NDArray[np.bool_]) -> None:
        """Take in a concept's scores at a step; of one concept the steps come in their order."""
        self._n_steps += int(place == 0 and bool(fired.any()))
        self._sum[place] += score
        better = fired & (score > self._best[place])
        self._best[place][better], self._timestep[place][better] = score[better], timestep
        self._n_in_top[place, largest(score, self._top)] += 1

    def table(self) -> pa.Table:
        """Return the ``top`` features of each concept by mean score over the steps at which any feature fired."""
        parts = []
        for place, concept in enumerate(self._concepts):
            known = np.flatnonzero(np.isfinite(self._best[place]))
            order = known[np.lexsort((known, -self._sum[place, known]))][: self._top]
            columns = [np.full(len(order), concept), order.astype(np.int32), self._sum[place, order] / self._n_steps]
            columns += [array[place, order] for array in (self._best, self._timestep, self._n_in_top)]
            parts.append(pa.table(dict(zip(COLUMNS.names, columns, strict=True)), COLUMNS))
        return pa.concat_tables(parts)
