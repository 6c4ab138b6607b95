"""Several processes that train one SAE together, started by torchrun or accelerate."""

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from featurestore.errors import UsageError


def local_device(device: str, environment: Mapping[str, str] = os.environ) -> str:
    """Return the device of this process: where a launcher started several on one machine, each has
    a GPU of its own."""
    local = environment.get("LOCAL_RANK", environment.get("SLURM_LOCALID", ""))
    if device not in ("auto", "cuda") or not local.isdigit():
        return device
    n_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return f"cuda:{int(local) % n_devices}" if n_devices else device


class Processes:
    """One process among those that share each batch; alone, every method does nothing."""

    def __init__(self, rank: int = 0, world_size: int = 1) -> None:
        self.rank, self.world_size = rank, world_size

    def part(self, x: Tensor) -> Tensor:
        """Return this process's positions of a batch, every ``world_size``-th."""
        return x[self.rank :: self.world_size]

    @torch.no_grad()
    def average_(self, tensors: Iterable[Tensor | None]) -> None:
        """Replace tensors by their means over the processes."""
        for tensor in tensors:
            if self.world_size > 1 and tensor is not None:
                dist.all_reduce(tensor)
                tensor /= self.world_size

    def mean(self, tensor: Tensor) -> Tensor:
        """Return the mean of a tensor over the processes."""
        self.average_([tensor])
        return tensor

    def least_(self, tensor: Tensor) -> None:
        """Replace a tensor by the smallest over the processes, element by element."""
        if self.world_size > 1:
            dist.all_reduce(tensor, dist.ReduceOp.MIN)

    def any(self, flag: bool) -> bool:
        """Say whether a flag is up in any process."""
        if self.world_size == 1:
            return flag
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        raised = torch.tensor(int(flag), device=device)
        dist.all_reduce(raised, dist.ReduceOp.MAX)
        return bool(raised)

    def wait(self) -> None:
        """Wait for all processes."""
        if self.world_size > 1:
            dist.barrier()


@contextlib.contextmanager
def join_processes(
    batch_size: int, environment: Mapping[str, str] = os.environ
) -> Iterator[Processes]:
    """Join the processes that torchrun or accelerate started with this one; alone without them.

    Raises:
        UsageError: the batch cannot be shared evenly.
    """
    world_size = int(environment.get("WORLD_SIZE", "1"))
    if world_size == 1 or "MASTER_ADDR" not in environment:
        yield Processes()
        return
    if batch_size % world_size:
        raise UsageError(
            f"--batch-size {batch_size} cannot be shared evenly by {world_size} processes."
        )
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        if torch.cuda.is_available():
            torch.cuda.set_device(torch.device(local_device("cuda", environment)).index or 0)
        yield Processes(dist.get_rank(), world_size)
    finally:
        dist.destroy_process_group()
