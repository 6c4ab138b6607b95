import shutil

import duckdb
import pyarrow as pa
import pytest

from featurestore.errors import DamageError, QueryError
from featurestore.format.schemas import activations_schema
from queries.connection.session import connect
from queries.connection.statement import sql
from tests.builders.codes import random_codes
from tests.builders.stores import make_store


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    labels = {"style": ["a", "b", "a"], "object": ["x", "y", None]}
    return make_store(
        tmp_path_factory.mktemp("s") / "it's a store", random_codes(0, samples=3), labels
    )


@pytest.fixture
def store(original, tmp_path):
    from featurestore import Store

    return Store.open(shutil.copytree(original.root, tmp_path / "store"))


def test_a_users_select_sees_every_view(original):
    rows = sql(
        original, "select style, count(*) as n from samples group by style order by style"
    ).to_pylist()
    assert rows == [{"style": "a", "n": 2}, {"style": "b", "n": 1}]
    for view in ("samples", "activations", "codes", "stats", "scores", "selections", "saes"):
        assert sql(original, f"select count(*) as n from {view}").num_rows == 1
    assert sql(original, "select sae, n_latents, map_positions from saes").to_pylist() == [
        {"sae": "s", "n_latents": 12, "map_positions": 4}
    ]
    assert "feature" in sql(original, "describe stats")["column_name"].to_pylist()
    total = sql(
        original, "with t as (select sum(sum) as v from stats where sae = 's') select v from t"
    )
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
    "with x as (insert into saes select * from saes returning *) select * from x",
    "with x as (delete from saes returning *) select * from x",
    "with x as (update saes set sae = 'y' returning *) select * from x",
    "select * from enable_logging(storage = 'file', storage_path = '/tmp/logs')",
    "select * from sqlite_scan('/tmp/x.db', 'y')",
    "select * from read_parquet('https://example.com/x.parquet')",
    "select * from duckdb_secrets()",
    "select * from query('copy (select 1) to ''/tmp/out.csv''')",
]


@pytest.mark.parametrize("statement", FORBIDDEN)
def test_a_statement_can_neither_leave_nor_change_the_store(original, statement):
    with pytest.raises(QueryError) as error:
        sql(original, statement)
    assert "\n" not in str(error.value)


OVERWRITES = [
    "copy (select 1) to '{}'",
    "explain analyze copy (select 1) to '{}'",
    "with x as (copy (select 1) to '{}') select * from x",
    "with x as (copy (select 1) to '{}' (use_tmp_file false)) select * from x",
    "with x as materialized (copy (select 1) to '{}' (format parquet, use_tmp_file false)) select 1",
    "select * from (with x as (copy (select 1) to '{}' (use_tmp_file false)) select * from x)",
    "select * from query('with x as (copy (select 1) to ''{}'' (use_tmp_file false)) select * "
    "from x')",
]


@pytest.mark.parametrize("statement", OVERWRITES)
def test_a_statement_cannot_overwrite_a_shard(store, statement):
    path = store.files("stats/s")[0].resolve()
    before = path.read_bytes()
    with pytest.raises(QueryError):
        sql(store, statement.format(path))
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_only_the_tables_that_a_statement_names_are_verified_and_can_be_read(store):
    samples, stats = store.files("samples")[0], store.files("stats/s")[0].resolve()
    data = bytearray(samples.read_bytes())
    data[len(data) // 3] ^= 1
    samples.write_bytes(data)
    assert sql(store, "select count(*) as n from STATS").num_rows == 1
    with pytest.raises(DamageError, match="was changed"):
        sql(store, "select prompt from samples")
    assert sql(store, f"select count(*) as n from read_parquet('{stats}')").num_rows == 1
    with pytest.raises(QueryError, match="Cannot access file"):
        sql(
            store,
            f"select * from read_parquet('{samples.resolve()}')".replace("samples/", "sample?/"),
        )
    with pytest.raises(DamageError, match="was changed"):
        sql(store, "select * from query_table('sam' || 'ples')")


def test_a_file_that_is_no_parquet_is_damage_where_it_is_asked_for_and_nowhere_else(store):
    store.files("stats/s")[0].write_bytes(b"rubbish")
    assert sql(store, "select prompt from samples").num_rows == 3
    with pytest.raises(DamageError, match=r"stats/s/.* has 7 bytes"):
        sql(store, "select feature from stats")
    with pytest.raises(DamageError, match=r"table stats cannot be opened .*Run 'featurestore"):
        connect(store, verify=False)


def test_what_duckdb_calls_a_select_is_answered_in_its_order(original):
    assert sql(original, "from range(1000) as t(i) order by i desc")["i"].to_pylist() == list(
        range(999, -1, -1)
    )
    assert sql(original, "select 1 as a, 2 as a, 3 as a").column_names == ["a", "a_1", "a_2"]
    assert "stats" in sql(original, "show tables")["name"].to_pylist()
    for statement in ("summarize stats", "describe select 1", "values (1); -- end", "table saes"):
        assert sql(original, statement).num_rows


def test_hooks_of_different_sizes_share_a_view(store):
    for hook, positions, d_in in (("a", 2, 3), ("b", 4, 1)):
        size = {"featurestore.height": "1", "featurestore.width": str(positions)}
        schema = activations_schema(positions, d_in).with_metadata(size)
        values = pa.array(
            [[[0.5] * d_in] * positions], pa.list_(pa.list_(pa.float32(), d_in), positions)
        )
        row = [
            pa.array([value], schema.field(i).type) for i, value in enumerate((7, 0, 981.0, "cond"))
        ]
        store.append(
            f"activations/{hook}",
            "0",
            pa.Table.from_arrays([*row, values.cast(schema[4].type)], schema=schema),
            [7],
            made_by={},
        )
    found = sql(
        store,
        "select hook, len(activation) as n, activation[1] as x from activations order by hook",
    ).to_pylist()
    assert found == [{"hook": "a", "n": 2, "x": [0.5] * 3}, {"hook": "b", "n": 4, "x": [0.5]}]


@pytest.mark.parametrize("name", ["it's", "a[1]b", "st*r", "q?x", "x=1", "a{b,c}", "ü ❄"])
def test_a_store_may_lie_anywhere(original, tmp_path, name):
    from featurestore import Store

    store = Store.open(shutil.copytree(original.root, tmp_path / name))
    assert sql(store, "select * from samples").column_names[:4] == [
        "sample_id",
        "prompt",
        "seed",
        "style",
    ]


def test_an_unknown_column_or_table_offers_the_near_ones(original):
    with pytest.raises(QueryError, match="Did you mean 'style'"):
        sql(original, "select stile from samples")
    with pytest.raises(QueryError, match='Did you mean "samples"'):
        sql(original, "select * from sampels")
    with pytest.raises(QueryError, match=r"Did you mean 'style'"):
        sql(original, "select samples.styel from samples")
    with pytest.raises(QueryError, match=r"must appear in the GROUP BY clause.*Either add it"):
        sql(original, "select style, count(*) from samples")
    with pytest.raises(QueryError, match=r"Parser Error: syntax error at or near"):
        sql(original, "select * form samples")


def test_python_variables_are_out_of_reach(original):
    secret = __import__("pyarrow").table({"x": [1]})
    assert secret.num_rows == 1
    with pytest.raises(QueryError, match="secret"):
        sql(original, "select * from secret")


def test_damage_is_found_before_duckdb_reads_it(store):
    path = store.files("stats/s")[0]
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamageError, match=r"stats/s/.*was changed.*Run 'featurestore verify"):
        sql(store, "select sum(sum) from stats")


