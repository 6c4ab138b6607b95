"""Which latents of a step are chosen: the rules of ``selection.sql`` on one array of scores."""

import math

import numpy as np
import numpy.typing as npt


def largest(score: npt.NDArray[np.float64], n: int) -> npt.NDArray[np.int64]:
    """Return the latents with the ``n`` largest positive scores, largest first, of equal ones the smaller latent first."""
    n = min(n, len(score))
    candidates = np.flatnonzero((score >= np.partition(score, len(score) - n)[len(score) - n]) & (score > 0))
    return _ordered(score, candidates)[:n]


def above(score: npt.NDArray[np.float64], percentile: float) -> npt.NDArray[np.int64]:
    """Return the latents whose score is strictly above the percentile of all, largest first.

    The percentile is interpolated linearly, from the nearer end as ``torch.lerp`` does: rounding decides between scores that
    are all but tied (SAeUron, arXiv 2501.18052, section 3).
    """
    rank = percentile / 100 * (len(score) - 1)
    below = math.floor(rank)
    ordered, weight = np.partition(score, below), rank - below
    low = ordered[below]
    high = ordered[below + 1 :].min() if weight else low
    threshold = low + weight * (high - low) if weight < 0.5 else high - (high - low) * (1 - weight)
    return _ordered(score, np.flatnonzero(score > threshold))


def _ordered(score: npt.NDArray[np.float64], latents: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    order: npt.NDArray[np.int64] = latents[np.lexsort((latents, -score[latents]))]
    return order
