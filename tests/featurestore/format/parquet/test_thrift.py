import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore.format.parquet import thrift
from featurestore.format.schemas import CODES, STATS, activations_schema, samples_schema


def footer(schema, n_rows):
    """A footer that pyarrow wrote, of a table with ``n_rows`` rows in several row groups."""
    rows = pa.Table.from_pylist([_row(schema, i) for i in range(n_rows)], schema=schema)
    sink = io.BytesIO()
    pq.write_table(rows, sink, row_group_size=3, compression="zstd", write_page_index=True)
    data = sink.getvalue()
    return data[-8 - int.from_bytes(data[-8:-4], "little") : -8]


def _row(schema, i):
    return {field.name: _value(field.type, i) for field in schema}


def _value(kind, i):
    if pa.types.is_fixed_size_list(kind):
        return [_value(kind.value_type, i)] * kind.list_size
    if pa.types.is_list(kind):
        return [_value(kind.value_type, i)] * i
    if pa.types.is_string(kind):
        return f"雪 {i}" * 20
    if pa.types.is_struct(kind):
        return {"bytes": b"\0\xff", "path": None}
    return i


SCHEMAS = {
    "activations": activations_schema(2, 3, chosen=True).with_metadata({"ключ": "雪"}),
    "samples": samples_schema(["style", "object"], images=True),
    "codes": CODES,
    "stats": STATS,
    "wide": pa.schema([(f"column {i}", pa.uint8()) for i in range(40)]),
}


@pytest.mark.parametrize("name", SCHEMAS)
@pytest.mark.parametrize("n_rows", [0, 1, 50])
def test_footers_of_pyarrow_come_back_byte_for_byte(name, n_rows):
    data = footer(SCHEMAS[name], n_rows)
    assert thrift.write(thrift.read(data)) == data


def test_a_footer_says_what_pyarrow_reads_from_it():
    fields = thrift.read(footer(STATS, 50))
    assert fields[3] == (thrift.I64, 50)
    kind, groups = fields[4][1]
    assert (kind, len(groups)) == (thrift.STRUCT, 17)
    assert [group[3] for group in groups] == [(thrift.I64, 3)] * 16 + [(thrift.I64, 2)]
    assert fields[6][1].decode().startswith("parquet-cpp-arrow")


def test_no_part_of_a_struct_is_taken_for_the_whole():
    data = footer(STATS, 1)
    for end in range(len(data)):
        with pytest.raises(ValueError, match="not a whole Thrift struct"):
            thrift.read(data[:end])


# By hand from the specification: field headers with and without a step above 15, zigzag, varints,
# lists of 15 and more.
@pytest.mark.parametrize(
    ("fields", "data"),
    [
        ({}, "00"),
        ({1: (thrift.TRUE, True), 2: (thrift.FALSE, False)}, "11 12 00"),
        ({1: (thrift.I32, -1), 3: (thrift.I64, 150)}, "15 01 26 ac 02 00"),
        ({20: (thrift.I16, -32768)}, "04 28 ff ff 03 00"),
        ({1: (thrift.I8, -2), 2: (thrift.DOUBLE, 1.0)}, "13 fe 17 00 00 00 00 00 00 f0 3f 00"),
        (
            {1: (thrift.BINARY, b"ab"), 2: (thrift.STRUCT, {1: (thrift.I32, 1)})},
            "18 02 61 62 1c 15 02 00 00",
        ),
        ({1: (thrift.LIST, (thrift.I32, [1, -1]))}, "19 25 02 01 00"),
        ({1: (thrift.LIST, (thrift.TRUE, [True, False]))}, "19 21 01 02 00"),
        ({1: (thrift.LIST, (thrift.I32, [0] * 15))}, "19 f5 0f" + " 00" * 15 + " 00"),
    ],
)
def test_structs_are_the_bytes_of_the_specification(fields, data):
    assert thrift.write(fields) == bytes.fromhex(data)
    assert thrift.read(bytes.fromhex(data)) == fields


@pytest.mark.parametrize("number", [2**31, -(2**31) - 1])
def test_a_number_too_large_for_its_type_is_refused(number):
    with pytest.raises(OverflowError, match=f"{number} does not fit 32 bits"):
        thrift.write({1: (thrift.I32, number)})


def test_a_type_that_parquet_does_not_use_is_refused():
    with pytest.raises(ValueError, match="Parquet uses no Thrift type 11"):
        thrift.read(bytes.fromhex("1b 00"))
