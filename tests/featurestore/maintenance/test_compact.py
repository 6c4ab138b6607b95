"""Compaction changes nothing that anybody sees, whatever happens meanwhile."""

import subprocess
import sys

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from featurestore import Store
from featurestore.card import write_card
from featurestore.errors import DamageError, TakenError
from featurestore.format import checksums, durable
from featurestore.maintenance import compact as module
from featurestore.maintenance.compact import compact
from featurestore.maintenance.repair import repair
from featurestore.maintenance.verify import verify
from featurestore.store import shards
from queries import ask
from queries.connection.statement import sql
from tests.builders.cli import run
from tests.builders.codes import importance
from tests.builders.many_shards import many_shards

STYLES = ["neon", "sketch", "neon", "sketch", "neon", "sketch"]
TABLES = ("samples", "codes/s", "stats/s")


@pytest.fixture
def store(tmp_path):
    made = many_shards(tmp_path / "s", STYLES)
    write_card(made)
    return made


def seen(store):
    """All that a user gets out of a store."""
    rows = {table: store.arrow(table).replace_schema_metadata(None) for table in TABLES}
    answers = [
        sql(store, "select * from stats"),
        sql(store, "select * from labelled_codes where style = 'sketch' order by all"),
        ask(store, "top_samples", {"sae": "s", "feature": 1}),
        importance(store, "s", "style"),
    ]
    return rows, [answer.to_pylist() for answer in answers]


def test_rows_their_order_answers_and_scores_stay_to_the_last_bit(store):
    before, ids = seen(store), [i for r in store.records("stats/s") for i in r.sample_ids]
    names = store.shard_names("stats/s")
    found = compact(store)
    assert {(one.table, one.before, one.after, one.retired, one.waiting) for one in found} == {
        (table, 7, 1, 7, 0) for table in TABLES
    }
    after = seen(store)
    assert before[0] == after[0] and before[1] == after[1]
    (record,) = store.records("stats/s")
    assert list(record.sample_ids) == ids and set(record.contents.replaces) == names
    assert verify(store, deep=True) == [] and compact(store) == []
    assert len(list((store.root / "stats/s").iterdir())) == 1


def test_statistics_are_compared_with_codes_wherever_these_are(store, monkeypatch):
    """The codes are compacted into other shards than the statistics."""
    smallest = min(record.files[0].bytes for record in store.records("codes/s"))
    monkeypatch.setattr(module, "LEAST_BYTES", smallest)
    rows, record = store.arrow("stats/s"), store.records("stats/s")[2]
    compact(store)
    monkeypatch.undo()
    compact(store)
    assert verify(store, deep=True) == []
    wrong = rows.filter(pc.is_in(rows["sample_id"], pa.array(record.sample_ids))).slice(1)
    store.append("stats/s", "00000099-0123456789abcdef", wrong, record.sample_ids, made_by={})
    (problem,) = verify(store, deep=True)
    assert "disagrees with the codes in 1 of" in problem.what and problem.damage


def test_others_that_read_keep_their_files_and_the_next_call_removes_them(store, capsys):
    reader = Store.open(store.root)
    records = reader.records("stats/s")
    del store
    status, out, _ = run(capsys, "compact", reader.root)
    assert status == 0 and "stats/s: 7 shards are 1 now." in out
    assert "21 files that count no more stay until nobody reads the store" in out
    checksums.forget()
    reader.check(records)
    assert verify(reader, deep=True) == []
    card = (reader.root / "README.md").read_text()
    assert "stats/s/*.parquet" not in card.partition("---\n\n")[0] and "-with-" in card
    assert sql(reader, "select count(*) as n from samples").to_pylist() == [{"n": 13}]
    assert len(reader.arrow("samples")) == 13
    root = reader.root
    del reader
    _, out, _ = run(capsys, "compact", root)
    assert "stats/s: 1 shards are 1 now." in out and "stay" not in out
    assert len(list((root / "stats/s").iterdir())) == 1
    assert "stats/s/*.parquet" in (root / "README.md").read_text()
    assert run(capsys, "compact", root)[1] == "Nothing to compact.\n"


def test_shards_that_are_added_later_are_put_in_and_old_names_are_never_written_again(store):
    rows = store.arrow("stats/s")
    old = store.records("stats/s")[2]
    part = store.arrow("stats/s").slice(0, 3)
    compact(store)
    assert store.append("stats/s", old.shard, rows, old.sample_ids, made_by={}).covers
    assert store.arrow("stats/s").num_rows == rows.num_rows
    store.append("stats/s", "00000099-0123456789abcdef", part, [7], made_by={})
    compact(store)
    (record,) = store.records("stats/s")
    assert record.rows == rows.num_rows + 3 and old.shard in record.contents.replaces
    assert store.done("stats/s", old.shard) == record
    assert verify(store) == []


