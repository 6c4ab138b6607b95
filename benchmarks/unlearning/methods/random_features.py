"""A control: as many features as a selection has, at random among those that fire at the same
steps."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.selection import Selection
from featurestore.selection_files import ROWS


def random_selection(selection: Selection, scores: pa.Table, seed: int = 0) -> Selection:
    """Return a selection with other features of the same steps, drawn without those selected.

    ``scores`` is the answer of ``importance.sql`` for the selection's SAE and family: every feature
    that fired.
    """
    generator = np.random.default_rng(seed)
    own = scores.filter(pc.equal(scores["concept"], selection.concept))
    rows = []
    for step in range(len(selection.timesteps)):
        chosen = set(
            selection.rows.filter(pc.equal(selection.rows["step"], step))["feature"].to_pylist()
        )
        others = [
            r
            for r in own.filter(pc.equal(own["step"], step)).to_pylist()
            if r["feature"] not in chosen
        ]
        drawn = generator.choice(len(others), min(len(chosen), len(others)), replace=False)
        found = [others[i] for i in drawn]
        rows += sorted(
            ({name: r[name] for name in ROWS.names} for r in found),
            key=lambda r: (-r["score"], r["feature"]),
        )
    return replace(selection, rows=pa.Table.from_pylist(rows, schema=ROWS))
