"""Footers and pages are looked through before a library reads them."""

import io
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore.format.footers import MALFORMED, check_footer, read_schema
from featurestore.format.gate import MalformedError
from featurestore.format.parquet import structure, thrift
from featurestore.format.parquet.structure import check_structure
from featurestore.format.parquet.thrift import I32, I64, LIST, STRUCT
from featurestore.format.records import Record
from tests.torture.mutate_parquet import mutate_pages, pages_of, with_pages

WAYS = {
    "plain": {"use_dictionary": False, "compression": "none"},
    "dictionary": {"use_dictionary": True, "compression": "snappy"},
    "small pages": {"data_page_size": 64, "max_rows_per_page": 100, "compression": "zstd"},
    "version 2": {"data_page_version": "2.0", "compression": "zstd", "max_rows_per_page": 100},
    "groups": {"row_group_size": 77, "write_page_checksum": True, "write_page_index": True},
}


def table(n=1000):
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, 5, n)
    lists = [[[int(i)] * int(i), []] for i in numbers]
    texts = ["x" * 3000 if i == 4 else None for i in numbers]
    kinds = [pa.int64(), pa.string(), pa.list_(pa.list_(pa.int64()))]
    columns = map(pa.array, (numbers, texts, lists), kinds)
    return pa.table(list(columns), names=["number", "text", "lists"])


def written(n=1000, **options):
    sink = io.BytesIO()
    pq.write_table(table(n), sink, **options)
    return sink.getvalue()


@pytest.mark.parametrize("n", [0, 1000])
@pytest.mark.parametrize("way", WAYS)
def test_what_writers_write_is_sound(tmp_path, way, n):
    path = tmp_path / "x.parquet"
    path.write_bytes(written(n, **WAYS[way]))
    check_structure(path)
    assert pq.ParquetFile(path).read().equals(table(n))


def changed(data, change):
    """A file of which the first column's pages, or its description, were changed."""
    size = int.from_bytes(data[-8:-4], "little")
    footer = thrift.read(data[-8 - size : -8])
    about = footer[4][1][1][0][1][1][1][0][3][1]
    pages = pages_of(data, about)
    after = change(pages, about)
    whole = with_pages(data[: -8 - size], footer, about, pages)
    if after is None:
        return whole
    size = int.from_bytes(whole[-8:-4], "little")
    after(about)
    end = thrift.write(footer)
    return whole[: -8 - size] + end + len(end).to_bytes(4, "little") + b"PAR1"


def more_values(pages, about):
    pages[-1][0][5][1][1] = I32, 2**20


def much_memory(pages, about):
    pages[-1][0][2] = I32, 2**31 - 1


def no_memory(pages, about):
    return lambda about: about.update({6: (I64, 1)})


def dictionary_behind(pages, about):
    pages.reverse()


def beyond(pages, about):
    pages[-1][0][3] = I32, len(pages[-1][1]) + 1


def short(pages, about):
    return lambda about: about.update({7: (I64, about[7][1] - 3)})


def another_kind(pages, about):
    pages[-1][0][1] = I32, 7


def undescribed(pages, about):
    del pages[-1][0][5]


def fewer_than_rows(pages, about):
    pages[-1][0][5][1][1] = I32, 999
    return lambda about: about.update({5: (I64, 999)})


def bytes_of_numbers(pages, about):
    """What ended the process: pyarrow throws where nobody catches."""
    return lambda about: about.update({16: (STRUCT, {1: (I64, 5)})})


def other_levels(pages, about):
    return lambda about: about.update({16: (STRUCT, {3: (LIST, (I64, [1] * 7))})})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (more_values, r"the pages of a column have 1048576 values, its footer says 1000"),
        (much_memory, r"field 2 of a page's header is 2147483647, expected 0…\d+"),
        (no_memory, r"field 2 of a page's header is \d+, expected 0…1"),
        (dictionary_behind, "a dictionary stands behind other pages"),
        (beyond, r"field 3 of a page's header is \d+, expected 0…\d+"),
        (short, r"field 3 of a page's header is \d+, expected 0…\d+"),
        (another_kind, r"field 1 of a page's header is 7, expected 0…3"),
        (undescribed, "a page's header does not say what is in it"),
        (bytes_of_numbers, "a column that is not of bytes is said to have unencoded ones"),
        (other_levels, "a column with 2 levels counts others"),
        (fewer_than_rows, "a column has 999 values in a row group of 1000 rows"),
    ],
)
def test_pages_that_contradict_themselves_are_refused_before_they_are_read(
    tmp_path, change, message
):
    """A5, A7: the inspector does not trust what it inspects, and no header asks for memory."""
    path = tmp_path / "x.parquet"
    data = written(use_dictionary=True, compression="snappy")
    path.write_bytes(changed(data, lambda pages, about: None))
    check_structure(path)
    path.write_bytes(changed(data, change))
    with pytest.raises(MalformedError, match=message):
        check_structure(path)
    said = check_footer(path, Record("samples", "x", "", 1000, (), ()))
    assert said is not None and said.startswith("is no Parquet file that can be read (")


def test_only_the_gate_follows_pages(tmp_path):
    """What was checked is not looked through again: a schema costs the same as before."""
    path = tmp_path / "x.parquet"
    path.write_bytes(changed(written(), much_memory))
    assert read_schema(path).equals(table().schema)
    with pytest.raises(MalformedError):
        check_structure(path)


def test_a_changed_page_is_refused_or_reads_as_a_table_of_as_many_rows(tmp_path):
    path = tmp_path / "x.parquet"
    rng, data = random.Random(0), written(**WAYS["version 2"])
    refused = 0
    for _ in range(300):
        path.write_bytes(mutate_pages(data, rng))
        try:
            check_structure(path)
            assert pq.ParquetFile(path).read().num_rows == 1000
        except MALFORMED:
            refused += 1
    assert 30 < refused < 300


@pytest.mark.parametrize("way", ["plain", "dictionary", "small pages", "groups"])
def test_pages_looked_through_by_the_pattern_are_those_that_are_sound_without_it(
    tmp_path, monkeypatch, way
):
    """The fast way accepts what the whole header says is sound, and decides nothing else."""
    path = tmp_path / "x.parquet"
    rng, data = random.Random(1), written(**WAYS[way])

    def found(usual):
        with monkeypatch.context() as patch:
            patch.setattr(structure, "_usual_page", usual)
            try:
                check_structure(path)
            except MALFORMED as error:
                return str(error)
            return "sound"

    seen, usual = [], structure._usual_page

    def noted(*args):
        seen.append(usual(*args))
        return seen[-1]

    outcomes = set()
    for change in [lambda data, rng: data] + [mutate_pages] * 60 + [with_a_byte_changed] * 60:
        path.write_bytes(change(data, rng))
        outcomes.add(expected := found(lambda *args: None))
        assert found(noted) == expected
    assert any(seen)
    assert None in seen
    assert "sound" in outcomes
    assert len(outcomes) > 1


def with_a_byte_changed(data, rng):
    """A file of which a byte of the first page's header is another."""
    changed = bytearray(data)
    changed[rng.randrange(4, 60)] ^= 1 << rng.randrange(8)
    return bytes(changed)
