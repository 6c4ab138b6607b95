"""What one hook saw of one work item, until its shards are written: activations, codes, or both."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from collectors.capture import Captured
from collectors.keep import Kept, kept_steps, random_positions
from collectors.memory import HostMemory
from featurestore.errors import HookError, UsageError
from featurestore.format.activations import tensor_array
from featurestore.format.schemas import activations_schema
from sae.codes import CHUNK_ROWS, Encoded, RowCodes, Rows, codes_table, encode_row, stats_table, to_columns
from sae.diffusion.hooks import branch_parts
from sae.encoding import codes_metadata, made_by_sae
from sae.model import SAE


class _Shape(NamedTuple):
    """What the first call tells."""

    steps: dict[int, int]
    """step → its place among the kept"""
    size: tuple[int, int]
    """height and width that the stored positions are said to have"""
    map_size: tuple[int, int]
    n_positions: int
    """of the map"""
    n_kept: int
    d_in: int


class HookBuffer:
    """Filled call by call in the denoiser's thread, turned into tables in another; nothing in ``put`` waits for a GPU."""

    def __init__(self, hook: str, kept: Kept, sample_ids: Sequence[int], memory: HostMemory) -> None:
        self.hook = hook
        self.kept = kept
        self.sample_ids = list(sample_ids)
        self._memory = memory
        self._shape: _Shape | None = None
        self._values: Tensor | None = None
        self._timesteps: npt.NDArray[np.float32] = np.empty(0, np.float32)
        self._n_rows = 0
        self._ranges: list[tuple[float, Tensor]] = []
        self._codes: dict[str, dict[tuple[int, int, int], RowCodes]] = {name: {} for name in kept.saes}

    def put(self, captured: Captured, start: int) -> None:
        """Keep what is wanted of one call; the batch begins at sample ``start`` of the work item."""
        step = captured.call.step
        shape = self._shape or self._begin(captured, len(captured.call.schedule))
        place = shape.steps.get(step)
        if place is None:
            return
        rows = branch_parts(captured.call, captured.values, self.hook)
        parts = {branch: captured.values[part] for branch, part in rows.items()}
        at = [index for index, branch in enumerate(self.kept.branches) if branch in parts]
        if not at:  # the other pass of guidance in two passes
            return
        whole = torch.stack([parts[self.kept.branches[index]] for index in at], dim=1)
        chosen = self._choose(whole, start, step)
        stored = chosen.to(self.kept.torch_dtype)
        self._n_rows += len(stored) * len(at)
        largest = chosen.abs().amax().float()
        self._ranges.append((captured.call.timestep, torch.stack([largest, stored.isfinite().all().float()])))
        self._timesteps[place] = captured.call.timestep
        if self._values is not None:
            first, last = at[0], at[-1] + 1
            self._memory.copy(stored, self._values[start : start + len(stored), place, first:last])
        for name, candidate in self.kept.saes.items():
            for sample, maps in enumerate(stored, start):
                for branch, row in zip(at, maps, strict=True):
                    self._codes[name][sample, place, branch] = encode_row(candidate.sae, row)

    def _begin(self, captured: Captured, n_steps: int) -> _Shape:
        kept, layout = self.kept, captured.layout
        _, n_positions, d_in = captured.values.shape
        count = {"all": n_positions, "mean": 1, "random": kept.positions.count}[kept.positions.kind]
        if count > n_positions:
            raise UsageError(f"--positions random:{count}: the map of {self.hook!r} has {n_positions} positions.")
        steps = kept_steps(kept.settings.timesteps, n_steps)
        size = (layout.height, layout.width) if kept.positions.kind == "all" else (1, count)
        places = {step: i for i, step in enumerate(steps)}
        self._shape = _Shape(places, size, (layout.height, layout.width), n_positions, count, d_in)
        self._timesteps = np.zeros(len(steps), np.float32)
        if kept.activations:
            shape = (len(self.sample_ids), len(steps), len(kept.branches), count, d_in)
            self._values = self._memory.tensor(self.hook, shape, kept.torch_dtype)
        return self._shape

    def _choose(self, whole: Tensor, start: int, step: int) -> Tensor:
        """Return the kept positions ``[batch, branches, n_kept, d_in]``."""
        kind, count = self.kept.positions.kind, self.kept.positions.count
        if kind == "mean":
            return whole.float().mean(dim=2, keepdim=True)
        if kind == "random":
            ids = self.sample_ids[start : start + len(whole)]
            index = torch.from_numpy(random_positions(ids, step, whole.shape[2], count)).long()
            return whole.take_along_dim(index.to(whole.device)[:, None, :, None], dim=2)
        return whole

    def check(self) -> None:
        """Wait for the last copy, and refuse values that cannot be stored.

        Raises:
            HookError: the module was not reached in every call, or a value does not fit the stored type.
        """
        if self._shape is None:
            raise HookError(
                f"hook {self.hook!r} was never reached: its module is not part of the denoiser's forward pass."
            )
        wanted = len(self.sample_ids) * len(self._shape.steps) * len(self.kept.branches)
        if self._n_rows != wanted:
            raise HookError(
                f"hook {self.hook!r} saw {self._n_rows} of {wanted} (sample, step, branch): the pipeline left some out; "
                f"nothing of this shard was written."
            )
        self._memory.wait()
        ranges = torch.stack([values for _, values in self._ranges]).cpu() if self._ranges else torch.empty(0, 2)
        for (timestep, _), (largest, fits) in zip(self._ranges, ranges.tolist(), strict=True):
            where = f"hook {self.hook!r} at timestep {timestep:g}"
            if not np.isfinite(largest):
                raise HookError(
                    f"{where}: the model itself produced NaN or infinity; nothing of this shard was written."
                )
            if not fits:
                raise HookError(
                    f"{where}: the value {largest:g} does not fit {self.kept.settings.dtype}; use --dtype float32. "
                    f"Nothing of this shard was written."
                )

    def tables(self) -> dict[str, pa.Table]:
        """Return the rows of each table that this hook fills, once :meth:`check` has passed; the tensor is not copied."""
        assert self._shape is not None, "checked"
        tables = {f"activations/{self.hook}": self._activations(self._shape)} if self._values is not None else {}
        for name, candidate in self.kept.saes.items():
            metadata = codes_metadata(candidate.sae, made_by_sae(candidate.record), *self._shape.size)
            encoded, rows = self._columns(name, candidate.sae), self._rows(self._shape)
            tables[f"codes/{name}"] = codes_table(encoded, rows, metadata)
            tables[f"stats/{name}"] = stats_table(encoded, rows, self.sample_ids, metadata)
        return tables

    def _columns(self, name: str, sae: SAE) -> list[Encoded]:
        codes = [self._codes[name][key] for key in sorted(self._codes[name])]
        starts = range(0, len(codes), CHUNK_ROWS)
        return [to_columns(codes[i : i + CHUNK_ROWS], sae.config.n_latents) for i in starts]

    def _rows(self, shape: _Shape) -> Rows:
        n, steps, branches = len(self.sample_ids), list(shape.steps), self.kept.branches
        per_sample = len(steps) * len(branches)
        return Rows(
            np.repeat(np.array(self.sample_ids, np.int64), per_sample),
            np.tile(np.repeat(np.array(steps, np.int32), len(branches)), n),
            np.tile(np.repeat(self._timesteps, len(branches)), n),
            np.array(branches * (len(steps) * n)),
        )

    def _activations(self, shape: _Shape) -> pa.Table:
        assert self._values is not None
        values, rows = self._values.numpy(), self._rows(shape)
        random = self.kept.positions.kind == "random"
        schema = activations_schema(shape.n_kept, shape.d_in, values.dtype.name, random)
        columns = [pa.array(column, field.type) for column, field in zip(rows, schema, strict=False)]
        if random:
            columns.append(self._position_column(shape, schema.field("position").type))
        columns.append(tensor_array(values, schema))
        (height, width), (map_height, map_width) = shape.size, shape.map_size
        metadata = {"hook": self.hook, "io": self.kept.settings.io, "height": height, "width": width}
        if self.kept.positions.kind != "all":
            metadata |= {"positions": self.kept.positions.kind, "map_height": map_height, "map_width": map_width}
        named = {f"featurestore.{key}": str(value) for key, value in metadata.items()}
        return pa.Table.from_arrays(columns, schema=schema.with_metadata(named))

    def _position_column(self, shape: _Shape, kind: pa.DataType) -> pa.Array:
        a_step = [random_positions(self.sample_ids, step, shape.n_positions, shape.n_kept) for step in shape.steps]
        chosen = np.repeat(np.stack(a_step, axis=1), len(self.kept.branches), axis=1)
        return pa.FixedSizeListArray.from_arrays(pa.array(chosen.reshape(-1)), type=kind)
