"""Activation shards as arrays: zero-copy where the file's layout allows it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.errors import DamageError
from featurestore.format import footers
from featurestore.format.checksums import PartCheck
from featurestore.format.gate import inside
from featurestore.format.parquet import layout
from featurestore.format.records import Record


@dataclass(frozen=True)
class ActivationShard:
    """A shard of ``activations/<hook>``, its rows in file order."""

    record: Record
    sample_id: npt.NDArray[np.int64]
    step: npt.NDArray[np.int32]
    timestep: npt.NDArray[np.float32]
    branch: npt.NDArray[np.str_]
    groups: "Groups"
    """``[rows, n_positions, d_in]`` a row group; read-only views of the file when ``mapped``, each
    compared with the record when it is first taken"""
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
        return self.groups.shape[1]

    @property
    def d_in(self) -> int:
        """Channels of the hooked tensor."""
        return self.groups.shape[2]

    def row(self, index: int) -> npt.NDArray:
        """Return one row's tensor ``[n_positions, d_in]``: a view."""
        rows = self.groups.shape[0]
        return self.groups[index // rows][index % rows]

    @property
    def row_offsets(self) -> npt.NDArray[np.int64]:
        """Where each row's tensor begins in the file, in bytes; only if ``mapped``."""
        starts = [
            offset + np.arange(n) * self.groups.row_bytes
            for offset, n in zip(self.offsets, self.groups.n_rows, strict=True)
        ]
        return np.concatenate(starts).astype(np.int64)

    def check_rows(self, indices: npt.NDArray[np.integer]) -> None:
        """Compare the row groups of some rows with the record: for who reads them from the file by
        their offsets; raises DamageError."""
        for group in np.unique(indices // self.groups.shape[0]).tolist():
            self.groups.check(group)

    def rows(self, indices: npt.NDArray[np.integer] | slice = slice(None)) -> npt.NDArray:
        """Return the tensors of some rows ``[n, n_positions, d_in]``: a copy, unless one row group
        holds all."""
        if isinstance(indices, slice) and len(self.groups) == 1:
            return self.groups[0][indices]
        wanted = np.arange(self.n_rows)[indices]
        return np.stack([self.row(i) for i in wanted]) if len(wanted) else self.groups[0][:0]


class Groups(Sequence[npt.NDArray]):
    """The tensors of a shard's row groups, each compared with the record when it is first taken.

    Attributes:
        check: Compares a row group, given its number; raises DamageError.
        shape: Of the first.
        dtype: Of all.
    """

    def __init__(self, arrays: list[npt.NDArray], check: Callable[[int], None]) -> None:
        self._arrays, self.check = arrays, check
        first = arrays[0] if arrays else np.empty((0, 0, 0), np.float16)
        self.shape, self.dtype, self.row_bytes = first.shape, first.dtype, first[:1].nbytes
        self.n_rows = [len(array) for array in arrays]

    def __len__(self) -> int:
        return len(self._arrays)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        self.check(number)
        return self._arrays[number]


def tensor_array(values: npt.NDArray, schema: pa.Schema) -> pa.FixedSizeListArray:
    """Return values ``[rows, n_positions, d_in]``, of any shape in this order, as the tensor of an
    activation table; no copy."""
    outer = schema.field(layout.TENSOR).type
    nested = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), type=outer.value_type)
    return pa.FixedSizeListArray.from_arrays(nested, type=outer)


def open_shard(root: Path, record: Record) -> ActivationShard:
    """Open an activation shard as :func:`read_shard` does, whose bytes nobody has compared with its
    record yet: each row group is compared when it is first read.

    Raises:
        DamageError: a byte that is read is not what the record says.
    """
    return read_shard(root, record, PartCheck(root, record))


def _nothing(group: int) -> None:
    """Check nothing: somebody did."""


def read_shard(
    root: Path, record: Record, check: Callable[[int], None] = _nothing
) -> ActivationShard:
    """Open an activation shard that was compared with its record: its small columns are read, its
    tensors mapped, or decoded where they cannot be. ``check`` is called for each row group before
    it is read.

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
        return _read(path, record, check)


def _read(path: Path, record: Record, check: Callable[[int], None]) -> ActivationShard:
    mapped = layout.map_tensor(path, record.files[0].bytes)
    groups = [group.values for group in mapped] if mapped is not None else None
    offsets = [group.offset for group in mapped or ()]
    columns = ["sample_id", "step", "timestep", "branch"]
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        table = file.read(columns=columns)
        if groups is None:
            for group in range(file.metadata.num_row_groups):
                check(group)
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
        groups=Groups(groups, check),
        mapped=mapped is not None,
        offsets=offsets,
        metadata=metadata,
    )


def _decode(file: pq.ParquetFile, group: int) -> npt.NDArray:
    positions, d_in, dtype = layout.tensor_shape(file.schema_arrow)
    column = file.read_row_group(group, columns=[layout.TENSOR])[layout.TENSOR].combine_chunks()
    flat = column.flatten().flatten().to_numpy(zero_copy_only=False)
    return flat.astype(dtype, copy=False).reshape(-1, positions, d_in)
