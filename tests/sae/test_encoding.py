import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import featurestore.format.activations
from featurestore.errors import DiskError, SAEError, UsageError
from featurestore.format.schemas import CODES, STATS, schema_id
from featurestore.maintenance.compact import compact
from featurestore.maintenance.verify import verify
from featurestore.saes import commit_sae
from featurestore.store import Store
from sae.checkpoint import config_bytes, store_sae, weights_bytes
from sae.codes import encode_rows
from sae.encoding import encode
from tests.builders.saes import HOOK, RUN, add_shard, make_store, random_sae
from tests.builders.trees import same_tree


def put_sae(store, name="a", **kwargs):
    """Commit a random SAE of ``HOOK``."""
    sae = random_sae(hook=HOOK, **{"model_hash": "bf16:bb", **kwargs})
    files = {"config.json": config_bytes(sae.config), "sae.safetensors": weights_bytes(sae)}
    commit_sae(store, name, files, {"test": kwargs.get("seed", 0)})
    return sae


@pytest.fixture(scope="module")
def encoded(tmp_path_factory):
    store = make_store(tmp_path_factory.mktemp("encode") / "store", branches=("cond", "uncond"))
    put_sae(store)
    assert encode(store, "a", "cpu", progress=False) == 3
    return store


def dense(store, shard):
    sae = store_sae(store, "a")
    x = torch.from_numpy(np.array(shard.rows()).astype(np.float32))
    return torch.stack([sae.encode_dense(row) for row in x]).numpy()


def table(store, kind, record):
    return pq.read_table(store.root / kind / "a" / f"{record.shard}.parquet", partitioning=None)


def test_shards_and_schemas(encoded):
    activations = encoded.records(f"activations/{HOOK}")
    for kind, schema in (("codes", CODES), ("stats", STATS)):
        records = encoded.records(f"{kind}/a")
        assert [(r.shard, r.sample_ids) for r in records] == [
            (r.shard, r.sample_ids) for r in activations
        ]
        assert {r.schema for r in records} == {schema_id(schema)}
        metadata = table(encoded, kind, records[0]).schema.metadata
        expected = {"sae": "a", "hook": HOOK, "height": "4", "width": "4", "n_latents": "40"}
        found = {
            key.decode().removeprefix("featurestore."): value.decode()
            for key, value in metadata.items()
        }
        assert found.items() >= expected.items()
        assert found["sae_hash"] == records[0].made_by["sae_hash"]
    assert verify(encoded, deep=True) == []
    assert "codes.a" in (encoded.root / "README.md").read_text()


def test_codes_are_those_of_the_sae_row_by_row(encoded):
    for shard in encoded.activations(HOOK):
        rows = table(encoded, "codes", shard.record).to_pylist()
        assert len(rows) == shard.n_rows
        for i, (row, z) in enumerate(zip(rows, dense(encoded, shard), strict=True)):
            assert (row["sample_id"], row["step"], row["timestep"], row["branch"]) == (
                shard.sample_id[i], shard.step[i], shard.timestep[i], shard.branch[i],
            )  # fmt: skip
            assert row["features"] == [np.flatnonzero(position).tolist() for position in z]
            for values, position in zip(row["values"], z, strict=True):
                np.testing.assert_array_equal(
                    np.array(values, np.float16), position[position > 0].astype(np.float16)
                )


def test_statistics_equal_the_naive_ones_in_their_order(encoded):
    for shard in encoded.activations(HOOK):
        order = {sample: i for i, sample in enumerate(shard.record.sample_ids)}
        expected = []
        for i, z in enumerate(dense(encoded, shard)):
            for f in np.flatnonzero(z.any(0)):
                key = (shard.step[i], shard.branch[i] != "cond", order[shard.sample_id[i]], f)
                total = np.float32(z[:, f].astype(np.float64).sum())
                values = (
                    shard.sample_id[i],
                    shard.timestep[i],
                    shard.branch[i],
                    total,
                    z[:, f].max().astype(np.float16).astype(np.float32),
                    (z[:, f] > 0).sum(),
                )
                expected.append((key, values))
        expected.sort(key=lambda pair: pair[0])
        rows = table(encoded, "stats", shard.record).to_pylist()
        names = ("sample_id", "timestep", "branch", "sum", "max", "n_positions")
        assert [(r["step"], r["feature"]) for r in rows] == [
            (key[0], key[3]) for key, _ in expected
        ]
        assert [tuple(r[name] for name in names) for r in rows] == [
            values for _, values in expected
        ]


