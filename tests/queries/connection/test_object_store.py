"""A store in an object store: the page's own lines, over a bucket in memory."""

import re
from pathlib import Path

import fsspec
import polars as pl
import pyarrow.dataset
import pytest

from queries import ask
from queries.derived.sums import keep_sums
from tests.builders.codes import random_codes
from tests.builders.stores import make_store

PAGE = Path(__file__).parents[3] / "docs" / "queries.md"


@pytest.fixture
def store(tmp_path):
    made = make_store(
        tmp_path / "store",
        random_codes(3, samples=4),
        {"style": ["a", "b", "a", None]},
        sae="styles",
    )
    keep_sums(made, "styles")
    return made


@pytest.fixture
def bucket(store):
    memory = fsspec.filesystem("memory")
    memory.put(f"{store.root}/", "/bucket/store/", recursive=True)
    yield memory
    memory.rm("/bucket", recursive=True)


def test_the_lines_of_the_page_score_a_store_in_a_bucket(store, bucket):
    (lines,) = re.findall(
        r"```python\n(import duckdb\n.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL
    )
    assert lines.count('"s3') == 2
    lines = lines.replace('"s3://', '"memory://').replace('"s3"', '"memory"').replace("256", "4")
    names = {}
    exec(lines, names)
    asked = ask(store, "importance")
    assert names["scores"].select(asked.column_names).to_pylist() == asked.to_pylist()
    names["connection"].close()


def test_pyarrow_and_polars_read_it_there(store, bucket):
    expected = store.arrow("stats/styles").num_rows
    assert (
        pyarrow.dataset.dataset(
            "/bucket/store/stats/styles", filesystem=bucket, format="parquet"
        ).count_rows()
        == expected
    )
    assert (
        pl.scan_parquet(f"file://{store.root}/stats/styles/*.parquet").collect().height == expected
    )
