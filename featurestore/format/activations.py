"""Activation shards as arrays: zero-copy where the file's layout allows it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.errors import DamageError
from featurestore.format import footers, parquet
from featurestore.format.gate import inside
from featurestore.format.records import Record


@dataclass(frozen=True)
class ActivationShard:
    """A shard of ``activations/<hook>``, its rows in file order."""

    record: Record
    sample_id: npt.NDArray[np.int64]
    step: npt.NDArray[np.int32]
    timestep: npt.NDArray[np.float32]
    branch: npt.NDArray[np.str_]
    groups: list[npt.NDArray]
    """``[rows, n_positions, d_in]`` a row group; read-only views of the file when ``mapped``"""
    mapped: bool
    offsets: list[int]
    """where each row group's tensor begins in the file, in bytes; empty unless ``mapped``"""
    metadata: Mapping[str, str]
    """hook, io, height, width: the schema metadata without its prefix"""

    @property
    def n_rows(self) -> int:
        """Rows: (sample, step, branch) triples."""
        return len(self.step)

    @property
    def n_positions(self) -> int:
        """Positions of the map."""
        return self.groups[0].shape[1]

    @property
    def d_in(self) -> int:
        """Channels of the hooked tensor."""
        return self.groups[0].shape[2]

    def row(self, index: int) -> npt.NDArray:
        """Return one row's tensor ``[n_positions, d_in]``: a view."""
        rows = self.groups[0].shape[0]
        return self.groups[index // rows][index % rows]

    @property
    def row_offsets(self) -> npt.NDArray[np.int64]:
        """Where each row's tensor begins in the file, in bytes; only if ``mapped``."""
        starts = [
            offset + np.arange(len(g)) * g[:1].nbytes
            for offset, g in zip(self.offsets, self.groups, strict=True)
        ]
        return np.concatenate(starts).astype(np.int64)

    def rows(self, indices: npt.NDArray[np.integer] | slice = slice(None)) -> npt.NDArray:
        """Return the tensors of some rows ``[n, n_positions, d_in]``: a copy, unless one row group
        holds all."""
        if isinstance(indices, slice) and len(self.groups) == 1:
            return self.groups[0][indices]
        wanted = np.arange(self.n_rows)[indices]
        return np.stack([self.row(i) for i in wanted]) if len(wanted) else self.groups[0][:0]


def tensor_array(values: npt.NDArray, schema: pa.Schema) -> pa.FixedSizeListArray:
    """Return values ``[rows, n_positions, d_in]``, of any shape in this order, as the tensor of an
    activation table; no copy."""
    outer = schema.field(parquet.TENSOR).type
    nested = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), type=outer.value_type)
    return pa.FixedSizeListArray.from_arrays(nested, type=outer)


def read_shard(root: Path, record: Record) -> ActivationShard:
    """Open an activation shard: its small columns are read and checked, its tensors mapped, or
    decoded where they cannot be.

    Raises:
        DamageError: the file is missing, its size is not the recorded one, or it cannot be read.
    """
    (entry,) = record.files
    path = inside(root, entry.path)
    found = path.stat().st_size if path.is_file() else None
    if found != entry.bytes:
        state = "is missing" if found is None else f"has {found} bytes"
        raise DamageError(
            f"{path} {state}, its record says {entry.bytes}: run 'featurestore verify {root}'."
        )
    with footers.reading(path):
        return _read(path, record)


def _read(path: Path, record: Record) -> ActivationShard:
    mapped = parquet.map_tensor(path, record.files[0].bytes)
    groups = [group.values for group in mapped] if mapped is not None else None
    offsets = [group.offset for group in mapped or ()]
    columns = ["sample_id", "step", "timestep", "branch"]
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        table = file.read(columns=columns)
        if groups is None:
            groups = [_decode(file, group) for group in range(file.metadata.num_row_groups)]
        raw = file.schema_arrow.metadata or {}
    prefix = "featurestore."
    metadata = {
        k.decode().removeprefix(prefix): v.decode()
        for k, v in raw.items()
        if k.decode().startswith(prefix)
    }
    arrays = {name: table[name].to_numpy() for name in columns[:3]}
    branch = np.array(table["branch"].to_pylist())
    return ActivationShard(
        record,
        **arrays,
        branch=branch,
        groups=groups,
        mapped=mapped is not None,
        offsets=offsets,
        metadata=metadata,
    )


def _decode(file: pq.ParquetFile, group: int) -> npt.NDArray:
    positions, d_in, dtype = parquet.tensor_shape(file.schema_arrow)
    column = file.read_row_group(group, columns=[parquet.TENSOR])[parquet.TENSOR].combine_chunks()
    flat = column.flatten().flatten().to_numpy(zero_copy_only=False)
    return flat.astype(dtype, copy=False).reshape(-1, positions, d_in)