def test_encoding_again_does_nothing_and_new_shards_are_added(tmp_path):
    store = make_store(tmp_path / "s", n_shards=1)
    put_sae(store)
    assert [encode(store, "a", "cpu", progress=False) for _ in range(2)] == [1, 0]
    add_shard(store, 5)
    assert encode(store, "a", "cpu", progress=False) == 1


def test_ranks_share_the_shards_and_write_what_one_process_does(encoded, tmp_path):
    store = make_store(tmp_path / "store", branches=("cond", "uncond"))
    put_sae(store)
    assert encode(store, "a", "cpu", progress=False, rank=1, world_size=2) == 1
    assert encode(store, "a", "cpu", progress=False, rank=0, world_size=2) == 2
    same_tree(store.root, encoded.root)
    with pytest.raises(UsageError, match="rank 2 of 2: expected 0 to 1"):
        encode(store, "a", "cpu", progress=False, rank=2, world_size=2)


def test_an_interrupted_encoding_resumes_to_the_same_bytes(encoded, tmp_path, monkeypatch):
    store = make_store(tmp_path / "s", branches=("cond", "uncond"))
    put_sae(store)
    append, calls = Store.append, []

    def interrupted(self, *args, **named):
        calls.append(args[0])
        if len(calls) == 4:
            raise KeyboardInterrupt
        return append(self, *args, **named)

    monkeypatch.setattr(Store, "append", interrupted)
    with pytest.raises(KeyboardInterrupt):
        encode(store, "a", "cpu", progress=False)
    monkeypatch.undo()
    # Two shards are under way at a time: the one that was not interrupted may have been finished.
    assert encode(store, "a", "cpu", progress=False) in (1, 2)
    for table in ("codes/a", "stats/a"):
        for one, other in zip(store.files(table), encoded.files(table), strict=True):
            assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize(
    ("threads", "bytes_of_pre"), [(1, 2**30), (4, 2**30), (4, 2 * 16 * 40 * 4), (4, 1)]
)
def test_bytes_do_not_depend_on_how_many_rows_are_encoded_at_a_time(
    encoded, tmp_path, monkeypatch, threads, bytes_of_pre
):
    store = make_store(tmp_path / "s", branches=("cond", "uncond"))
    put_sae(store)
    monkeypatch.setattr("sae.encoding._PRE_BYTES", bytes_of_pre)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        encode(store, "a", "cpu", progress=False)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for table in ("codes/a", "stats/a"):
        for one, other in zip(store.files(table), encoded.files(table), strict=True):
            assert one.read_bytes() == other.read_bytes()


def test_after_an_error_no_further_shard_is_begun(tmp_path, monkeypatch):
    store = make_store(tmp_path / "s", n_shards=30)
    put_sae(store)
    append = Store.append

    def full(self, table, *args, **named):
        if table.startswith("codes"):
            raise DiskError("full")
        return append(self, table, *args, **named)

    monkeypatch.setattr(Store, "append", full)
    read, began = featurestore.format.activations.open_shard, []
    monkeypatch.setattr(
        "sae.encoding.open_shard",
        lambda root, record: began.append(record.shard) or read(root, record),
    )
    with pytest.raises(DiskError, match="full"):
        encode(store, "a", "cpu", progress=False)
    assert len(began) < 30
    assert store.names("codes") == []


