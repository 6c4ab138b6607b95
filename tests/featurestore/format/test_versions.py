"""Stores of every version of the format, as the program of that time wrote them."""

import hashlib
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from featurestore import Store
from featurestore.card import write_card
from featurestore.errors import DamageError
from featurestore.format.contents import hash_range
from featurestore.format.records import record_from
from featurestore.format.schemas import STATS
from featurestore.maintenance.repair import repair
from featurestore.maintenance.verify import verify
from queries.connection.statement import sql
from tests.builders.cli import run
from tests.builders.hostile import reseal

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def old(tmp_path):
    with tarfile.open(GOLDEN / "version-1.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    return Store.open(tmp_path / "version-1")


def test_a_store_of_version_1_is_read_as_before(old):
    assert verify(old, deep=True) == []
    assert sql(old, "select count(*) as n from samples").to_pylist() == [{"n": 3}]
    rows = sql(
        old, "select sum(s.sum) as v from labelled_stats s where style = 'neon' and step < 2"
    )
    assert rows.to_pylist() == [{"v": 3.0}]
    (shard,) = old.activations("unet.x")
    assert np.array_equal(shard.rows().reshape(-1), np.arange(96, dtype=np.float16) / 8)
    assert all(record.contents is None for t in old.tables() for record in old.records(t))


def test_info_tells_the_versions_of_the_store_and_of_its_shards(old, capsys):
    shards = sum(len(old.records(table)) for table in old.tables())
    assert f"(format 1, run {old.run_id})" in run(capsys, "info", old.root)[1]
    rows = pa.Table.from_pylist([], schema=STATS)
    old.append("stats/s", "00000003-x", rows, [], made_by={})
    told = f"(format 1, 1 of {shards + 1} shards format 2, run {old.run_id})"
    assert told in run(capsys, "info", old.root)[1]


def test_a_record_of_version_1_is_written_as_it_was(old):
    for path in (old.root / "manifest").rglob("*/*.json"):
        table = path.parent.relative_to(old.root / "manifest").as_posix()
        assert (
            record_from(path.read_bytes(), path, table, path.stem).to_bytes() == path.read_bytes()
        )


def test_a_lost_record_of_version_1_is_made_anew(old):
    write_card(old)  # brings the ledger up to date, which version 1 began without
    location = old.root / old.records("codes/s")[0].location
    data = location.read_bytes()
    location.unlink()
    repair(old.root)
    assert location.read_bytes() == data


def test_new_shards_of_an_old_store_tell_what_they_hold(old):
    rows = pa.Table.from_pylist(
        [
            {"sample_id": 1, "step": step, "timestep": 1.0, "branch": branch, "feature": 0, "sum": 1.0,
             "max": 1.0, "n_positions": 1}
            for step, branch in ((2, "cond"), (0, "uncond"))
        ],
        schema=STATS,
    )  # fmt: skip
    record = old.append("stats/s", "00000003-x", rows, [1], made_by={})
    assert record.contents.holds == {"step": [0, 2], "branch": ["cond", "uncond"]}
    assert old.records("stats/s")[-1] == record and verify(old) == []
    path = old.root / record.files[0].path
    ends = record.contents.ends
    assert [part.rows for part in record.contents.parts] == [2, 0] and ends[
        -1
    ] == path.stat().st_size
    data = path.read_bytes()
    for part, begin, end in zip(record.contents.parts, [0, *ends], ends, strict=False):
        assert part.sha256 == hashlib.sha256(data[begin:end]).hexdigest()
        assert part.sha256 == hash_range(path, begin, end)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["parts"][0].update(rows=3), "do not add up to 2 rows"),
        (lambda c: c["parts"][0].update(bytes=5), "do not add up to 2 rows"),
        (lambda c: c.update(parts=[]), "expected a list of parts"),
        (lambda c: c.update(holds={"step": [0, 0]}), "expected columns, each with a list"),
        (lambda c: c.update(holds={"step": [0, "x"]}), "expected columns, each with a list"),
        (lambda c: c.update(holds={"step": list(range(257))}), "expected columns, each"),
        (lambda c: c.update(replaces=["y"]), "does not go with the shards it replaces"),
        (lambda c: c.update(x=1), "a field 'x', which nothing knows"),
    ],
)
def test_contents_are_checked(old, change, message):
    rows = pa.Table.from_pydict({name: [0, 1] if name != "branch" else ["cond"] * 2 for name in STATS.names},
                                schema=STATS)  # fmt: skip
    record = old.append("stats/s", "00000003-x", rows, [0, 1], made_by={})
    reseal(old.root / record.location, lambda body: change(body["contents"]))
    with pytest.raises(DamageError, match=message):
        old.records("stats/s")
