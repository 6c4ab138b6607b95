"""The activations of one work item, in memory until its shard is written."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from collectors.capture import Captured
from featurestore.errors import HookError, ModelError
from featurestore.schemas import activations_schema
from sae.architectures import Branch
from sae.hooks import DenoiserCall

_BRANCHES: dict[str, tuple[Branch, ...]] = {"cond": ("cond",), "uncond": ("uncond",), "both": ("cond", "uncond")}


class StepFinder:
    """The index of a timestep in the scheduler's present list; a repeated timestep (PNDM, Heun) means the next of its kind."""

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self._seen: set[Branch] = set()
        self._timestep = float("nan")
        self.step = -1

    def __len__(self) -> int:
        return len(self._scheduler.timesteps)

    def advance(self, call: DenoiserCall) -> bool:
        """Move to the step of a denoiser call; False if the call is the other pass of guidance in the same step.

        Raises:
            ModelError: the scheduler's list does not hold its timestep after the step before.
        """
        timestep = call.timestep
        if timestep == self._timestep and self._seen.isdisjoint(call.branches):
            self._seen.update(call.branches)
            return False
        listed = torch.as_tensor(self._scheduler.timesteps).float().cpu()
        later = (listed[self.step + 1 :] == timestep).nonzero().flatten()
        if not len(later):
            raise ModelError(
                f"the denoiser was called at timestep {timestep:g}, which the scheduler's list does not hold."
            )
        self.step += 1 + int(later[0])
        self._timestep, self._seen = timestep, set(call.branches)
        return True


class HookBuffer:
    """What one hook saw: ``[sample, step, branch, position, d_in]``, filled call by call."""

    def __init__(self, hook: str, io: str, branch: str, dtype: str, n_samples: int) -> None:
        self.hook = hook
        self.io = io
        self.branches = _BRANCHES[branch]
        self.dtype = torch.float16 if dtype == "float16" else torch.float32
        self.n_samples = n_samples
        self._values: npt.NDArray | None = None
        self._timesteps: npt.NDArray[np.float32] = np.empty(0, np.float32)
        self._size = (0, 0)
        self._n_rows = 0

    def put(self, captured: Captured, start: int, step: int, n_steps: int) -> None:
        """Keep one call's values; the batch begins at sample ``start`` of the work item.

        Raises:
            HookError: a value does not fit the stored type.
        """
        parts = dict(zip(captured.call.branches, captured.values.chunk(len(captured.call.branches)), strict=True))
        at = [index for index, branch in enumerate(self.branches) if branch in parts]
        if not at:
            return
        chosen = torch.stack([parts[self.branches[index]] for index in at], dim=1)
        stored = chosen.to("cpu", self.dtype)
        if not bool(torch.isfinite(stored).all()):
            self._refuse(chosen, captured)
        if self._values is None:
            shape = (self.n_samples, n_steps, len(self.branches), *stored.shape[2:])
            self._values = np.zeros(shape, np.float16 if self.dtype == torch.float16 else np.float32)
            self._timesteps = np.zeros(n_steps, np.float32)
            self._size = captured.layout.height, captured.layout.width
        self._values[start : start + len(stored), step, at] = stored.numpy()
        self._timesteps[step] = captured.call.timestep
        self._n_rows += len(stored) * len(at)

    def _refuse(self, values: torch.Tensor, captured: Captured) -> None:
        finite = values[torch.isfinite(values)].float()
        largest = float(finite.abs().max()) if finite.numel() else float("nan")
        where = f"hook {self.hook!r} at timestep {captured.call.timestep:g}"
        if finite.numel() < values.numel():
            raise HookError(f"{where}: the model itself produced NaN or infinity; nothing of this shard was written.")
        raise HookError(
            f"{where}: the value {largest:g} does not fit {self.dtype}; use --dtype float32. Nothing of this shard was written."
        )

    def to_table(self, sample_ids: list[int]) -> pa.Table:
        """Return the rows as ``activations/<hook>`` stores them; the tensor is not copied."""
        if self._values is None:
            raise HookError(
                f"hook {self.hook!r} was never reached: its module is not part of the denoiser's forward pass."
            )
        n, steps, branches, positions, d_in = self._values.shape
        if self._n_rows != n * steps * branches:
            raise HookError(
                f"hook {self.hook!r} saw {self._n_rows} of {n * steps * branches} (sample, step, branch): the pipeline left "
                f"some out; nothing of this shard was written."
            )
        schema = activations_schema(positions, d_in, self._values.dtype.name)
        outer = schema.field("activation").type
        flat = pa.array(self._values.reshape(-1))
        nested = pa.FixedSizeListArray.from_arrays(flat, type=outer.value_type)
        rows = steps * branches
        columns = [
            pa.array(np.repeat(np.array(sample_ids, np.int64), rows)),
            pa.array(np.tile(np.repeat(np.arange(steps, dtype=np.int32), branches), n)),
            pa.array(np.tile(np.repeat(self._timesteps, branches), n)),
            pa.array(list(self.branches) * (steps * n)),
            pa.FixedSizeListArray.from_arrays(nested, type=outer),
        ]
        height, width = self._size
        metadata = {"hook": self.hook, "io": self.io, "height": str(height), "width": str(width)}
        named = {f"featurestore.{key}": value for key, value in metadata.items()}
        return pa.Table.from_arrays(columns, schema=schema.with_metadata(named))
