"""Two writers of one name: the first keeps it, the other gets one line, and nothing committed
changes."""

import concurrent.futures
import json
import multiprocessing
import threading

import pyarrow as pa
import pytest

from featurestore import Store
from featurestore.errors import DiskError, FeatureStoreError, TableError, TakenError
from featurestore.format import durable
from featurestore.format.durable import claims, files
from featurestore.maintenance.verify import verify
from featurestore.saes import commit_sae, training_of
from featurestore.store import shards
from tests.builders.cli import run
from tests.builders.saes import HOOK, make_store

FORK = multiprocessing.get_context("fork")
CONFIG = {
    "d_in": 8,
    "n_latents": 16,
    "k": 4,
    "architecture": "topk",
    "hook": "h",
    "io": "output",
    "height": 1,
    "width": 1,
}


def at_once(n, work):
    """Run ``work(number)`` in ``n`` processes at once; return what each said: "" or its error."""
    gate, results = FORK.Barrier(n), FORK.Queue()

    def one(number):
        gate.wait()
        try:
            work(number)
            results.put((number, ""))
        except FeatureStoreError as error:
            results.put((number, f"{type(error).__name__}: {error}"))

    children = [FORK.Process(target=one, args=(number,)) for number in range(n)]
    for child in children:
        child.start()
    said = dict(results.get() for _ in children)
    for child in children:
        child.join()
    return said


def rows(number):
    return pa.table({"x": pa.array([number] * 50, pa.int64())})


@pytest.mark.parametrize(
    ("table", "shard"),
    [("../x", "a"), ("stats/..", "a"), ("stats/s", "../a"), ("nix/s", "a"), ("stats/s", "a" * 201)],
)
def test_a_shard_that_cannot_exist_is_refused_before_anything_is_written(tmp_path, table, shard):
    store = Store.create(tmp_path / "deep" / "store", {"model": "m"})
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(TableError, match=r"^shard '.* of table '.*' cannot exist: expected the"):
        store.append(table, shard, rows(1), [], made_by={})
    with pytest.raises(TableError, match="cannot exist"):
        store.begin_shard(table, shard, rows(1), rows(1).schema)
    assert sorted(tmp_path.rglob("*")) == before


def test_shards_of_two_writers_with_other_bytes_stay_whole(tmp_path):
    """A4: `Store.append` by several writers whose bytes differ: every committed shard stays what it
    was."""
    store = Store.create(tmp_path / "store", {"model": "m"})
    seen = FORK.Queue()

    def write(number):
        lost = []
        for shard in range(25):
            try:
                record = store.append("scores/s", f"{shard:08d}", rows(number), (), made_by={})
                assert record.rows == 50
            except TakenError as error:
                lost.append(str(error))
        seen.put(lost)

    said = at_once(4, write)
    assert set(said.values()) == {""}
    lost = [line for _ in range(4) for line in seen.get()]
    assert all(
        "another process has just committed shard" in line and "\n" not in line for line in lost
    )
    records = store.records("scores/s")
    assert len(records) == 25
    for record in records:
        assert not any(
            p.damage and record.shard in p.path and "SHA-256" in p.what for p in verify(store)
        )
        assert (
            len(set(pa.parquet.read_table(store.root / record.files[0].path)["x"].to_pylist())) == 1
        )


def test_a_shard_that_another_process_commits_meanwhile_is_refused_unless_it_is_the_same(
    tmp_path, monkeypatch
):
    """A4: the loser of a race gets one line; the same bytes are no loss."""
    store = Store.create(tmp_path / "store", {"model": "m"})
    claim = shards.claim

    def slow(root, table, shard):
        monkeypatch.setattr(shards, "claim", claim)
        store.append(table, shard, rows(1), (), made_by={})
        return claim(root, table, shard)

    monkeypatch.setattr(shards, "claim", slow)
    with pytest.raises(
        TakenError, match=r"shard '0' of 'scores/s' with other contents\. What it committed stays"
    ):
        store.append("scores/s", "0", rows(2), (), made_by={})
    monkeypatch.setattr(shards, "claim", slow)
    assert store.append("scores/t", "0", rows(1), (), made_by={}).rows == 50


def test_two_trainings_of_one_name(tmp_path):
    """A4: `train --name z --seed 0` and `--seed 1` at once: one SAE, one line, no damage."""
    from sae.training.settings import TrainSettings
    from sae.training.train import train

    store = make_store(tmp_path / "store")

    def learn(seed):
        import torch

        torch.set_num_threads(1)
        settings = TrainSettings(k=4, expansion=2, steps=12, batch_size=16, seed=seed)
        train(store, HOOK, "z", settings, progress=False)

    said = at_once(2, learn)
    assert sorted(said.values())[0] == ""
    (refused,) = [line for line in said.values() if line]
    assert (
        "another process is training an SAE 'z' just now" in refused
        or "has another SAE 'z'" in refused
    )
    assert [p for p in verify(store, deep=True) if p.damage] == []


