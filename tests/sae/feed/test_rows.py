import hashlib

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from featurestore.errors import DamageError, SAEError, UsageError
from featurestore.format import checksums
from featurestore.format.canonical import shard_name
from featurestore.format.parquet import layout
from featurestore.format.records import FileEntry, Record
from sae.feed.batches import PositionBatches
from sae.feed.rows import activation_rows, held_out
from sae.feed.shuffle import ShuffledPositions
from tests.builders.saes import HOOK, activation_table, add_shard, make_store

POSITIONS, D_IN = 16, 16


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("data") / "store", branches=("cond", "uncond"))


def batches(store, branch="cond", size=32, seed=0, rows_per_window=5, **kwargs):
    return PositionBatches(
        store,
        HOOK,
        branch,
        size,
        seed=seed,
        window_bytes=rows_per_window * POSITIONS * D_IN * 2,
        **kwargs,
    )


def sorted_rows(array):
    array = np.asarray(array).reshape(-1, D_IN)
    return array[np.lexsort(array.T)]


@pytest.mark.parametrize("size", [2, 7, 32, 100])
@pytest.mark.parametrize("rows_per_window", [0, 1, 5, 1000])
def test_an_epoch_yields_every_training_position_once(store, size, rows_per_window):
    made = batches(store, size=size, rows_per_window=rows_per_window)
    found = list(made.epoch(0))
    assert len(found) == made.n_batches == made.n_positions // size
    assert all(x.shape == (size, D_IN) and x.dtype == torch.float32 for x in found)
    expected = sorted_rows(made.rows.fill(made.train).astype(np.float32))
    seen = {row.tobytes() for row in torch.cat(found).numpy()}
    assert len(seen) == size * len(found)
    assert seen <= {row.tobytes() for row in expected}


@pytest.mark.parametrize("rows_per_window", [1, 3, 1000])
@pytest.mark.parametrize("start", [0, 1, 5, 7, 12])
def test_an_epoch_can_start_anywhere(store, rows_per_window, start):
    made = batches(store, size=20, rows_per_window=rows_per_window)
    whole, rest = list(made.epoch(2)), list(made.epoch(2, start))
    assert len(rest) == len(whole) - start
    assert all(torch.equal(a, b) for a, b in zip(whole[start:], rest, strict=True))


def test_starting_late_reads_only_what_it_needs(store, monkeypatch):
    made = batches(store, size=16, rows_per_window=2)
    gather, read = ShuffledPositions._gather, []
    monkeypatch.setattr(
        ShuffledPositions, "_gather", lambda self, *a: read.append(1) or gather(self, *a)
    )
    assert len(list(made.epoch(0, made.n_batches - 1))) == 1
    assert len(read) == 1


def test_epochs_and_seeds_differ_and_repeat(store):
    first = [
        next(batches(store, seed=seed).epoch(epoch))
        for seed, epoch in ((0, 0), (0, 1), (1, 0), (0, 0))
    ]
    assert torch.equal(first[0], first[3])
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])


def test_a_buffer_mixes_samples(store):
    made = batches(store, size=64, rows_per_window=1000)
    rows = made.rows.fill(np.arange(len(made.rows))).astype(np.float32)
    owner = {row.tobytes(): i for i, tensor in enumerate(rows) for row in tensor}
    assert len({owner[row.tobytes()] for row in next(made.epoch(0)).numpy()}) > 5


@pytest.mark.parametrize(("branch", "n_rows"), [("cond", 18), ("uncond", 18), ("both", 36)])
def test_branches(store, branch, n_rows):
    rows = activation_rows(store, HOOK, branch)
    assert len(rows) == n_rows
    (expected,) = [s.rows() for s in store.activations(HOOK)][:1]
    offset = {"cond": slice(0, None, 2), "uncond": slice(1, None, 2), "both": slice(None)}[branch]
    np.testing.assert_array_equal(rows.fill(np.arange(3)), expected[offset][:3])


def test_rows_come_in_the_order_asked_for(store):
    rows = activation_rows(store, HOOK, "both")
    whole = rows.fill(np.arange(len(rows)))
    order = np.random.default_rng(0).permutation(len(rows))
    np.testing.assert_array_equal(rows.fill(order), whole[order])


def test_held_out_samples_are_whole_and_never_trained_on(store):
    made = batches(store, holdout=0.3)
    out, kept = set(made.rows.sample_id[made.test]), set(made.rows.sample_id[made.train])
    assert out and kept and not out & kept
    assert len(out) + len(kept) == 6
    assert out == held_out([*out, *kept], 0.3)


@given(st.sets(st.integers(0, 2**63 - 1), max_size=60), st.floats(0, 0.99))
def test_holding_out(ids, fraction):
    out = held_out(ids, fraction)
    assert out <= ids
    if len(ids) < 2 or fraction == 0:
        assert not out
    else:
        assert 1 <= len(out) < len(ids)
    assert held_out(sorted(ids, reverse=True), fraction) == out


def test_held_out_samples_stay_so_when_the_store_grows():
    small, large = held_out(range(500), 0.1), held_out(range(1000), 0.1)
    assert small == {i for i in large if i < 500}
    assert 60 < len(large) < 140


