"""The same questions on Spark, local[2]: every answer equals DuckDB's."""

import pytest

pytest.importorskip("pyspark", reason="pyspark is an optional extra")
pytest.importorskip("sqlglot", reason="sqlglot comes with the extra that has pyspark")

from featurestore.errors import QueryError
from queries import ask
from queries.questions import questions
from tests.builders.cases import equal, make_case, parameters

pytestmark = pytest.mark.spark


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
    from queries.spark import CANNOT, ask_spark

    store, other, case = example
    second = other if "other_stats" in questions()[name].relations else None
    if name in CANNOT:
        with pytest.raises(QueryError, match=f"question '{name}' cannot run on Spark: it reads the float16"):
            ask_spark(spark, store, name, parameters(name, case))
        return
    found = ask_spark(spark, store, name, parameters(name, case), other=second)
    expected = ask(store, name, parameters(name, case), other=second)
    assert found.schema == expected.schema
    assert found.num_rows == expected.num_rows
    for a, b in zip(found.to_pylist(), expected.to_pylist(), strict=True):
        assert equal(tuple(a.values()), tuple(b.values())), (a, b)
