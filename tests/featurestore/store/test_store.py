import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore import Store
from featurestore.errors import DamageError, NotAStoreError, RunError, TableError, VersionError
from featurestore.format.canonical import sample_id, sealed, shard_name
from featurestore.format.records import read_record
from featurestore.format.schemas import STATS, activations_schema
from featurestore.maintenance.verify import verify

HOOK = "unet.up_blocks.1.attentions.1"
TABLE = f"activations/{HOOK}"
RUN = {"model": "m", "n_steps": 3}


def activation_rows(ids, steps=3, positions=16, d_in=8, seed=0, dtype="float16"):
    schema = activations_schema(positions, d_in, dtype)
    n = len(ids) * steps
    values = np.random.default_rng(seed).standard_normal((n, positions, d_in)).astype(dtype)
    outer = schema.field("activation").type
    nested = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), type=outer.value_type)
    step = np.tile(np.arange(steps, dtype=np.int32), len(ids))
    columns = [
        pa.array(np.repeat(ids, steps)),
        pa.array(step),
        pa.array((981 - 20 * step).astype(np.float32)),
        pa.array(["cond"] * n),
        pa.FixedSizeListArray.from_arrays(nested, type=outer),
    ]
    metadata = {"featurestore.hook": HOOK, "featurestore.height": "4", "featurestore.width": "4"}
    return pa.Table.from_arrays(columns, schema=schema.with_metadata(metadata)), values


@pytest.fixture
def store(tmp_path):
    return Store.create(tmp_path / "store", RUN)


def append(store, ids, index=0, **kwargs):
    rows, values = activation_rows(ids, **kwargs)
    return store.append(
        TABLE, shard_name(index, ids), rows, ids, made_by={"featurestore": "test"}
    ), values


def test_activations_are_mapped_and_equal_what_was_written(store):
    _, values = append(store, [5, 7])
    (shard,) = store.activations(HOOK)
    assert shard.mapped
    assert not shard.rows().flags.owndata
    np.testing.assert_array_equal(shard.rows(), values)
    np.testing.assert_array_equal(shard.rows(np.array([4, 0])), values[[4, 0]])
    assert shard.sample_id.tolist() == [5, 5, 5, 7, 7, 7]
    assert shard.metadata["height"] == "4"


def test_several_row_groups_are_mapped(store, monkeypatch):
    monkeypatch.setattr("featurestore.format.parquet.layout.ROW_GROUP_BYTES", 4 * 16 * 8 * 2)
    _, values = append(store, [1, 2, 3])
    (shard,) = store.activations(HOOK)
    assert shard.mapped
    assert [len(group) for group in shard.groups] == [4, 4, 1]
    np.testing.assert_array_equal(shard.rows(), values)


def test_float32_activations_are_mapped(store):
    _, values = append(store, [1], dtype="float32")
    (shard,) = store.activations(HOOK)
    assert shard.mapped
    assert shard.rows().dtype == np.float32
    np.testing.assert_array_equal(shard.rows(), values)


@pytest.mark.parametrize(
    "options", [{"compression": "zstd"}, {"data_page_size": 64}, {"use_dictionary": True}]
)
def test_other_layouts_are_decoded_not_mapped(store, options):
    rows, values = activation_rows([1, 2])
    path = store.root / TABLE / "other.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(rows, path, **({"compression": "none", "use_dictionary": False} | options))
    from featurestore.format.activations import read_shard
    from featurestore.format.records import FileEntry, Record

    entry = FileEntry(f"{TABLE}/other.parquet", path.stat().st_size, "")
    shard = read_shard(store.root, Record(TABLE, "other", "", rows.num_rows, (1, 2), (entry,)))
    assert not shard.mapped
    np.testing.assert_array_equal(shard.rows(), values)


def test_bytes_are_a_function_of_the_work_item(tmp_path):
    records = [append(Store.create(tmp_path / name, RUN), [1, 2])[0] for name in "ab"]
    assert records[0] == records[1]
    assert records[0].to_bytes() == records[1].to_bytes()


def test_a_shard_that_exists_is_left_as_it_is(store):
    first, _ = append(store, [1])
    second, _ = append(store, [1], seed=9)
    assert second == first
    assert store.committed_samples(TABLE) == {1}


def test_rows_with_other_columns_are_refused_by_name(store):
    append(store, [1])
    with pytest.raises(
        TableError,
        match=r"activation: fixed_size_list.*there, fixed_size_list.*here.*Nothing was changed",
    ):
        append(store, [2], d_in=9)