def test_a_single_sample_is_not_held_out(tmp_path):
    made = batches(make_store(tmp_path / "s", n_shards=1, samples_per_shard=1), size=4)
    assert len(made.test) == 0
    assert len(made.evaluation()[1]) == 3


def test_shards_that_cannot_be_mapped_give_the_same_batches(tmp_path):
    store, other = make_store(tmp_path / "a"), make_store(tmp_path / "b", n_shards=0)
    for record in store.records(f"activations/{HOOK}"):
        table = pq.read_table(store.root / record.files[0].path)
        path = other.root / record.files[0].path
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path, compression="zstd")
        data = path.read_bytes()
        entry = FileEntry(record.files[0].path, len(data), hashlib.sha256(data).hexdigest())
        other.commit(
            Record(
                record.table, record.shard, record.schema, record.rows, record.sample_ids, (entry,)
            )
        )
    one, two = batches(store), batches(other)
    assert two.rows.shards == [None] * 3
    assert all(torch.equal(a, b) for a, b in zip(one.epoch(0), two.epoch(0), strict=True))


def test_errors_say_what_there_is(store, tmp_path):
    with pytest.raises(
        SAEError,
        match=r"no activations of hook 'unet.up_blocks.1.attention.1'. Did you mean 'unet.up_",
    ):
        PositionBatches(store, "unet.up_blocks.1.attention.1", "cond", 4, seed=0)
    with pytest.raises(
        UsageError,
        match=r"batch of 9999 positions is more than the \d+ of activations/unet.* smaller "
        r"--batch-size",
    ):
        PositionBatches(store, HOOK, "cond", 9999, seed=0)
    with pytest.raises(UsageError, match="branch 'left' is not one of cond, uncond, both"):
        PositionBatches(store, HOOK, "left", 4, seed=0)
    with pytest.raises(SAEError, match=r"no rows of branch 'uncond'. Did you mean 'cond'"):
        PositionBatches(make_store(tmp_path / "s"), HOOK, "uncond", 4, seed=0)
    with pytest.raises(SAEError, match="Nothing was collected yet: 'featurestore collect'"):
        PositionBatches(make_store(tmp_path / "t", n_shards=0), HOOK, "cond", 4, seed=0)


def test_shards_of_another_tensor_are_refused(tmp_path):
    store = make_store(tmp_path / "s", n_shards=1)
    add_shard(store, 1, io="difference")
    with pytest.raises(SAEError, match=r"io is output in \d+-\w+ and difference in \d+-\w+"):
        activation_rows(store, HOOK, "cond")


def test_float32_activations(tmp_path):
    store = make_store(tmp_path / "s", n_shards=0)
    rows, values = activation_table([1, 2], dtype="float32")
    store.append(f"activations/{HOOK}", shard_name(0, [1, 2]), rows, [1, 2], made_by={})
    made = PositionBatches(store, HOOK, "cond", 4, seed=0, holdout=0)
    np.testing.assert_array_equal(made.rows.fill(np.arange(6)), values)
    next(made.epoch(0)).zero_()


def test_a_row_group_is_compared_when_it_is_read_and_no_sooner(tmp_path, monkeypatch):
    """What is damaged elsewhere in the file is not read, so it harms nobody."""
    monkeypatch.setattr(layout, "ROW_GROUP_BYTES", 1)  # a row group per row
    store = make_store(tmp_path / "store", n_shards=1)
    (record,) = store.records(f"activations/{HOOK}")
    assert [part.rows for part in record.contents.parts] == [0, 1] * record.rows + [0]
    path = store.root / record.files[0].path
    rows = activation_rows(store, HOOK, "cond")
    damaged, whole = int(rows.row[0]), [i for i in range(len(rows)) if rows.row[i] != rows.row[0]]
    at = int(rows.offset[0]) + 3
    before = rows.fill(np.array(whole))
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    checksums.forget()
    rows = activation_rows(store, HOOK, "cond")
    assert np.array_equal(rows.fill(np.array(whole)), before)
    for _ in range(2):
        with pytest.raises(
            DamageError, match=r"was changed between byte \d+ and \d+: .*featurestore verify"
        ):
            rows.fill(np.array([0]))
    with pytest.raises(DamageError, match="was changed between"):
        rows.shards[0].check_rows(np.array([damaged]))
    data[at] ^= 1
    data[int(record.contents.ends[0]) - 5] ^= 1  # the columns before the tensor
    path.write_bytes(data)
    checksums.forget()
    with pytest.raises(DamageError, match="was changed between byte 0 and"):
        activation_rows(store, HOOK, "cond")


def test_training_compares_what_it_reads(tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "ROW_GROUP_BYTES", 1)
    store = make_store(tmp_path / "store", n_shards=1)
    (record,) = store.records(f"activations/{HOOK}")
    path = store.root / record.files[0].path
    data = bytearray(path.read_bytes())
    made = batches(store)
    data[int(made.rows.offset[made.train[-1]]) + 1] ^= 1
    path.write_bytes(data)
    checksums.forget()
    made = batches(store)
    with pytest.raises(DamageError, match="was changed between"):
        for _ in made.epoch(0):
            pass