def test_a_file_without_a_record_is_not_seen(store):
    shutil.copy(store.files("stats/s")[0], store.root / "stats/s/00000009-0000000000000000.parquet")
    n = store.records("stats/s")[0].rows
    assert sql(store, "select count(*) as n from stats").to_pylist() == [{"n": n}]


def test_a_connection_is_for_free_use(original):
    with connect(original) as connection:
        assert isinstance(connection, duckdb.DuckDBPyConnection)
        assert connection.sql("select max(step) from stats").fetchall() == [(2,)]


@pytest.mark.parametrize(
    "statement, place",
    [
        ("select stile from samples", "line 1, column 8: stile"),
        ("-- why\n\nselect style,\n  stile from samples", "line 4, column 3: stile"),
        ("select 'ü', stile from samples", "line 1, column 13: stile"),
        ("select * form samples", "line 1, column 15: samples"),
        (f"select {'1 + ' * 60} stile {'+ 1' * 60} from samples", "line 1, column 249: stile"),
        ("select 1\nfrom sampels", "line 2, column 6: sampels"),
    ],
)
def test_an_error_says_where_in_the_statement(original, statement, place):
    with pytest.raises(QueryError) as error:
        sql(original, statement)
    assert str(error.value).endswith(f" ({place})")


def test_labels_and_labelled_views_of_a_user(store):
    assert sql(
        store, "select family, count(*) as n from labels group by all order by 1"
    ).to_pylist() == [
        {"family": "object", "n": 2},
        {"family": "style", "n": 3},
    ]
    joined = sql(
        store, "select style, sum(sum) as n from labelled_stats group by all order by 1"
    ).to_pylist()
    z = random_codes(0, samples=3).sum((1, 2, 3))
    assert joined == [{"style": "a", "n": z[0] + z[2]}, {"style": "b", "n": z[1]}]
    samples = store.files("samples")[0]
    samples.write_bytes(samples.read_bytes()[:-1] + b"x")
    with pytest.raises(DamageError):
        sql(store, "select 1 from labels")


def test_a_query_beyond_its_memory_spills_or_says_so(original, tmp_path):
    statement = (
        "select count(*) as n from (select distinct i, i * 7 as j, hash(i) from "
        "range(3000000) as r(i))"
    )
    assert sql(original, statement, memory_limit="60MB").to_pylist() == [{"n": 3_000_000}]
    with pytest.raises(QueryError, match=r"Out of Memory Error: .*") as error:
        sql(original, "select list(i) from range(30000000) as r(i)", memory_limit="30MB")
    assert "\n" not in str(error.value)


def test_only_the_first_rows_are_returned_in_the_order_of_the_statement(tmp_path):
    store = make_store(
        tmp_path / "store", random_codes(0, samples=4), {"style": ["a", "b", "a", "b"]}
    )
    statement = "select feature, step from stats order by feature desc, step; -- all"
    every = sql(store, statement)
    assert sql(store, statement, rows=7).equals(every.slice(0, 7).combine_chunks())
    assert sql(store, statement, rows=10**6).equals(every)


def test_another_thread_can_interrupt_a_statement(tmp_path):
    import threading

    from queries.connection.session import watched

    store = make_store(tmp_path / "store", random_codes(0, samples=2), {"style": ["a", "b"]})
    opened = []
    said = []

    def run():
        with watched(opened.append), pytest.raises(QueryError, match="INTERRUPT") as raised:
            sql(store, "select count(*) from range(1000000000000) a where a.range % 7 = 3")
        said.append(raised.value)

    thread = threading.Thread(target=run)
    thread.start()
    while thread.is_alive():
        for connection in opened:
            connection.interrupt()
        thread.join(0.05)
    assert said
