"""Confidence intervals of shares near 0 and 1, of pictures that are no independent draws
(docs/evaluation.md)."""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from featurestore.quantiles import student_t

LEVEL = 0.95
_SHRINKAGE = 4.0
"""pictures of the pooled share that a stratum's own share is mixed with, so that 10 of 10 is no
certainty"""
_FEW = 2.5
"""below this many failures (or successes), if they are the rarer, their limit is the Poisson
distribution's"""


class Interval(NamedTuple):
    """Both ends of a confidence interval; NaN where there is nothing to estimate."""

    low: float
    high: float


class Share(NamedTuple):
    """A share as a weighted mean over pictures."""

    hits: npt.NDArray[np.float64]
    """``[pictures]``, 0 or 1"""
    weights: npt.NDArray[np.float64]
    """``[pictures]``, of sum 1"""
    strata: npt.NDArray[np.int64]
    """``[pictures]``: what is not drawn at random, such as the concept; from 0 on"""
    seeds: npt.NDArray[np.int64]
    """``[pictures]``: pictures of one seed may succeed or fail together"""

    @property
    def value(self) -> float:
        """The share, exactly 0 or 1 where all pictures agree; NaN without pictures."""
        hits, misses = (math.fsum(self.weights[self.hits == hit]) for hit in (1, 0))
        return hits / (hits + misses) if len(self.hits) else float("nan")


def mean_of(shares: Sequence[Share]) -> Share:
    """Return the mean of several shares as one, over those that have pictures; seeds of equal
    number are the same seeds."""
    known = [share for share in shares if len(share.hits)]
    if not known:
        return Share(np.zeros(0), np.zeros(0), np.zeros(0, np.int64), np.zeros(0, np.int64))
    offsets = np.cumsum([0, *(int(share.strata.max()) + 1 for share in known)])
    return Share(
        np.concatenate([share.hits for share in known]),
        np.concatenate([share.weights for share in known]) / len(known),
        np.concatenate(
            [share.strata + offset for share, offset in zip(known, offsets[:-1], strict=True)]
        ),
        np.concatenate([share.seeds for share in known]),
    )


def interval(share: Share, level: float = LEVEL) -> Interval:
    """Return the interval of a share: Wilson's, of as many independent pictures as these are worth.

    The variance is the larger of two: the strata's binomial one, and the one between seeds
    (linearised, Särndal et al. 1992, section 5.5), which is known as badly as there are few seeds:
    as far as it exceeds the other, Student's t takes the normal's place.
    ``share · (1 − share) / variance`` independent pictures would have the same (the effective
    sample size of Korn & Graubard 1998).
    """
    if not len(share.hits):
        return Interval(float("nan"), float("nan"))
    p, worth = share.value, float(1 / (share.weights @ share.weights))
    within, (between, n_seeds) = _within_strata(share), _between_seeds(share)
    if within > 0:
        worth = p * (1 - p) / within
    if between > within > 0:
        ratio = student_t(level, n_seeds - 1) / _normal(level)
        worth = p * (1 - p) / between / ratio ** (2 * (1 - within / between))
    return wilson(p, worth, level)


def wilson(p: float, n: float, level: float = LEVEL) -> Interval:
    """Return Wilson's interval of a share ``p`` of ``n`` pictures, ``n`` any positive number.

    Near 0 and 1 it misses rare events (down to 84 % where 95 % are promised): with one or two of
    them their limit is the Poisson distribution's (Brown, Cai & DasGupta 2001, section 4.1.1).
    """
    z = _normal(level)
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = middle - half, middle + half
    successes, failures = n * p, n * (1 - p)
    if 0 < successes < min(_FEW, n / 2):
        low = min(low, _poisson_limit(successes, level) / n)
    if 0 < failures < min(_FEW, n / 2):
        high = max(high, 1 - _poisson_limit(failures, level) / n)
    return Interval(
        max(0.0, low) if successes > 0 else 0.0, min(1.0, high) if failures > 0 else 1.0
    )


def _normal(level: float) -> float:
    return NormalDist().inv_cdf((1 + level) / 2)


def _within_strata(share: Share) -> float:
    """Return the variance if pictures of a stratum were independent draws."""
    sizes, weights, shares = _strata(share)
    shares = (sizes * shares + _SHRINKAGE * share.value) / (sizes + _SHRINKAGE)
    return float((weights**2 * shares * (1 - shares) / sizes).sum())


def _between_seeds(share: Share) -> tuple[float, int]:
    """Return the variance as seeds show it, 0 where all pictures have one seed, and how many seeds
    there are."""
    _, _, shares = _strata(share)
    residuals = share.weights * (share.hits - shares[share.strata])
    _, seeds = np.unique(share.seeds, return_inverse=True)
    totals = np.bincount(seeds, residuals)
    n = len(totals)
    return (float(n / (n - 1) * np.square(totals - totals.mean()).sum()) if n > 1 else 0.0), n


def _strata(
    share: Share,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return each stratum's pictures (fewer where they weigh unequally), its weight and its share,
    ``[strata]``."""
    weights = np.bincount(share.strata, share.weights).astype(np.float64)
    sizes = weights**2 / np.bincount(share.strata, share.weights**2)
    return sizes, weights, np.bincount(share.strata, share.weights * share.hits) / weights


def _poisson_limit(events: float, level: float) -> float:
    """Return the λ of which as many events or more are as improbable as ``1 − level``: a quantile
    of Γ(events)."""
    low, high = 0.0, events
    for _ in range(60):
        middle = (low + high) / 2
        below = float(
            torch.special.gammainc(torch.tensor(events).double(), torch.tensor(middle).double())
        )
        low, high = (middle, high) if below < 1 - level else (low, middle)
    return low
