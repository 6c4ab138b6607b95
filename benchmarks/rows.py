"""Rows of activations, as a collection writes them."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.format.activations import tensor_array
from featurestore.format.schemas import activations_schema


def activation_rows(ids: Sequence[int], values: npt.NDArray, hook: str) -> pa.Table:
    """Return the conditional rows of some samples' square maps; ``values`` are float16
    ``[samples, steps, positions, d_in]``."""
    n_samples, n_steps, n_positions, d_in = values.shape
    schema = activations_schema(n_positions, d_in)
    step = np.tile(np.arange(n_steps, dtype=np.int32), n_samples)
    columns = [
        np.repeat(ids, n_steps),
        step,
        step.astype(np.float32),
        pa.array(["cond"] * len(step)),
    ]
    side = math.isqrt(n_positions)
    metadata = {"hook": hook, "io": "output", "height": side, "width": side}
    named = {f"featurestore.{key}": str(value) for key, value in metadata.items()}
    arrays = [*map(pa.array, columns), tensor_array(values, schema)]
    return pa.Table.from_arrays(arrays, schema=schema.with_metadata(named))