def test_appending_takes_no_longer_in_a_table_of_many_shards(store, monkeypatch):
    for i in range(20):
        append(store, [i], index=i)
    read = []
    monkeypatch.setattr(
        "featurestore.store.shards.read_record",
        lambda *where: read.append(where) or read_record(*where),
    )
    append(store, [20], index=20)
    assert len(read) == 1


def test_other_run_settings_are_refused(store):
    with pytest.raises(RunError, match=r"holds a run with n_steps = 3, this one has 4"):
        Store.create(store.root, {**RUN, "n_steps": 4})


def test_opening_what_is_no_store(tmp_path):
    with pytest.raises(NotAStoreError, match=r"no store at .*absent \(no such directory\)"):
        Store.open(tmp_path / "absent")
    (tmp_path / "file.txt").write_text("x")
    with pytest.raises(NotAStoreError, match="exists and is no store"):
        Store.create(tmp_path, RUN)


def test_a_store_of_another_version_names_both(store):
    mark = {"format": "featurestore", "format_version": 3, "run": RUN}
    (store.root / "manifest/store.json").write_bytes(sealed(mark))
    with pytest.raises(VersionError, match="format version 3, this program reads version 1 and 2"):
        Store.open(store.root)


def test_an_unknown_table_offers_the_near_ones(store):
    append(store, [1])
    with pytest.raises(
        TableError, match=r"no table 'activations/unet\.up_blocks\.1\.attentions\.0'.*Did you mean"
    ):
        store.arrow("activations/unet.up_blocks.1.attentions.0")


def test_sample_ids_are_stable():
    assert sample_id("run", "a cat", 1) == sample_id("run", "a cat", 1) >= 0
    assert len({sample_id(r, p, s) for r in "ab" for p in "cd" for s in range(3)}) == 12


def test_a_good_store_has_no_problems(store):
    append(store, [1])
    append(store, [2], index=1)
    assert verify(store, deep=True) == []


@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_every_damaged_file_is_reported(store, where):
    damaged = [append(store, [i], index=i)[0].files[0].path for i in (1, 2)]
    for path in damaged:
        data = bytearray((store.root / path).read_bytes())
        data[{"first": 0, "middle": len(data) // 2, "last": -1}[where]] ^= 1
        (store.root / path).write_bytes(data)
    problems = verify(store)
    assert {p.path for p in problems if p.damage} == set(damaged)
    assert all("was changed" in p.what for p in problems)


def test_a_missing_and_a_truncated_file_are_reported_and_refused(store):
    paths = [store.root / append(store, [i], index=i)[0].files[0].path for i in (1, 2)]
    paths[0].unlink()
    paths[1].write_bytes(paths[1].read_bytes()[:-10])
    what = {p.path: p.what for p in verify(store)}
    assert [what[str(p.relative_to(store.root))].split()[0] for p in paths] == ["is", "has"]
    with pytest.raises(DamageError, match=r"parquet is missing\. Run 'featurestore verify"):
        list(store.activations(HOOK))


def test_a_changed_record_is_reported(store):
    record, _ = append(store, [1])
    path = store.root / record.location
    path.write_text(path.read_text().replace('"rows":3', '"rows":4'))
    assert [p.path for p in verify(store) if p.damage] == [str(record.location)]
    with pytest.raises(DamageError, match="changed since it was written"):
        store.records(TABLE)


def test_leftovers_are_listed_and_are_no_damage(store):
    append(store, [1])
    (store.root / TABLE / "00000009-0123456789abcdef.parquet").write_bytes(b"PAR1")
    (store.root / TABLE / ".x.parquet.abc.tmp").write_bytes(b"PAR1")
    problems = verify(store)
    assert [p.damage for p in problems] == [False, False]
    assert store.committed_samples(TABLE) == {1}


def test_deep_verification_finds_values_that_cannot_be(store):
    values = {
        "sample_id": [1],
        "step": [0],
        "timestep": [981.0],
        "branch": ["cond"],
        "feature": [99],
        "sum": [1.0],
    }
    rows = pa.Table.from_pydict(values | {"max": [1.0], "n_positions": [1]}, schema=STATS)
    rows = rows.replace_schema_metadata({"featurestore.n_latents": "64"})
    store.append("stats/s", shard_name(0, [1]), rows, [1], made_by={})
    assert verify(store) == []
    assert [p.what for p in verify(store, deep=True)] == ["holds features outside 0…63"]


def test_records_are_readable_json(store):
    record, _ = append(store, [1])
    body = json.loads((store.root / record.location).read_text())
    assert body["rows"] == 3
    assert body["sample_ids"] == [1]
