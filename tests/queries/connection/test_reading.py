"""Answers of any size: whole, cut, or refused before they fill the machine."""

import re

import duckdb
import pytest

from featurestore.errors import QueryError
from queries.connection.reading import read_answer


@pytest.fixture
def connection():
    with duckdb.connect(config={"memory_limit": "100MB", "threads": 1}) as connection:
        yield connection


def test_an_answer_of_many_batches_is_whole(connection):
    answer = read_answer(connection, connection.sql("select i from range(250_000) r(i) order by i"))
    assert answer.column("i").to_pylist() == list(range(250_000))


@pytest.mark.parametrize(
    ("rows", "expected"), [(0, 0), (3, 3), (150_000, 150_000), (10**9, 250_000)]
)
def test_the_first_rows_alone(connection, rows, expected):
    relation = connection.sql("select i from range(250_000) r(i)")
    assert read_answer(connection, relation, rows).num_rows == expected


def test_an_answer_that_does_not_fit_is_refused_in_one_line(connection):
    endless = connection.sql("select i, i as j from range(1_000_000_000_000) r(i)")
    with pytest.raises(QueryError) as refused:
        read_answer(connection, endless)
    found = re.match(
        r"the answer has more than ([\d,]+) rows and takes more than ([\d,]+) bytes, half of the "
        r"memory limit: ask for less \(.*\), or set a larger limit\.$",
        str(refused.value),
    )
    assert found
    rows, most = (int(number.replace(",", "")) for number in found.groups())
    assert 0.9 * most < 16 * rows < 1.1 * most + 16 * 100_000
