"""Batches for anybody's own loop."""

import hashlib
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader

from featurestore.errors import SAEError
from featurestore.format import durable
from featurestore.format.records import FileEntry, Record
from featurestore.format.schemas import samples_schema
from sae.feed import rows as data
from sae.feed import shuffle
from sae.feed.batches import ActivationBatches
from tests.builders.saes import HOOK, make_store

POSITIONS, D_IN = 16, 16
ROW_BYTES = POSITIONS * D_IN * 2


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    made = make_store(
        tmp_path_factory.mktemp("batches") / "store", n_shards=4, branches=("cond", "uncond")
    )
    for record in made.records(f"activations/{HOOK}"):
        n = len(record.sample_ids)
        styles = [*["neon", "comic"][: n - 1], None]
        shared = {"guidance": 1.0, "n_steps": 3, "scheduler": "s", "model": "m", "model_hash": "h"}
        columns = {
            "sample_id": record.sample_ids,
            "prompt": ["p"] * n,
            "seed": range(n),
            "style": styles,
        }
        columns |= {
            key: [value] * n for key, value in (shared | {"height": 64, "width": 64}).items()
        }
        rows = pa.Table.from_pydict(columns, schema=samples_schema(["style"]))
        made.append("samples", record.shard, rows, record.sample_ids, made_by={})
    return made


def batches(store, size=20, rows_per_window=5, **kwargs):
    return ActivationBatches(store, HOOK, size, window_bytes=rows_per_window * ROW_BYTES, **kwargs)


def positions(tensors):
    return [row.numpy().tobytes() for tensor in tensors for row in tensor]


def all_rows(store, wanted):
    """The positions of the rows for which ``wanted(sample, step, branch)``, read one by one."""
    return [
        position.tobytes()
        for shard in store.activations(HOOK)
        for i in range(shard.n_rows)
        if wanted(int(shard.sample_id[i]), int(shard.step[i]), str(shard.branch[i]))
        for position in shard.row(i)
    ]


@pytest.mark.parametrize("rows_per_window", [1, 5, 1000])
def test_an_epoch_is_every_position_once_as_stored(store, rows_per_window):
    made = batches(store, 16, rows_per_window)
    found = list(made)
    assert len(found) == len(made) and all(batch.dtype == torch.float16 for batch in found)
    assert sorted(positions(found)) == sorted(all_rows(store, lambda i, s, b: b == "cond"))


def test_filters_read_what_they_name_and_open_no_other_shard(store, monkeypatch):
    samples = store.arrow("samples", ["sample_id", "style"]).to_pylist()
    neon = [row["sample_id"] for row in samples if row["style"] == "neon"]
    found = list(batches(store, 4, steps=[0, 2], labels={"style": "neon"}, branch="both"))
    assert sorted(positions(found)) == sorted(all_rows(store, lambda i, s, b: i in neon and s != 1))
    opened = []
    monkeypatch.setattr(
        data, "open_shard", lambda root, record: opened.append(record.shard) or read(root, record)
    )
    list(batches(store, 4, sample_ids=neon[:1]))
    assert len(set(opened)) == 1


read = data.open_shard


def test_what_does_not_exist_is_named(store):
    with pytest.raises(SAEError, match=r"has no labels 'stlye'.* Did you mean 'style'"):
        batches(store, labels={"stlye": "neon"})
    with pytest.raises(SAEError, match=r"has no style 'noen'.* Did you mean 'neon'"):
        batches(store, labels={"style": ["neon", "noen"]})
    with pytest.raises(SAEError, match=r"no rows of the steps and samples that are wanted"):
        batches(store, steps=[9])
    with pytest.raises(SAEError, match=r"no rows of the 1 samples that are wanted"):
        batches(store, sample_ids=[1])


@pytest.mark.parametrize("stop", [1, 4, 9, 12])
def test_a_state_goes_on_with_the_next_batch(store, stop):
    whole = [batch for made in [batches(store)] for _ in range(2) for batch in made]
    first, rest = batches(store), []
    for n, _ in enumerate(first, 1):
        if n == stop:
            break
    second = batches(store)
    second.load_state_dict(first.state_dict())
    while len(rest) < len(whole) - stop:
        rest += list(second)
    assert all(torch.equal(a, b) for a, b in zip(whole[stop:], rest, strict=True))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_share_the_rows_without_overlap(store, world_size):
    shares = [
        positions(batches(store, 8, rank=rank, world_size=world_size)) for rank in range(world_size)
    ]
    assert len({len(share) for share in shares}) == 1
    assert len(set().union(*shares)) == sum(map(len, shares)) == 24 * POSITIONS


