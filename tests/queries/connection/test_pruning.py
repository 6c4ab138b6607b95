"""A statement touches the shards that it can need, and no other: the kernel tells which files are
opened."""

import random
import shutil

import pyarrow as pa
import pytest

from featurestore import Store
from featurestore.errors import DamageError
from featurestore.format import checksums
from featurestore.format.schemas import LABELS
from queries.connection.statement import sql
from tests.builders.many_shards import many_shards
from tests.builders.watch import Touched

STYLES = ["neon", "sketch", "it's", None, "neon\nand", "x"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Six shards of two samples; the last three are of step 0 and branch uncond."""
    return many_shards(tmp_path_factory.mktemp("made") / "s", STYLES)


@pytest.fixture
def store(made, tmp_path):
    """The same for each test, which may change it."""
    return Store.open(shutil.copytree(made.root, tmp_path / "s"))


@pytest.fixture
def opened(store):
    """Return a call that runs a statement and tells the numbers of the shards of each table that
    were opened."""
    folders = [store.root / table for table in ("samples", "stats/s", "codes/s")]
    touched = Touched(*folders)
    numbers = {
        store.root / entry.path: number
        for table in ("samples", "stats/s", "codes/s")
        for number, record in enumerate(store.records(table))
        for entry in record.files
    }

    def run(statement):
        checksums.forget()
        touched.files()
        rows = sql(store, statement).to_pylist()
        found = {}
        for path in touched.files():
            if path in numbers:
                table = path.parent.relative_to(store.root).as_posix().removesuffix("/s")
                found.setdefault(table, set()).add(numbers[path])
        return rows, found

    yield run
    touched.close()


def test_a_sample_is_looked_for_in_its_shard_only(store, opened):
    one = store.records("stats/s")[2].sample_ids[1]
    _, files = opened(f"select * from stats where sample_id = {one}")
    assert files == {"stats": {2}}
    rows, files = opened(f"select * from labelled_stats where sample_id = {one}")
    assert files == {"stats": {2}, "samples": {2}} and {row["style"] for row in rows} == {"sketch"}
    _, files = opened(f"select * from samples where sample_id in ({one}, {one + 2})")
    assert files == {"samples": {2, 3}}


def test_steps_and_branches_are_looked_for_where_they_are(opened):
    _, files = opened("select sum(sum) from stats where step >= 1")
    assert files == {"stats": {0, 1, 2, 3}}
    _, files = opened("select step from codes where branch = 'uncond' and step < 5")
    assert files == {"codes": {4, 5, 6}}
    assert opened("select max(step) from stats where step > 50")[1] == {}
    assert opened("select count(*) from stats where sae = 'other'")[0] == [{"count_star()": 0}]


@pytest.mark.parametrize(
    ("condition", "shards"),
    [
        ("style = 'neon'", {1}),
        ("style like 'ne%'", {1, 5}),
        ("style in ('sketch', 'x')", {2, 6}),
        ("style = 'it''s'", {3}),
        ("style = 'neon\nand'", {0, 1, 2, 3, 4, 5, 6}),
        ("style is null", {4}),
        ("style <> 'neon'", {0, 2, 3, 5, 6}),
        ("lower(style) = 'x'", {6}),
    ],
)
def test_concepts_are_looked_for_where_they_are(opened, condition, shards):
    rows, files = opened(f"select style from samples where {condition}")
    assert files == {"samples": shards}
    full, _ = opened(f"select style from (select * from samples offset 0) where {condition}")
    assert sorted(map(str, rows)) == sorted(map(str, full))
    if condition in ("style = 'neon'", "style in ('sketch', 'x')"):
        assert opened(f"select feature from labelled_stats where {condition}")[1] == {
            "samples": shards, "stats": shards}  # fmt: skip
        assert opened("select sample_id from labels where family = 'style' and concept = 'x'")[1] == {
            "samples": {6}}  # fmt: skip


def test_where_no_shard_can_be_meant_one_tells_the_columns(opened):
    rows, files = opened("select * from samples where style = 'absent'")
    assert rows == [] and len(files["samples"]) == 1


def test_rows_are_counted_by_the_records(opened):
    rows, files = opened("select count(*) as n from samples")
    assert rows == [{"n": 13}] and files == {}
    rows, files = opened(
        "select count(*) as n from stats, (select count(*) as m from stats) where m > 0"
    )
    assert files == {} and rows[0]["n"] > 0


def test_what_is_damaged_is_read_where_it_is_asked_for_only(store, opened):
    path = store.files("stats/s")[3]
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert opened("select sum(sum) from stats where branch = 'uncond'")[1] == {"stats": {4, 5, 6}}
    with pytest.raises(DamageError, match="was changed"):
        opened("select sum(sum) from stats where branch = 'cond'")


def test_a_corrected_label_is_found_where_its_sample_is(store, opened):
    one, _ = store.records("samples")[6].sample_ids
    rows = pa.Table.from_pylist(
        [{"sample_id": one, "version": 1, "family": "style", "concept": "neon"}], schema=LABELS
    )
    store.append("labels", "00000001", rows, [one], made_by={"version": 1, "families": ["style"]})
    rows, files = opened("select sample_id from samples where style = 'neon'")
    assert one in {row["sample_id"] for row in rows} and files["samples"] == {
        0,
        1,
        6,
    }  # the first tells the columns
    rows, files = opened("select distinct sample_id from labelled_stats where style = 'neon'")
    assert one in {row["sample_id"] for row in rows} and files["stats"] == {1, 6}


CONDITIONS = [
    "step < {n}", "step in (0, {n})", "not (step = {n})", "step between 1 and {n}", "branch = 'cond'", "branch <> 'cond'",
    "style = 'neon'", "style is null", "style is not null", "style > 'n'", "coalesce(style, 'x') = 'x'", "style is distinct from 'x'",
    "sample_id % 2 = {n} % 2", "sample_id > (select min(sample_id) from samples)", "feature < {n} * 3", "true",
]  # fmt: skip


@pytest.mark.parametrize("seed", range(40))
def test_any_condition_has_the_answer_that_all_shards_have(store, seed):
    """Against the same statement with every condition hidden from pruning."""
    rng = random.Random(seed)
    parts = [
        rng.choice(CONDITIONS).format(n=rng.randrange(3)) for _ in range(rng.choice([1, 2, 3]))
    ]
    where = parts[0]
    for part in parts[1:]:
        where = f"({where}) {rng.choice(['and', 'or', 'and not'])} ({part})"
    order = "order by sample_id, step, branch, feature"
    found = sql(store, f"select * from labelled_stats where {where} {order}")
    rows = sql(store, f"select *, {where} as hit from labelled_stats {order}")
    assert found.to_pylist() == [
        {k: v for k, v in row.items() if k != "hit"} for row in rows.to_pylist() if row["hit"]
    ]
