"""A difference of means in activation space, subtracted or projected out: what an SAE has to be
better than."""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from featurestore.format.activations import read_shard
from featurestore.store import Store
from sae.diffusion.hooks import as_positions, branch_parts, put, take, watch
from sae.diffusion.modules import find_module


class Directions(NamedTuple):
    """A concept's direction at every recorded timestep of one hook's output."""

    hook: str
    timesteps: tuple[float, ...]
    difference: Tensor
    """``[timesteps, d_in]``: mean of the concept's positions − mean of all others'"""
    others: Tensor
    """``[timesteps, d_in]``: mean of the others' positions"""


def mean_directions(
    store: Store, hook: str, family: str, concept: str, branch: str = "cond"
) -> Directions:
    """Return the difference of means of a store's activations, timestep by timestep."""
    samples = store.arrow("samples", ["sample_id", family]).to_pylist()
    inside = {
        row["sample_id"]: row[family] == concept for row in samples if row[family] is not None
    }
    sums: dict[tuple[float, bool], list[Any]] = {}
    for record in store.records(f"activations/{hook}"):
        shard = read_shard(store.root, record)
        for i in range(shard.n_rows):
            sample = int(shard.sample_id[i])
            if shard.branch[i] == branch and sample in inside:
                total = sums.setdefault((float(shard.timestep[i]), inside[sample]), [0.0, 0])
                total[0] = total[0] + shard.row(i).astype(np.float64).mean(0)
                total[1] += 1
    timesteps = tuple(sorted({t for t, _ in sums}, reverse=True))
    of, rest = (
        torch.tensor(np.array([sums[t, side][0] / sums[t, side][1] for t in timesteps]))
        for side in (True, False)
    )
    return Directions(hook, timesteps, (of - rest).float(), rest.float())


@contextlib.contextmanager
def steered_away(
    pipe: Any, directions: Directions, strength: float, project: bool
) -> Iterator[None]:
    """Take the direction ``d`` of the nearest timestep out of the conditional half at every
    position.

    ``x − strength · d``, or with ``project`` ``x − strength · max(0, (x − m) · d̂) d̂``, m the
    others' mean.
    """
    module = find_module(pipe, directions.hook)
    with watch(pipe) as state:

        def after(owner: Any, args: Any, output: Any) -> Any:
            if "cond" not in state.call.branches:
                return None
            leaving = take(output, directions.hook, owner)
            at = int(
                torch.tensor([abs(t - state.call.timestep) for t in directions.timesteps]).argmin()
            )
            difference, others = (
                m[at].to(leaving.device) for m in (directions.difference, directions.others)
            )
            edited = leaving.clone(memory_format=torch.contiguous_format)
            view, _ = as_positions(
                edited[branch_parts(state.call, edited, directions.hook)["cond"]]
            )
            view -= _change(view.float(), difference, others, strength, project).to(view.dtype)
            return put(output, edited, directions.hook, owner)

        handle = module.register_forward_hook(after)
        try:
            yield
        finally:
            handle.remove()


def _change(
    x: Tensor, difference: Tensor, others: Tensor, strength: float, project: bool
) -> Tensor:
    if not project:
        return (strength * difference).expand_as(x)
    unit = difference / difference.norm()
    return strength * ((x - others) @ unit).relu().unsqueeze(-1) * unit
