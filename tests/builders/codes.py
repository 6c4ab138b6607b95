"""Random sparse codes, and labels that no program should stumble over."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.format.schemas import SCORES
from queries import ask

HOSTILE = ["neon", "it's", 'a"b', "sel;ect --", "雪 ❄", "", "a\nb", "%s {} $1", None]


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
