import shutil

import duckdb
import pytest

from featurestore.errors import DamageError, QueryError
from queries.session import connect, run_sql
from tests.queries.test_importance import random_codes
from tests.stores import make_store


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    labels = {"style": ["a", "b", "a"], "object": ["x", "y", None]}
    return make_store(tmp_path_factory.mktemp("s") / "it's a store", random_codes(0, samples=3), labels)


@pytest.fixture
def store(original, tmp_path):
    from featurestore import Store

    return Store.open(shutil.copytree(original.root, tmp_path / "store"))


def test_a_users_select_sees_every_view(original):
    rows = run_sql(original, "select style, count(*) as n from samples group by style order by style").to_pylist()
    assert rows == [{"style": "a", "n": 2}, {"style": "b", "n": 1}]
    for view in ("samples", "codes", "stats", "scores", "saes"):
        assert run_sql(original, f"select count(*) as n from {view}").num_rows == 1
    assert run_sql(original, "select sae, n_latents, map_positions from saes").to_pylist() == [
        {"sae": "s", "n_latents": 12, "map_positions": 4}
    ]
    assert "feature" in run_sql(original, "describe stats")["column_name"].to_pylist()
    total = run_sql(original, "with t as (select sum(sum) as v from stats where sae = 's') select v from t")
    assert total["v"][0].as_py() == pytest.approx(random_codes(0, samples=3).sum())


FORBIDDEN = [
    "select * from read_csv('/etc/passwd')",
    "select * from read_text('/etc/hostname')",
    "select * from '/etc/passwd'",
    "select * from glob('/etc/*')",
    "copy (select 1) to '/tmp/out.csv'",
    "create table t as select 1",
    "insert into saes values ('x')",
    "drop view samples",
    "attach '/tmp/x.db'",
    "install httpfs",
    "load httpfs",
    "set enable_external_access = true",
    "pragma database_list",
    "explain analyze select 1",
    "select 1; select 2",
    "select getenv('HOME')",
    "",
    "export database '/tmp/x'",
    "select * from query('copy (select 1) to ''/tmp/out.csv''')",
]


@pytest.mark.parametrize("statement", FORBIDDEN)
def test_a_statement_can_neither_leave_nor_change_the_store(original, statement):
    with pytest.raises(QueryError) as error:
        run_sql(original, statement)
    assert "\n" not in str(error.value)


def test_a_statement_cannot_overwrite_a_shard(store):
    path = store.files("stats/s")[0]
    before = path.read_bytes()
    for statement in (f"copy (select 1) to '{path}'", f"explain analyze copy (select 1) to '{path}'"):
        with pytest.raises(QueryError):
            run_sql(store, statement)
    assert path.read_bytes() == before


def test_an_unknown_column_or_table_offers_the_near_ones(original):
    with pytest.raises(QueryError, match="Did you mean 'style'"):
        run_sql(original, "select stile from samples")
    with pytest.raises(QueryError, match="Did you mean 'samples'"):
        run_sql(original, "select * from sampels")
    with pytest.raises(QueryError, match=r"Parser Error: syntax error at or near"):
        run_sql(original, "select * form samples")


def test_python_variables_are_out_of_reach(original):
    secret = __import__("pyarrow").table({"x": [1]})
    assert secret.num_rows == 1
    with pytest.raises(QueryError, match="secret"):
        run_sql(original, "select * from secret")


def test_damage_is_found_before_duckdb_reads_it(store):
    path = store.files("stats/s")[0]
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamageError, match=r"stats/s/.*was changed.*Run 'featurestore verify"):
        run_sql(store, "select count(*) from stats")


def test_a_file_without_a_record_is_not_seen(store):
    shutil.copy(store.files("stats/s")[0], store.root / "stats/s/00000009-0000000000000000.parquet")
    n = store.records("stats/s")[0].rows
    assert run_sql(store, "select count(*) as n from stats").to_pylist() == [{"n": n}]


def test_a_connection_is_for_free_use(original):
    with connect(original) as connection:
        assert isinstance(connection, duckdb.DuckDBPyConnection)
        assert connection.sql("select max(step) from stats").fetchall() == [(2,)]