def test_the_command_line_says_that_a_name_is_taken(tmp_path, capsys):
    """A4: one line, exit 1."""
    store = make_store(tmp_path / "store")
    with training_of(store, "z"):
        status, _, err = run(
            capsys,
            "train",
            "--store",
            store.root,
            "--hook",
            HOOK,
            "--name",
            "z",
            "--k",
            4,
            "--batch-size",
            16,
        )
    assert (status, err.count("\n")) == (1, 1) and "another process is training an SAE 'z'" in err


def test_saes_of_two_importers_stay_whole(tmp_path):
    """A4: SAEs committed under one name by several processes at once."""
    store = Store.create(tmp_path / "store", {"model": "m"})
    config = json.dumps(CONFIG).encode()
    said = at_once(
        4,
        lambda n: commit_sae(
            store, "z", {"config.json": config, "sae.safetensors": bytes([n]) * 1000}, {}
        ),
    )
    assert sorted(bool(line) for line in said.values()) == [False, True, True, True]
    assert all("has committed an SAE 'z' in the meantime" in line for line in said.values() if line)
    assert verify(store) == []


def test_nobody_writes_over_a_committed_file(tmp_path, capsys):
    """A4: not `-o`, not `pack`, not `export --duckdb`."""
    store = Store.create(tmp_path / "store", {"model": "m"})
    record = store.append("scores/s", "0", rows(1), (), made_by={})
    before = (store.root / record.files[0].path).read_bytes()
    for path in (
        store.root / record.files[0].path,
        store.root / record.location,
        store.root / "manifest/store.json",
    ):
        with pytest.raises(
            DiskError,
            match=r"lies where the store .* has its own files, which are never replaced",
        ):
            durable.write_bytes(path, b"x")
    status, _, err = run(capsys, "pack", store.root, store.root / record.files[0].path)
    assert (status, err.count("\n")) == (1, 1) and "which are never replaced" in err
    assert (store.root / record.files[0].path).read_bytes() == before


def test_a_claim_outlives_no_process(tmp_path):
    """A claim is released by the system when its process is killed."""

    def hold(number):
        assert durable.Claim.take(tmp_path / "claims" / "x")

    assert at_once(1, hold) == {0: ""}
    assert (tmp_path / "claims" / "x").exists()
    claim = durable.Claim.take(tmp_path / "claims" / "x")
    assert claim is not None and durable.Claim.take(tmp_path / "claims" / "x") is None
    claim.release()


def test_what_killed_writers_left_is_removed_by_the_next_and_what_is_being_written_stays(tmp_path):
    """A6: temporary files of killed runs are removed by the next command that writes there, never a
    live one."""
    store = Store.create(tmp_path / "store", {"model": "m"})
    folder = store.root / "scores" / "s"
    folder.mkdir(parents=True)
    dead = folder / ".00000001.parquet.0123456789ab.tmp"
    dead.write_bytes(b"half")
    with files._temporary(folder / "live.parquet") as (live, file):
        file.write(b"half")
        file.flush()
        claims._cleared.clear()
        store.append("scores/s", "0", rows(1), (), made_by={})
        assert live.exists() and not dead.exists()
    assert sorted(p.name for p in folder.iterdir()) == ["0.parquet"]


def test_elsewhere_only_leftovers_of_the_same_file_are_removed(tmp_path):
    """A6: a directory of the user's own is not tidied."""
    mine, other = tmp_path / ".a.csv.0123456789ab.tmp", tmp_path / ".b.csv.0123456789ab.tmp"
    mine.write_bytes(b"x")
    other.write_bytes(b"x")
    claims._cleared.clear()
    durable.write_bytes(tmp_path / "a.csv", b"whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == [other.name, "a.csv"]


def test_a_link_into_a_store_is_no_way_around(tmp_path):
    """A4: nor does a link out of it lead a write elsewhere."""
    store = Store.create(tmp_path / "store", {"model": "m"})
    store.append("scores/s", "0", rows(1), (), made_by={})
    (tmp_path / "short").symlink_to(store.root / "scores/s")
    with pytest.raises(DiskError, match="has its own files"):
        durable.write_bytes(tmp_path / "short/0.parquet", b"x")
    (store.root / "codes").symlink_to(tmp_path)
    with pytest.raises(FeatureStoreError, match="is a symbolic link"):
        store.append("codes/s", "0", rows(1), (), made_by={})


def test_clearing_never_takes_the_file_of_a_writer_that_waits_for_its_lock(tmp_path):
    """A6: a writer that has made its file and not yet locked it loses nothing."""
    done = threading.Event()

    def clear():
        while not done.is_set():
            durable.clear_dead(tmp_path)

    def write(number):
        for i in range(60):
            durable.write_bytes(tmp_path / f"{number}-{i}", b"x")

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        clearing = [pool.submit(clear) for _ in range(2)]
        writing = [pool.submit(write, number) for number in range(4)]
        try:
            for one in writing:
                one.result()
        finally:
            done.set()
        for one in clearing:
            one.result()
    assert len(list(tmp_path.iterdir())) == 4 * 60