def test_a_row_does_not_depend_on_its_neighbours():
    sae, x = random_sae(d_in=16, n_latents=512, k=8).requires_grad_(False), torch.randn(7, 16, 16)
    whole = encode_rows(sae, x)
    parts = [encode_rows(sae, row[None].numpy()) for row in x]
    assert whole.features.to_pylist() == [part.features.to_pylist()[0] for part in parts]
    assert whole.values.to_pylist() == [part.values.to_pylist()[0] for part in parts]
    np.testing.assert_array_equal(whole.sum, np.concatenate([part.sum for part in parts]))


def test_a_row_does_not_depend_on_the_number_of_threads():
    """A product of this shape does, in its last digits, on some processors."""
    sae, x = (
        random_sae(d_in=1280, n_latents=512, k=8).requires_grad_(False),
        torch.randn(2, 64, 1280),
    )
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            found.append(encode_rows(sae, x))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert all(
        one.values.equals(found[0].values) and (one.sum == found[0].sum).all() for one in found
    )


def test_rows_in_which_nothing_fires_are_kept():
    sae = random_sae().requires_grad_(False)
    sae.b_enc.fill_(-1e3)
    found = encode_rows(sae, torch.randn(2, 3, 16))
    assert found.features.to_pylist() == [[[], [], []]] * 2
    assert found.features.type == CODES.field("features").type
    assert len(found.feature) == 0


@pytest.mark.parametrize("bias", [1e5, float("inf")])
def test_a_value_that_float16_cannot_hold_is_named(bias):
    sae = random_sae().requires_grad_(False)
    sae.b_enc[11] = bias
    with pytest.raises(
        SAEError, match=r"latent 11 has an activation of .*, codes hold at most 65504 \(float16\)"
    ):
        encode_rows(sae, torch.randn(2, 3, 16))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"io": "difference"},
            r"trained on the difference of .* with 16 channels, .* holds its output with 16",
        ),
        ({"d_in": 8}, r"trained on the output of .* with 8 channels, .* holds its output with 16"),
        (
            {"model_hash": "f16:cc"},
            r"trained on model f16:cc…, the activations of .* are of f16:aa",
        ),
    ],
)
def test_an_sae_of_other_activations_is_refused(tmp_path, config, message):
    store = make_store(tmp_path / "s", n_shards=1)
    put_sae(store, **config)
    with pytest.raises(SAEError, match=message):
        encode(store, "a", "cpu", progress=False)
    assert store.names("codes") == []


def test_an_sae_of_a_hook_without_activations_is_refused(tmp_path):
    store = Store.create(tmp_path / "s", RUN)
    add_shard(store, 0, hook="unet.mid_block")
    put_sae(store)
    with pytest.raises(
        SAEError,
        match=r"no activations of hook 'unet.up_blocks.1.attentions.1'. Known: unet.mid_block",
    ):
        encode(store, "a", "cpu", progress=False)


def test_codes_of_another_sae_of_that_name_are_not_mixed(tmp_path):
    store = make_store(tmp_path / "s", n_shards=1)
    put_sae(store)
    encode(store, "a", "cpu", progress=False)
    record = store.record("saes", "a")
    (store.root / record.location).unlink()
    put_sae(store, seed=1)
    add_shard(store, 1)
    with pytest.raises(SAEError, match=r"codes/a of .* was made by another SAE of that name"):
        encode(store, "a", "cpu", progress=False)


def test_shards_that_were_compacted_are_not_encoded_again(tmp_path):
    store = make_store(tmp_path / "store")
    put_sae(store)
    assert encode(store, "a", "cpu", progress=False) == 3
    rows = store.arrow("stats/a").to_pylist()
    compact(store)
    assert len(store.records("codes/a")) == 1
    assert encode(store, "a", "cpu", progress=False) == 0
    add_shard(store, 3)
    assert encode(store, "a", "cpu", progress=False) == 1
    assert store.arrow("stats/a").to_pylist()[: len(rows)] == rows
    assert verify(store, deep=True) == []