def test_a_copy_in_another_process_opens_the_maps_itself(store):
    made = batches(store, 8)
    copied = pickle.dumps(made)
    assert len(copied) < 3000
    assert all(torch.equal(a, b) for a, b in zip(pickle.loads(copied), made, strict=True))


def test_workers_share_the_rows_without_overlap(store):
    made = batches(store, 8)
    loader = DataLoader(made, batch_size=None, num_workers=2, multiprocessing_context="fork")
    found = positions(loader)
    assert len(found) == len(set(found)) == 24 * POSITIONS
    assert positions(loader) == found
    made.set_epoch(1)
    assert positions(loader) != found


def test_batches_that_are_held_stay_as_they_were(store):
    held, copies = [], []
    for batch in batches(store, 16, rows_per_window=2):
        held.append(batch)
        copies.append(batch.clone())
    assert all(torch.equal(a, b) for a, b in zip(held, copies, strict=True))


def test_only_some_shards_are_open_at_a_time(tmp_path, monkeypatch):
    made = ActivationBatches(
        make_store(tmp_path / "store", n_shards=40), HOOK, 64, window_bytes=ROW_BYTES
    )
    open_, found = shuffle.ShuffledPositions._bytes, []
    monkeypatch.setattr(
        shuffle.ShuffledPositions,
        "_bytes",
        lambda self, n: found.append(len(self._open)) or open_(self, n),
    )
    monkeypatch.setattr(shuffle, "_OPEN_BYTES", 0)
    assert sum(1 for _ in made) == len(made)
    assert len(found) == 40 and max(found) < 2 * shuffle.OPEN_SHARDS  # each is opened once


def test_small_shards_stay_open(tmp_path, monkeypatch):
    made = ActivationBatches(
        make_store(tmp_path / "store", n_shards=40), HOOK, 64
    )  # one window reaches over all
    open_, found = shuffle.ShuffledPositions._bytes, []
    monkeypatch.setattr(
        shuffle.ShuffledPositions, "_bytes", lambda self, n: found.append(n) or open_(self, n)
    )
    assert sum(1 for _ in made) == len(made)
    assert sorted(found) == list(range(40))


@pytest.mark.parametrize(("run", "found"), [(1, 1), (3, 2), (8, 8), (100, 16)])
def test_neighbours_stay_together(store, run, found):
    place = {row.tobytes(): (i, j) for s in store.activations(HOOK) for i in range(s.n_rows)
             for j, row in enumerate(s.row(i)) if s.branch[i] == "cond"}  # fmt: skip
    made = batches(store, 48, run=run)
    assert made._shuffled((0, 1)).run == found
    for batch in made:
        for together in batch.view(-1, found, D_IN).numpy():
            where = [place[row.tobytes()][1] for row in together]
            assert where == list(range(where[0], where[0] + found)) and where[0] % found == 0


def test_files_that_cannot_be_mapped_give_the_same_batches(store, tmp_path):
    other = make_store(tmp_path / "store", n_shards=4, branches=("cond", "uncond"))
    for record in other.records(f"activations/{HOOK}"):
        (entry,) = record.files
        table = pq.read_table(other.root / entry.path, partitioning=None)
        pq.write_table(table, other.root / entry.path, compression="zstd")
        data = (other.root / entry.path).read_bytes()
        durable.remove(other.root / record.location)
        again = Record(record.table, record.shard, record.schema, record.rows, record.sample_ids,
                       (FileEntry(entry.path, len(data), hashlib.sha256(data).hexdigest()),), record.made_by)  # fmt: skip
        other.commit(again)
    assert not any(shard.mapped for shard in other.activations(HOOK))
    assert all(torch.equal(a, b) for a, b in zip(batches(store), batches(other), strict=True))


@pytest.mark.gpu
def test_batches_on_cuda_are_those_on_the_cpu(store):
    there = [batch.cpu() for batch in batches(store, device="cuda")]
    assert all(torch.equal(a, b) for a, b in zip(batches(store), there, strict=True))
