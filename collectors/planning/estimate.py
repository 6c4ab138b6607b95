"""What a collection will take: rows, bytes, time; and whether they fit."""

import io
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from collectors.planning.plan import WorkItem
from featurestore.errors import DiskError
from featurestore.format.parquet import layout


@dataclass(frozen=True)
class Estimate:
    """What a run would still take, from one batch."""

    tables: Mapping[str, tuple[int, int]]
    """table → rows and bytes"""
    n_samples: int
    n_shards: int
    seconds: float
    """of generation, in this process alone"""
    root: Path

    @property
    def bytes(self) -> int:
        """Of all tables."""
        return sum(size for _, size in self.tables.values())


def estimate(
    sizes: Mapping[str, tuple[int, int]],
    n_measured: int,
    items: Sequence[WorkItem],
    *,
    seconds: float,
    root: Path,
) -> Estimate:
    """Return what ``items`` will take, from rows and bytes of ``n_measured`` samples that took
    ``seconds``."""
    n_samples = sum(len(item.samples) for item in items)
    totals = {}
    for name, (rows, size) in sizes.items():
        wanting = sum(len(item.samples) for item in items if name in item.tables)
        totals[name] = rows * wanting // n_measured, size * wanting // n_measured
    return Estimate(totals, n_samples, len(items), seconds * n_samples / n_measured, root)


def table_bytes(rows: pa.Table) -> int:
    """Return the size of the file of a table without a tensor."""
    sink = io.BytesIO()
    layout.write_table(sink, rows)
    return sink.tell()


def free_bytes(root: Path) -> int:
    """Return the free space of the file system on which a directory lies, or will lie."""
    return shutil.disk_usage(
        next(p for p in (root.absolute(), *root.absolute().parents) if p.exists())
    ).free


def check_space(sizes: Mapping[str, int], n_measured: int, n_samples: int, root: Path) -> None:
    """Refuse a run that the disk will not hold.

    Raises:
        DiskError: ``n_samples`` like the ``n_measured`` whose tables have these bytes need more
            than is free.
    """
    needed = sum(sizes.values()) * n_samples // n_measured
    free = free_bytes(root)
    if needed > free:
        raise DiskError(
            f"the run needs about {needed / 1e9:,.1f} GB, {root} has {free / 1e9:,.1f} GB free; "
            f"nothing was written: keep less (--timesteps, --positions, --sae with "
            f"--no-activations), make room, or say --ignore-space."
        )
