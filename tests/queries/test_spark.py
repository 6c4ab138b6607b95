"""The same questions on Spark, local[2]: every answer equals DuckDB's."""

import numpy as np
import pytest

pytest.importorskip("pyspark", reason="pyspark is an optional extra")
pytest.importorskip("sqlglot", reason="sqlglot comes with the extra that has pyspark")

from featurestore.errors import QueryError
from queries import ask, plot, score, select
from queries.questions import questions
from queries.selections import select_all
from tests.builders.cases import equal, make_case, parameters
from tests.builders.codes import random_codes
from tests.builders.stores import make_store

pytestmark = [pytest.mark.spark, pytest.mark.filterwarnings("ignore:.* are few for an interval")]


@pytest.fixture(scope="module")
def spark(tmp_path_factory):
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.master("local[2]").appName("featurestore tests")
    settings = {
        "spark.ui.enabled": "false",
        "spark.sql.shuffle.partitions": "2",
        "spark.sql.codegen.wholeStage": "false",
        "spark.sql.codegen.factoryMode": "NO_CODEGEN",
        "spark.sql.adaptive.enabled": "false",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.sql.warehouse.dir": str(tmp_path_factory.mktemp("spark")),
    }
    for key, value in settings.items():
        builder = builder.config(key, value)
    session = builder.getOrCreate()
    yield session
    session.stop()


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    labels = ["neon", "a\"b'; --", "neon", "雪", None, "silent"]
    return make_case(tmp_path_factory.mktemp("q") / "a [b] {c}", 3, labels, 5, 2, 3)


@pytest.mark.parametrize("name", list(questions()))
def test_an_answer_on_spark_is_that_of_duckdb(spark, example, name):
    from queries.spark import CANNOT, Spark

    store, other, case = example
    second = other if "other_stats" in questions()[name].relations else None
    if name in CANNOT:
        with pytest.raises(
            QueryError, match=f"question '{name}' cannot run on Spark: it reads the float16"
        ):
            ask(store, name, parameters(name, case), engine=Spark(spark))
        return
    found = ask(store, name, parameters(name, case), other=second, engine=Spark(spark))
    expected = ask(store, name, parameters(name, case), other=second)
    assert found.schema == expected.schema
    assert found.num_rows == expected.num_rows
    for a, b in zip(found.to_pylist(), expected.to_pylist(), strict=True):
        assert equal(tuple(a.values()), tuple(b.values())), (a, b)


@pytest.fixture
def pair(tmp_path):
    """Twice the same store, whose sums are not kept yet; scores do not tie by chance."""
    z = (
        np.round(random_codes(5, samples=6) * np.random.default_rng(5).random((6, 3, 4, 12)) * 1024)
        / 1024
    )
    labels = {"style": ["a b", "b", "it's", None, "b", "a b"]}
    return tuple(
        make_store(tmp_path / name, z.astype(np.float32), labels) for name in ("here", "there")
    )


@pytest.mark.parametrize(
    "concepts, rule", [(None, {"top": 3}), (None, {"percentile": 90}), (["b"], {"percentile": 40})]
)
def test_selections_on_spark_are_those_of_duckdb(spark, pair, concepts, rule):
    from queries.spark import Spark

    here, there = pair
    expected = select_all(here, "s", "style", concepts, **rule)
    found = select_all(there, "s", "style", concepts, **rule, engine=Spark(spark))
    assert [one.rows for one in found] == [one.rows for one in expected]
    assert there.records("sums/s") == []


def test_spark_finds_a_stores_kept_sums_at_another_address(spark, pair):
    from queries.spark import Spark

    here, _ = pair
    expected = select(here, "s", "style", "b")
    assert here.records("sums/s")
    assert (
        select(here, "s", "style", "b", engine=Spark(spark, location=f"file://{here.root}"))
        == expected
    )


def test_scores_on_spark_are_kept_as_duckdbs(spark, pair):
    from queries.spark import Spark

    here, there = pair
    record, best = score(here, "s", "style")
    other, found = score(there, "s", "style", engine=Spark(spark))
    assert other.shard == record.shard
    for mine, theirs in ((found, best), (there.arrow("scores/s"), here.arrow("scores/s"))):
        assert mine.num_rows == theirs.num_rows
        for a, b in zip(
            mine.to_pylist(), theirs.to_pylist(), strict=True
        ):  # sums of Spark's own differ in last bits
            assert equal(tuple(a.values()), tuple(b.values())), (a, b)


def test_a_plot_on_spark_is_that_of_duckdb(spark, pair, tmp_path):
    from queries.spark import Spark

    here, there = pair
    plot(here, "s", "style", "b", path=tmp_path / "a.svg")
    plot(there, "s", "style", "b", path=tmp_path / "b.svg", engine=Spark(spark))
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_statements_keep_their_meaning_in_sparks_dialect():
    from queries.spark import translate

    assert translate("select max_by(f, s, $n) as l from t") == "SELECT MAX_BY(f, s, :n) AS l FROM t"
    assert "MATERIALIZED" not in translate(
        "with a as not materialized (select 1 as x) select * from a"
    )
