"""Tables of activations whose tensors have every kind of number."""

import numpy as np
import pyarrow as pa

from featurestore.format.schemas import activations_schema


def tensor(values, kind):
    flat = pa.array(values.reshape(-1))
    nested = pa.FixedSizeListArray.from_arrays(flat, type=kind.value_type)
    return pa.FixedSizeListArray.from_arrays(nested, type=kind)


def activation_table(rows=7, positions=4, d_in=8, dtype="float16", chosen=False):
    """A table and its tensor, which has subnormal numbers, zeros of both signs and the largest
    number."""
    schema = activations_schema(positions, d_in, dtype, chosen)
    rng = np.random.default_rng(rows)
    values = rng.standard_normal((rows, positions, d_in)).astype(dtype)
    special = np.array([0, -0.0, np.finfo(dtype).max, np.finfo(dtype).smallest_subnormal], dtype)
    values.reshape(-1)[:: d_in + 1] = np.resize(special, len(values.reshape(-1)[:: d_in + 1]))
    columns = [
        pa.array(rng.integers(0, 2**62, rows)),
        pa.array(np.arange(rows, dtype=np.int32)),
        pa.array(np.linspace(999, 0, rows, dtype=np.float32)),
        pa.array(["cond", "uncond"] * rows)[:rows],
    ]
    if chosen:
        drawn = pa.array(np.sort(rng.integers(0, 4096, (rows, positions), np.int32)).reshape(-1))
        columns.append(pa.FixedSizeListArray.from_arrays(drawn, type=schema.field("position").type))
    columns.append(tensor(values, schema.field("activation").type))
    metadata = {"featurestore.hook": "unet.mid_block", "featurestore.io": "output", "ключ": "雪"}
    metadata |= {"featurestore.height": "1", "featurestore.width": str(positions)}
    return pa.Table.from_arrays(columns, schema=schema.with_metadata(metadata)), values
