"""What a hook's first call tells of its tables: their rows, columns and schema."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from collectors.keep import Kept, kept_steps, random_positions
from collectors.rows.capture import Captured
from featurestore.errors import UsageError
from featurestore.format.parquet.layout import TENSOR
from featurestore.format.schemas import activations_schema
from sae.codes import Rows
from sae.diffusion.modules import is_encoder_hook

Masks = Sequence[npt.NDArray[np.bool_]]
"""a mask ``[samples, positions]`` for each branch"""


class Shape(NamedTuple):
    """What the first call tells."""

    steps: dict[int, int]
    """step → its place among the kept"""
    timesteps: list[float]
    """of the kept steps"""
    size: tuple[int, int]
    """height and width that the stored positions are said to have"""
    map_size: tuple[int, int]
    frames: int
    grid: tuple[int, int, int] | None
    """of a token stream whose tokens are the denoiser's patches"""
    n_positions: int
    """of the map"""
    n_kept: int
    d_in: int

    def widened(self, n_positions: int) -> "Shape":
        """Return the same of texts of which one has so many tokens; the longest counts."""
        n = max(n_positions, self.n_positions)
        return self._replace(n_positions=n, map_size=(1, n))


def shape_of(captured: Captured, kept: Kept) -> Shape:
    """Return what a call tells.

    Raises:
        UsageError: more positions are to be kept than the map has.
    """
    layout, schedule, grid = captured.layout, captured.call.schedule, captured.call.grid
    _, n_positions, d_in = captured.values.shape
    count = {"all": n_positions, "mean": 1, "random": kept.positions.count}[kept.positions.kind]
    if count > n_positions:
        raise UsageError(
            f"--positions random:{count}: the map of {captured.hook!r} has {n_positions} positions."
        )
    steps = kept_steps(kept.settings.timesteps, len(schedule))
    return Shape(
        steps={step: i for i, step in enumerate(steps)},
        timesteps=[schedule[step] for step in steps],
        size=(layout.height, layout.width) if kept.positions.kind == "all" else (1, count),
        map_size=(layout.height, layout.width),
        frames=layout.frames,
        grid=grid if grid and not layout.is_map and math.prod(grid) == n_positions else None,
        n_positions=n_positions,
        n_kept=count,
        d_in=d_in,
    )


def rows_of(shape: Shape, kept: Kept, sample_ids: Sequence[int]) -> Rows:
    """Return what tells the rows of samples apart: by sample, step and branch."""
    n, steps, branches = len(sample_ids), list(shape.steps), kept.branches
    per_sample = len(steps) * len(branches)
    return Rows(
        np.repeat(np.array(sample_ids, np.int64), per_sample),
        np.tile(np.repeat(np.array(steps, np.int32), len(branches)), n),
        np.tile(np.repeat(np.array(shape.timesteps, np.float32), len(branches)), n),
        np.array(branches * (len(steps) * n)),
    )


def described(
    shape: Shape,
    kept: Kept,
    hook: str,
    sample_ids: Sequence[int],
    *,
    among: Masks | None = None,
) -> tuple[pa.Table, pa.Schema]:
    """Return the columns of the activations but the tensor, and the schema of all.

    ``among``: for each branch, which positions random ones were chosen from; None: from all.
    """
    random = kept.positions.kind == "random"
    schema = activations_schema(shape.n_kept, shape.d_in, kept.settings.dtype, random)
    columns = [
        pa.array(column, field.type)
        for column, field in zip(rows_of(shape, kept, sample_ids), schema, strict=False)
    ]
    if random:
        chosen = _positions(shape, kept, sample_ids, among)
        flat, kind = pa.array(chosen.reshape(-1)), schema.field("position").type
        columns.append(pa.FixedSizeListArray.from_arrays(flat, type=kind))
    (height, width), (map_height, map_width) = shape.size, shape.map_size
    metadata = {"hook": hook, "io": kept.settings.io, "height": height, "width": width}
    if kept.positions.kind != "all":
        metadata |= {
            "positions": kept.positions.kind,
            "map_height": map_height,
            "map_width": map_width,
        }
    if shape.grid is not None:
        metadata["grid"] = "x".join(map(str, shape.grid))
    if shape.frames > 1:
        metadata["frames"] = shape.frames
    if is_encoder_hook(hook):
        metadata["padding"] = kept.settings.padding
    schema = schema.with_metadata(
        {f"featurestore.{key}": str(value) for key, value in metadata.items()}
    )
    others = pa.Table.from_arrays(columns, schema=schema.remove(schema.get_field_index(TENSOR)))
    return others, schema


def _positions(
    shape: Shape, kept: Kept, sample_ids: Sequence[int], among: Masks | None
) -> npt.NDArray[np.int32]:
    """Return the positions that were chosen at random, ``[samples, steps · branches, n_kept]``."""
    n, count = shape.n_positions, shape.n_kept
    if among is not None:  # Of a text: it has one step, and the texts of the branches differ.
        each = [random_positions(sample_ids, 0, n, count, among=one) for one in among]
        return np.stack(each, axis=1)
    each = [random_positions(sample_ids, step, n, count) for step in shape.steps]
    return np.repeat(np.stack(each, axis=1), len(kept.branches), axis=1)
