"""Many processes, one store: who does which work item, and how another takes it up."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from collectors.planning.plan import WorkItem
from featurestore.errors import UsageError
from featurestore.format.durable import Claim, remove_empty

_RANKS = (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS"))


@dataclass(frozen=True)
class Share:
    """A process's place among those that fill one store."""

    rank: int = 0
    world_size: int = 1

    def order(self, items: Sequence[WorkItem]) -> list[WorkItem]:
        """Return all items: this process's own first, then those of the next ranks, in case they
        died."""
        return [
            item
            for turn in range(self.world_size)
            for item in items[(self.rank + turn) % self.world_size :: self.world_size]
        ]


def find_share(
    rank: int | None, world_size: int | None, environment: Mapping[str, str] = os.environ
) -> Share:
    """Return the share that the options name, or else torchrun, accelerate or Slurm; a single
    process otherwise.

    Raises:
        UsageError: only one of the two is given, or they do not fit.
    """
    if (rank is None) != (world_size is None):
        raise UsageError("--rank and --world-size go together.")
    if rank is None or world_size is None:
        for names in _RANKS:
            if all(environment.get(name, "").isdigit() for name in names):
                rank, world_size = (int(environment[name]) for name in names)
                break
        else:
            return Share()
    if not 0 <= rank < world_size:
        raise UsageError(
            f"--rank {rank} --world-size {world_size}: ranks go from 0 to {world_size - 1}."
        )
    return Share(rank, world_size)


def claim_item(root: Path, shard: str) -> Claim | None:
    """Claim a work item; None if a living process holds it.

    A claim only saves double work: what gets committed does not depend on it.

    Raises:
        DiskError: the operating system refused.
    """
    return Claim.take(root / ".work" / "claims" / shard)


def tidy(root: Path) -> None:
    """Remove what claims and unfinished shards left in a directory: all of it, where no store came
    to be."""
    remove_empty(root / ".work" / "filling")
    remove_empty(root / ".work" / "claims", root / ".work", root)
