"""The Fréchet distance between two sets of pictures' features (Heusel et al. 2017, arXiv
1706.08500, eq. 6)."""

import numpy as np
import numpy.typing as npt

from featurestore.errors import UsageError


def frechet_distance(one: npt.NDArray[np.floating], other: npt.NDArray[np.floating]) -> float:
    """Return ``‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2 (Σ₁ Σ₂)^½)`` of features ``[n₁, d]`` and ``[n₂, d]``.

    It is named after the network that made the features: only distances of one network and of like
    numbers of pictures compare.

    Raises:
        UsageError: a set has fewer than two pictures.
    """
    if min(len(one), len(other)) < 2:
        raise UsageError(
            f"a Fréchet distance needs at least 2 pictures on each side, found {len(one)} and "
            f"{len(other)}."
        )
    means = one.mean(0, dtype=np.float64), other.mean(0, dtype=np.float64)
    covariances = (
        np.cov(one, rowvar=False, dtype=np.float64),
        np.cov(other, rowvar=False, dtype=np.float64),
    )
    root = _root(np.atleast_2d(covariances[0]))
    # (Σ₁ Σ₂)^½ has the trace of (Σ₁^½ Σ₂ Σ₁^½)^½, which is symmetric.
    product = np.linalg.eigvalsh(root @ np.atleast_2d(covariances[1]) @ root)
    trace = np.sqrt(np.clip(product, 0, None)).sum()
    difference = means[0] - means[1]
    total = (
        difference @ difference
        + np.trace(np.atleast_2d(covariances[0] + covariances[1]))
        - 2 * trace
    )
    return float(max(total, 0.0))


def _root(matrix: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
