"""Random sparse codes, and labels that no program should stumble over."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from hypothesis import strategies as st

from featurestore.format.schemas import SCORES
from queries import ask
from tests.builders.stores import make_store

HOSTILE = ["neon", "it's", 'a"b', "sel;ect --", "雪 ❄", "", "a\nb", "%s {} $1", None]
LABELS = st.lists(st.sampled_from(HOSTILE), min_size=2, max_size=7).filter(
    lambda x: len(set(x) - {None}) > 1
)
"""of samples: at least two concepts"""


def importance(store, sae, family, branch="cond", concepts=None):
    """The rows of importance.sql, of some concepts (None: all)."""
    rows = ask(store, "importance", {"sae": sae, "family": family, "branch": branch}).cast(SCORES)
    return rows if concepts is None else rows.filter(pc.is_in(rows["concept"], pa.array(concepts)))


def dense(table, concept, steps, n_latents, column="score"):
    values = np.zeros((steps, n_latents))
    for row in table.to_pylist():
        if row["concept"] == concept:
            values[row["step"], row["feature"]] = row[column]
    return values


def random_codes(seed, samples=6, steps=3, positions=4, n_latents=12, levels=3):
    """Sparse codes on a few values, so that scores tie; the last latents never fire."""
    rng = np.random.default_rng(seed)
    z = rng.integers(0, levels, (samples, steps, positions, n_latents)) * (
        rng.random((samples, steps, positions, n_latents)) < 0.3
    )
    z[..., -3:] = 0
    return z.astype(np.float32) / 2


def make_shards(root, z, labels, cuts, told=True):
    """A store whose samples lie in several shards, of which every other one says its steps unless
    all do (``told``)."""
    for number, part in enumerate(np.array_split(np.arange(len(z)), cuts)):
        if len(part):
            store = make_store(root, z, labels, encoded=part.tolist(), told=told or number % 2 == 0)
    return store


def noisy(z, seed):
    return (z * np.random.default_rng(seed).random(z.shape)).astype(np.float32)
