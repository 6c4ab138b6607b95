"""Files with a tensor are written by hand, and are Parquet to everyone: pyarrow's own writer is the
oracle."""

import io

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.errors import TableError
from featurestore.format.durable import write_file
from featurestore.format.parquet import layout, thrift
from tests.builders.tensors import activation_table

GROUP_ROWS = 3


def write(table):
    sink = io.BytesIO()
    layout.write_table(sink, table)
    return sink.getvalue()


def write_by_pyarrow(table):
    """The same layout, encoded by pyarrow."""
    sink = io.BytesIO()
    one_page = dict.fromkeys(("data_page_size", "max_rows_per_page", "write_batch_size"), 2**31 - 1)
    statistics = ["sample_id", "step", "timestep", "branch"]
    with pq.ParquetWriter(
        sink, table.schema, compression="none", use_dictionary=False, write_statistics=statistics,
        write_page_checksum=True, **one_page,
    ) as writer:  # fmt: skip
        for start in range(0, table.num_rows, GROUP_ROWS):
            writer.write_table(table.slice(start, GROUP_ROWS), row_group_size=GROUP_ROWS)
    return sink.getvalue()


def read(data, **options):
    return pq.read_table(io.BytesIO(data), page_checksum_verification=True, **options)


def footer(data):
    return thrift.read(data[-8 - int.from_bytes(data[-8:-4], "little") : -8])


@pytest.fixture(autouse=True)
def small_groups(monkeypatch):
    monkeypatch.setattr(
        "featurestore.format.parquet.layout.rows_per_group", lambda schema: GROUP_ROWS
    )


SHAPES = {
    "one row": {"rows": 1},
    "one full group": {"rows": 3},
    "two full groups": {"rows": 6},
    "a smaller last group": {"rows": 7},
    "float32": {"dtype": "float32"},
    "chosen positions": {"chosen": True},
    "many positions": {"positions": 4096},
    "one channel": {"d_in": 1, "positions": 100},
    "one position": {"positions": 1, "d_in": 1280},
    "one number": {"positions": 1, "d_in": 1},
    "wide": {"positions": 3, "d_in": 20_000},
    "no rows": {"rows": 0},
}
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


@shapes
def test_pyarrow_reads_what_was_written(shape):
    table, values = activation_table(**shape)
    found = read(write(table))
    assert found.equals(table, check_metadata=True)
    found.validate(full=True)
    flat = found["activation"].combine_chunks().flatten().flatten().to_numpy()
    assert flat.tobytes() == values.tobytes()


def without_sizes(fields):
    """A footer without what follows from the size of the levels: how long the tensor's chunk is,
    and where things lie."""
    for group in fields[4][1][1]:
        columns = [column[3][1] for column in group[1][1][1]]
        for column in columns:
            del column[9]
        del columns[-1][6], columns[-1][7]
        del group[2], group[5], group[6]
    return fields


@shapes
def test_the_footer_is_that_of_pyarrow(shape):
    table, _ = activation_table(**shape)
    assert without_sizes(footer(write(table))) == without_sizes(footer(write_by_pyarrow(table)))


