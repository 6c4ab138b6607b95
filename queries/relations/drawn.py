"""Relations that are drawn at random: samples with replacement, latents in a random order."""

import math
import warnings
from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from featurestore.quantiles import student_t
from queries.questions import Value, whole

LEVEL = 0.95
ENOUGH_SAMPLES = 20
"""of a concept, below which intervals of scores are warned of: from there on simulated ones cover
94 to 95 of 100 if activations vary by no more than their mean, with fewer 88 to 99, and more of
them too few"""


def resamples(
    labelled: list[tuple[int, str]], replicates: int, values: Mapping[str, Value]
) -> pa.Table:
    """Return ``replicate, sample_id, weight, widening``: samples drawn with replacement within
    their concept.

    Zero weights are left out. ``widening`` is by how much replicates' standard deviation of the
    concept's samples has to be multiplied for half an interval: Student's t of n − 1 degrees of
    freedom, and √(n / (n − 1)), as n samples drawn from n vary less than n new ones (Hesterberg
    2015, section 3.2); null for a single sample, of which nothing is known. ``labelled`` are the
    samples and their concepts, ordered. The same for the same samples and ``random_seed``.

    Warns where the concept asked about has fewer than :data:`ENOUGH_SAMPLES`.
    """
    random = np.random.default_rng(whole(values, "random_seed"))
    level, asked = float(values.get("level", LEVEL) or 0), values.get("concept")
    parts = []
    for concept in sorted({concept for _, concept in labelled}):
        ids = np.array([sample_id for sample_id, other in labelled if other == concept], np.int64)
        n = len(ids)
        if concept == asked and n < ENOUGH_SAMPLES:
            warnings.warn(
                f"{n} samples of {concept!r} are few for an interval: with fewer than "
                f"{ENOUGH_SAMPLES} the true score is "
                f"outside of a 95 % interval in up to one of six cases. Collect more seeds or "
                f"prompts of it.",
                stacklevel=2,
            )
        weights = random.multinomial(n, np.full(n, 1 / n), size=replicates)
        replicate, sample = np.nonzero(weights)
        widening = student_t(level, n - 1) * math.sqrt(n / (n - 1)) if n > 1 else None
        columns = {
            "replicate": replicate,
            "sample_id": ids[sample],
            "weight": weights[replicate, sample],
        }
        parts.append(
            pa.table({**columns, "widening": pa.array([widening] * len(sample), pa.float64())})
        )
    return pa.concat_tables(parts)


def shuffled(n_latents: int, seed: int) -> pa.Table:
    """Return ``feature, place``: the latents in a random order that ``seed`` decides."""
    order = np.random.default_rng(seed).permutation(n_latents)
    return pa.table({"feature": order.astype(np.int32), "place": np.arange(n_latents)})