def test_what_differs_or_is_large_is_not_put_together(store, monkeypatch):
    first, second, *_ = store.records("stats/s")
    monkeypatch.setattr(module, "MOST_BYTES", first.files[0].bytes + second.files[0].bytes)
    part = store.arrow("samples").slice(0, 1)
    store.append("samples", "00000099-0123456789abcdef", part, [9], made_by={"other": "1"})
    compact(store)
    found = store.records("stats/s")
    assert [len(record.covers) for record in found][:1] == [3] and 1 < len(found) < 7
    assert [r.made_by for r in store.records("samples")] == [{}] * (
        len(store.records("samples")) - 1
    ) + [{"other": "1"}]
    assert verify(store) == []


def test_damage_stops_it_and_what_was_there_stays(store):
    path = store.files("stats/s")[3]
    data = path.read_bytes()
    path.write_bytes(data[:50] + bytes([data[50] ^ 1]) + data[51:])
    with pytest.raises(DamageError, match="was changed"):
        compact(store)
    path.write_bytes(data)
    assert {r.table for r in store.records("stats/s")} and len(store.records("stats/s")) == 7


def test_two_at_once_are_one(store):
    claim = durable.Claim.take(store.root / ".work/claims/compact")
    with claim, pytest.raises(TakenError, match="another process compacts it just now"):
        compact(store)


class Stop(BaseException):
    pass


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """All that a user gets out of the store, and its records once it is compacted."""
    made = many_shards(tmp_path_factory.mktemp("expected") / "s", STYLES)
    write_card(made)
    got = seen(made)
    compact(made)
    return got, {table: made.records(table) for table in TABLES}


@pytest.mark.parametrize("step", range(0, 48, 5))
def test_stopped_anywhere_it_is_sound_and_the_next_call_ends_the_same(store, expected, step):
    """Each call that changes the disk is the last one once."""
    before, compacted = expected
    importance(store, "s", "style")  # Keeps sums, as asking for all of it does.
    calls = 0

    def stop(name):
        real = getattr(durable.files, name)

        def counted(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls > step:
                raise Stop
            return real(*args, **kwargs)

        return counted

    with pytest.MonkeyPatch.context() as patch:
        for name in ("sync_directory", "sync_file"):
            patch.setattr(durable.files, name, stop(name))
        try:
            compact(store)
        except Stop:
            pass
        else:
            assert step > 5
    checksums.forget()
    assert [p for p in verify(store) if p.damage] == []
    assert seen(store)[1] == before[1]
    compact(store)
    assert {table: store.records(table) for table in TABLES} == compacted
    assert seen(store) == before and [p for p in verify(store, deep=True) if p.damage] == []


def test_a_lost_record_of_a_compacted_shard_is_made_anew(store):
    compact(store)
    (record,) = store.records("codes/s")
    location = store.root / record.location
    data = location.read_bytes()
    location.unlink()
    repair(store.root)
    assert location.read_bytes() == data and store.records("codes/s") == [record]


READ = """
import sys
from featurestore import Store
from queries.connection.statement import sql
for _ in range(int(sys.argv[2])):
    store = Store.open(sys.argv[1])
    assert sql(store, "select count(*) as n, sum(seed) as s from samples").to_pylist() == [{"n": 13, "s": 0}]
    assert store.arrow("stats/s").num_rows == int(sys.argv[3])
"""


def test_readers_and_writers_of_other_processes_notice_nothing(store):
    rows = store.arrow("stats/s").num_rows
    root = store.root
    del store
    readers = [
        subprocess.Popen(
            [sys.executable, "-c", READ, str(root), "6", str(rows)], stderr=subprocess.PIPE
        )
        for _ in range(2)
    ]
    compact(Store.open(root))
    for process in readers:
        _, err = process.communicate()
        assert process.returncode == 0, err.decode()
    again = Store.open(root)
    assert again.arrow("stats/s").num_rows == rows
    del again
    # Which tables the first call had to leave files of depends on when the readers came.
    assert [one for one in compact(Store.open(root)) if one.waiting] == []
    for table in TABLES:
        assert {r.shard for r in Store.open(root).records(table)} == {
            path.stem for path in (root / table).glob("*.parquet")
        }
    assert shards.find_done(root, "stats/s", "x") is None