@shapes
def test_sizes_and_offsets_cover_the_file(shape):
    table, values = activation_table(**shape)
    data = write(table)
    metadata = pq.ParquetFile(io.BytesIO(data)).metadata
    end = 4
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        begin = end
        for i in range(group.num_columns):
            assert group.column(i).data_page_offset == end
            end += group.column(i).total_compressed_size
            assert group.column(i).total_uncompressed_size == group.column(i).total_compressed_size
        assert group.total_byte_size == end - begin
        last = values[number * GROUP_ROWS :][:GROUP_ROWS]
        assert data[end - last.nbytes : end] == last.tobytes()
    assert end == len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    if len(values):
        assert metadata.num_row_groups == -(-len(values) // GROUP_ROWS)


@settings(max_examples=80)
@given(
    rows=st.integers(1, 9),
    positions=st.integers(1, 70),
    d_in=st.integers(1, 70),
    dtype=st.sampled_from(["float16", "float32"]),
)
def test_any_shape_is_read_back(rows, positions, d_in, dtype):
    table, _ = activation_table(rows, positions, d_in, dtype)
    data = write(table)
    assert read(data).equals(table)
    assert len(data) < len(write_by_pyarrow(table)) + 4 * rows * positions


@pytest.mark.parametrize(("positions", "d_in"), [(4096, 1), (1, 4096), (32, 128)])
def test_levels_take_little_space(positions, d_in):
    few, many = (write(activation_table(3, n * positions, d_in)[0]) for n in (1, 9))
    assert len(many) - len(few) < 8 * 3 * positions * (2 * d_in + (5 if d_in > 1 else 0)) + 100


@shapes
def test_a_file_is_mapped(tmp_path, shape):
    table, values = activation_table(**shape)
    written = write_file(tmp_path / "a.parquet", lambda file: layout.write_table(file, table))
    groups = layout.map_tensor(tmp_path / "a.parquet", written.bytes)
    assert [len(group.values) for group in groups] == [
        len(values[i : i + 3]) for i in range(0, len(values), 3)
    ]
    for number, group in enumerate(groups):
        np.testing.assert_array_equal(group.values, values[number * GROUP_ROWS :][:GROUP_ROWS])


@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_a_file_that_pyarrow_encoded_is_mapped_too(tmp_path, version):
    table, values = activation_table(rows=3)
    path = tmp_path / "a.parquet"
    if version == "1.0":
        path.write_bytes(write_by_pyarrow(table))
    else:
        pq.write_table(
            table, path, compression="none", use_dictionary=False, data_page_version=version
        )
    (group,) = layout.map_tensor(path, path.stat().st_size)
    np.testing.assert_array_equal(group.values, values)


@pytest.mark.parametrize(
    "shape", ["a smaller last group", "float32", "chosen positions", "one channel", "one row"]
)
def test_duckdb_and_polars_read_it(tmp_path, shape):
    table, _ = activation_table(**SHAPES[shape])
    path = tmp_path / "a.parquet"
    path.write_bytes(write(table))
    rows = table.to_pylist()
    with duckdb.connect() as connection:
        there = connection.read_parquet(str(path))
        assert there.to_arrow_table().to_pylist() == rows
        assert there.filter("step = 0").project("activation").fetchall() == [
            (rows[0]["activation"],)
        ]
    for frame in (pl.read_parquet(path), pl.scan_parquet(path).collect(engine="streaming")):
        assert frame.to_arrow().to_pylist() == rows
    last = (
        pl.scan_parquet(path).filter(pl.col("step") == len(rows) - 1).select("activation").collect()
    )
    assert last.to_arrow().to_pylist() == [{"activation": rows[-1]["activation"]}]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_datasets_loads_and_streams_it(tmp_path, dtype):
    import datasets

    table, values = activation_table(dtype=dtype, chosen=True)
    path = tmp_path / "a.parquet"
    path.write_bytes(write(table))
    where = {"data_files": str(path), "split": "train", "cache_dir": str(tmp_path / "cache")}
    loaded = datasets.load_dataset("parquet", **where)
    as_stored = loaded.select_columns("activation").with_format("numpy", dtype=np.dtype(dtype))
    np.testing.assert_array_equal(as_stored[:]["activation"], values)
    rows = table.to_pylist()
    assert loaded.to_list() == rows
    assert list(datasets.load_dataset("parquet", streaming=True, **where)) == rows


def test_however_it_is_chunked_the_file_is_the_same():
    table, _ = activation_table(rows=8)
    whole = write(table)
    pieces = [table.slice(start, n) for start, n in ((0, 1), (1, 4), (5, 0), (5, 3))]
    assert write(pa.concat_tables(pieces)) == whole
    column = table["activation"].chunk(0)
    holed = pa.chunked_array([column.slice(0, 4), column.slice(4, 0), column.slice(4)])
    assert write(table.set_column(4, table.schema.field("activation"), holed)) == whole
    twice = pa.concat_tables([table, table])
    assert write(twice.slice(8, 8)) == whole
    assert write(twice.slice(3, 8)) == write(pa.concat_tables([table.slice(3), table.slice(0, 3)]))


def test_the_tensor_is_not_copied():
    table, values = activation_table(rows=6)
    places = []

    class File(io.BytesIO):
        def write(self, data):
            places.append(np.frombuffer(data, np.uint8).ctypes.data)
            return super().write(data)

    layout.write_table(File(), table)
    group = values[:GROUP_ROWS]
    assert {group.ctypes.data, group.ctypes.data + group.nbytes} <= set(places)


def test_the_tensor_may_stand_anywhere_and_its_fields_may_be_nullable():
    table, _ = activation_table(chosen=True)
    first = table.select(["activation", "position", "step"])
    assert read(write(first)).equals(first)
    nullable = pa.list_(pa.list_(pa.float16(), 8), 4)
    loose = table.set_column(5, "activation", table["activation"].cast(nullable))
    assert loose.schema.field("activation").nullable
    assert read(write(loose)).equals(loose)


@pytest.mark.parametrize("level", ["row", "position", "number"])
def test_nulls_in_the_tensor_are_refused(level):
    table, _ = activation_table(rows=2, positions=2, d_in=2)
    numbers = [[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]]
    if level == "row":
        numbers[1] = None
    elif level == "position":
        numbers[1][0] = None
    else:
        numbers[1][0][1] = None
    nullable = pa.list_(pa.list_(pa.float16(), 2), 2)
    holed = table.set_column(4, "activation", pa.array(numbers, nullable))
    with pytest.raises(TableError, match=r"the tensor holds 1 nulls where numbers are expected"):
        write(holed)


@pytest.mark.parametrize("where", ["levels", "first", "middle", "last"])
def test_a_flipped_bit_is_found_by_the_checksum_of_the_page(where):
    table, values = activation_table(rows=3)
    data = bytearray(write(table))
    start = bytes(data).index(values.tobytes())
    place = {"levels": -1, "first": 0, "middle": values.nbytes // 2, "last": values.nbytes - 1}[
        where
    ]
    data[start + place] ^= 1
    with pytest.raises(OSError, match=r"CRC|checksum"):
        read(bytes(data))
    assert read(bytes(data), columns=["sample_id", "branch"]).num_rows == 3


@pytest.mark.parametrize("damage", ["no struct", "another page's struct", "another count"])
def test_a_page_header_that_does_not_fit_is_not_mapped(tmp_path, damage):
    table, _ = activation_table(rows=3)
    data = bytearray(write(table))
    column = pq.ParquetFile(io.BytesIO(data)).metadata.row_group(0).column(4)
    header = thrift.read(bytes(data[column.data_page_offset :][:100]))
    size = len(thrift.write(header))
    kind, page = header.pop(5)
    count = {1: (thrift.I32, page[1][1] - 1)}
    changed = {
        "no struct": b"\xff" * size,
        "another page's struct": thrift.write(header | {7: (kind, page)}),
        "another count": thrift.write(header | {5: (kind, page | count)}),
    }[damage]
    assert len(changed) == size
    data[column.data_page_offset : column.data_page_offset + size] = changed
    path = tmp_path / "a.parquet"
    path.write_bytes(data)
    assert layout.map_tensor(path, len(data)) is None
