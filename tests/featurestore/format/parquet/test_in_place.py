"""Rows written as they come, in any order, make the file that a table in memory makes."""

import io
import zlib

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore import Store
from featurestore.errors import DiskError, TableError, TakenError
from featurestore.format.parquet import layout, tensor_column, thrift
from featurestore.format.parquet.in_place import TensorFile
from featurestore.maintenance.verify import verify
from tests.builders.tensors import activation_table


@pytest.fixture(autouse=True)
def small_groups(monkeypatch):
    monkeypatch.setattr("featurestore.format.parquet.layout.rows_per_group", lambda schema: 3)


def others(table):
    return table.drop_columns(["activation"])


def whole(table):
    sink = io.BytesIO()
    layout.write_table(sink, table)
    return sink.getvalue()


@settings(max_examples=40)
@given(
    rows=st.integers(0, 8),
    positions=st.integers(1, 5),
    d_in=st.integers(1, 9),
    dtype=st.sampled_from(["float16", "float32"]),
    chosen=st.booleans(),
    order=st.randoms(use_true_random=False),
)
def test_any_order_makes_the_same_file(
    tmp_path_factory, rows, positions, d_in, dtype, chosen, order
):
    table, values = activation_table(rows, positions, d_in, dtype, chosen)
    root = tmp_path_factory.mktemp("file")
    file = TensorFile(root / "a" / "f.parquet", others(table), table.schema, root / "scratch")
    for row in order.sample(range(rows), rows):
        file.put(row, values[row])
    written = file.seal()
    assert not (root / "a").exists()
    file.place()
    data = (root / "a" / "f.parquet").read_bytes()
    assert data == whole(table)
    assert (written.bytes, file.size) == (len(data), len(data))
    assert pq.read_table(io.BytesIO(data), page_checksum_verification=True).equals(table)
    file.close()
    assert list((root / "scratch").iterdir()) == []


@pytest.mark.parametrize("checksum", [0, 1, 63, 64, 2**20, 2**31 - 1, 2**31, 2**32 - 1])
def test_a_header_is_as_long_whatever_its_checksum(checksum):
    header = tensor_column._header(1000, 2100, checksum)
    assert len(header) == len(tensor_column._header(1000, 2100, 0))
    signed = checksum - 2**32 if checksum >= 2**31 else checksum
    assert thrift.read(header)[4] == (thrift.I32, signed)
    assert thrift.read(header)[5][1][1] == (thrift.I32, 1000)


def test_a_checksum_of_few_digits_is_read_by_pyarrow():
    """Searched for: of the smallest checksums of many tensors, one whose usual form has fewer than
    five digits."""
    for rows in range(1, 200):
        table, _ = activation_table(rows=1 + rows % 3, positions=1, d_in=1 + rows)
        data = whole(table)
        with pq.ParquetFile(io.BytesIO(data)) as file:
            column = file.metadata.row_group(0).column(table.num_columns - 1)
        fields = thrift.read(data[column.data_page_offset :])
        if len(thrift.write({4: fields[4]})) < 7:
            assert (
                zlib.crc32(data[column.data_page_offset :][: column.total_compressed_size])
                is not None
            )
            assert pq.read_table(io.BytesIO(data), page_checksum_verification=True).equals(table)
            return
    raise AssertionError("none of 200 checksums was short: one of eight is")


def ids(table):
    return table["sample_id"].to_pylist()


def fill(store, table, values, shard="00000000", order=None):
    file = store.begin_shard("activations/h", shard, others(table), table.schema)
    for row in order or range(len(values)):
        file.put(row, values[row])
    return file


def test_a_shard_is_committed_once_and_seen_only_then(tmp_path):
    table, values = activation_table()
    store = Store.prepare(tmp_path / "s", {"model": "m"})
    file = fill(store, table, values, order=[6, 0, 3, 1, 5, 2, 4])
    assert not store.exists
    record = store.append_shard(
        "activations/h", "00000000", file, ids(table), made_by={"by": "test"}
    )
    assert (record.rows, record.files[0].bytes) == (7, file.size)
    assert verify(store, deep=True) == []
    again = fill(store, table, values)
    assert store.append_shard("activations/h", "00000000", again, ids(table), made_by={}) == record
    with pytest.raises(TableError, match="has other columns"):
        other, _ = activation_table(d_in=9)
        store.begin_shard("activations/h", "00000001", others(other), other.schema)


def test_a_shard_that_another_process_committed_with_other_contents_is_refused(
    tmp_path, monkeypatch
):
    table, values = activation_table()
    store = Store.prepare(tmp_path / "s", {"model": "m"})
    file = fill(store, table, values[::-1].copy())
    seal = file.seal

    def meanwhile():
        sealed = seal()
        store.append_shard(
            "activations/h", "00000000", fill(store, table, values), ids(table), made_by={}
        )
        monkeypatch.undo()
        return sealed

    monkeypatch.setattr(file, "seal", meanwhile)
    with pytest.raises(TakenError, match="with other contents"):
        store.append_shard("activations/h", "00000000", file, ids(table), made_by={})
    assert verify(store, deep=True) == []


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path, monkeypatch):
    table, values = activation_table()
    store = Store.prepare(tmp_path / "s", {"model": "m"})
    file = fill(store, table, values)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(
        DiskError, match=r"cannot write .*: No space left on device; nothing half-written is left"
    ):
        store.append_shard("activations/h", "00000000", file, ids(table), made_by={})
    monkeypatch.undo()
    assert store.records("activations/h") == []
    assert not np.any([path.is_file() for path in tmp_path.rglob("*.tmp")])
