"""A shard of activations whose rows are written as they come, in any order, into the places that
they will have.

So a collection holds no shard in memory: its writing begins with the first row. What remains for
the end is to read the file once, from the memory that the system keeps it in, for the checksums of
its pages and its hash.
"""

import zlib
from pathlib import Path

import numpy.typing as npt
import pyarrow as pa

from featurestore.format.durable import AnyOrderFile, Written
from featurestore.format.parquet import layout

_SETTLE_BYTES = 32 * 2**20


class TensorFile:
    """The file of an activations table, byte for byte as
    :func:`featurestore.format.parquet.layout.write_table` writes it.

    Not for several threads at once.

    Attributes:
        schema: Of the table, with its metadata.
        n_rows: Of the table.
        size: Of the file, in bytes.
    """

    def __init__(self, path: Path, others: pa.Table, schema: pa.Schema, scratch: Path) -> None:
        """Begin the file that is to be at ``path``; until it is whole it lies in ``scratch``, on
        the same file system.

        ``others``: the columns but the tensor.

        Raises:
            DiskError: the operating system refused.
        """
        self._layout = layout.tensor_layout(others, schema)
        self.schema, self.n_rows, self.size = schema, others.num_rows, self._layout.size
        self._file = AnyOrderFile(path, scratch)
        self._unsettled = 0
        for offset, data in self._layout.parts.items():
            self._file.put(offset, data)

    def put(self, row: int, values: npt.NDArray) -> None:
        """Write the tensor of a row, ``[n_positions, d_in]``, contiguous and of the type of the
        schema.

        Raises:
            DiskError: the operating system refused.
        """
        assert values.nbytes == self._layout.row_bytes and values.flags.c_contiguous, "a whole row"
        self._file.put(self._layout.row_offset(row), memoryview(values.data).cast("B"))
        self._unsettled += values.nbytes
        if self._unsettled >= _SETTLE_BYTES:
            self._file.settle()  # The disk works all the time, rather than at the end.
            self._unsettled = 0

    def seal(self) -> Written:
        """Make the file whole and durable, once every row was put.

        Raises:
            DiskError: the operating system refused.
        """
        for page in self._layout.pages:
            checksum = 0
            for part in self._file.read(page.levels, page.end):
                checksum = zlib.crc32(part, checksum)
            self._file.put(page.header, self._layout.header(page, checksum))
        return self._file.seal()

    def place(self) -> None:
        """Move the file, once sealed, to its path.

        Raises:
            DiskError: the operating system refused.
        """
        self._file.place()

    def close(self) -> None:
        """Remove what was written, unless it was moved to its path."""
        self._file.close()
