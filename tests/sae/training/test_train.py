import dataclasses
import json
import os
import signal
import threading

import numpy as np
import pytest
import torch

from featurestore.errors import SAEError, TableError, UsageError
from featurestore.maintenance.verify import verify
from sae.checkpoint import store_sae
from sae.feed.batches import PositionBatches
from sae.training import loop as module
from sae.training.loop import interruption
from sae.training.settings import Plan, TrainSettings, make_plan
from sae.training.train import train
from tests.builders.saes import HOOK, add_shard, make_store

SETTINGS = TrainSettings(k=4, n_latents=48, steps=60, batch_size=32, seed=3, dead_after=300)


class StopError(Exception):
    pass


def stop_at(step):
    def callback(progress):
        if progress.step == step:
            raise StopError

    return callback


def run(store, name="a", settings=SETTINGS, **kwargs):
    return train(store, HOOK, name, settings, progress=False, device="cpu", **kwargs)


def files(store, record):
    return {entry.path: (store.root / entry.path).read_bytes() for entry in record.files}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A store with one SAE, trained without interruption."""
    store = make_store(tmp_path_factory.mktemp("train") / "store")
    return store, run(store)


def test_training_explains_the_data(tmp_path):
    store = make_store(tmp_path / "s", n_shards=6, samples_per_shard=4)
    reports = []
    run(
        store,
        settings=dataclasses.replace(SETTINGS, steps=400, batch_size=64),
        on_report=reports.append,
    )
    metrics = json.loads((store.root / "saes/a/metrics.json").read_text())
    assert reports[0].fvu > 2 * reports[-1].fvu
    assert metrics["fvu"] < 0.3
    assert metrics["held_out"] is True
    assert metrics["l0"] <= 4
    assert [entry["step"] for entry in metrics["timesteps"]] == [0, 1, 2]
    assert [reports[0].step, reports[-1].step] == [10, 400]


def test_what_is_committed(trained):
    store, record = trained
    assert record.table == "saes"
    assert [entry.path for entry in record.files] == [
        f"saes/a/{n}" for n in ("config.json", "metrics.json", "sae.safetensors")
    ]
    haste = (256 * 48 / (60 * 32)) ** (1 / 3)
    assert record.made_by["settings"]["haste"] == pytest.approx(haste)
    assert record.made_by["settings"]["lr"] == pytest.approx(haste * 16e-4 * (20480 / 48) ** 0.5)
    assert verify(store, deep=True) == []
    assert not list((store.root / ".work").rglob("*.safetensors"))
    config = json.loads((store.root / "saes/a/config.json").read_text())
    assert config == {
        "architecture": "topk", "branch": "cond", "d_in": 16, "height": 4, "hook": HOOK,
        "initialisation": "unit_tied", "io": "output", "k": 4,
        "model_hash": "f16:aa,bf16:bb", "n_latents": 48, "run_id": store.run_id, "width": 4,
    }  # fmt: skip


def test_decoder_rows_stay_unit(trained):
    sae = store_sae(trained[0], "a")
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(48))


def test_the_same_again_is_byte_identical(trained, tmp_path):
    other = make_store(tmp_path / "s")
    record = run(other)
    assert record == trained[1]
    assert files(other, record) == files(*trained)


@pytest.mark.parametrize("step", [10, 30, 60])
def test_a_resumed_training_ends_with_the_same_bits(trained, tmp_path, monkeypatch, step):
    monkeypatch.setattr(module, "CHECKPOINT_SECONDS", 0.0)
    store = make_store(tmp_path / "s")
    with pytest.raises(StopError):
        run(store, on_report=stop_at(step))
    assert store.records("saes") == []
    seen = []
    record = run(store, on_report=seen.append)
    assert all(report.step >= step for report in seen)
    assert files(store, record) == files(*trained)


def test_ctrl_c_leaves_a_checkpoint_at_the_end_of_the_step(trained, tmp_path):
    store = make_store(tmp_path / "s")
    interrupt = lambda p: os.kill(os.getpid(), signal.SIGINT) if p.step == 20 else None  # noqa: E731
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(store, on_report=interrupt)
    assert signal.getsignal(signal.SIGINT) is before
    seen = []
    record = run(store, on_report=seen.append)
    assert seen[0].step == 30
    assert files(store, record) == files(*trained)


@pytest.fixture
def interruptible():
    """SIGINT as in a terminal: jobs that a shell starts in the background ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_second_ctrl_c_does_not_wait(interruptible):
    with pytest.raises(KeyboardInterrupt), interruption() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.is_set()
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError


def test_training_works_outside_the_main_thread(trained, tmp_path):
    store, records = make_store(tmp_path / "s"), []
    thread = threading.Thread(target=lambda: records.append(run(store)))
    thread.start()
    thread.join()
    assert files(store, records[0]) == files(*trained)


def test_an_sae_that_exists_is_returned_untouched(trained):
    store, record = trained
    assert run(store, on_report=stop_at(10)) == record
    same = dataclasses.replace(SETTINGS, n_latents=None, expansion=3.0)
    assert run(store, settings=same, on_report=stop_at(10)) == record


def test_a_name_is_not_taken_twice(trained):
    with pytest.raises(
        SAEError, match=r"another SAE 'a' \(k: 4 there, 5 here\): use another --name"
    ):
        run(trained[0], settings=dataclasses.replace(SETTINGS, k=5))


def test_a_name_is_not_reused_after_the_data_grew(tmp_path):
    store = make_store(tmp_path / "s")
    settings = dataclasses.replace(SETTINGS, steps=2)
    run(store, settings=settings)
    add_shard(store, 7)
    with pytest.raises(SAEError, match="activations were added or replaced since"):
        run(store, settings=settings)


def test_an_interrupted_training_is_not_continued_with_other_settings(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHECKPOINT_SECONDS", 0.0)
    store = make_store(tmp_path / "s")
    with pytest.raises(StopError):
        run(store, on_report=stop_at(30))
    with pytest.raises(
        SAEError,
        match=r"stopped at step 29 with other settings \(seed: 3 there, 4 here\).*or delete",
    ):
        run(store, settings=dataclasses.replace(SETTINGS, seed=4))
    (path,) = (store.root / ".work").rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(SAEError, match=r"is no state of a training .*delete it to start anew"):
        run(store)


def test_dead_latents_are_counted_and_revived(tmp_path):
    store = make_store(tmp_path / "s", n_shards=4, samples_per_shard=4)
    reports = []
    settings = dataclasses.replace(
        SETTINGS, n_latents=256, k=2, steps=300, dead_after=200, batch_size=64
    )
    run(store, settings=settings, on_report=reports.append)
    assert max(report.n_dead for report in reports) > reports[-1].n_dead >= 0


def test_a_loss_that_is_not_finite_stops_and_leaves_nothing(tmp_path):
    store = make_store(tmp_path / "s")
    with pytest.raises(
        SAEError, match=r"not finite at step \d+ of 60: use a smaller learning rate than 1e\+38"
    ):
        run(store, settings=dataclasses.replace(SETTINGS, lr=1e38))
    assert store.records("saes") == []
    assert not list((store.root / ".work").rglob("*.safetensors"))


def test_constant_activations_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "tests.builders.saes.sparse_data", lambda n, d_in, seed: np.ones((n, d_in), np.float32)
    )
    with pytest.raises(SAEError, match="are equal: there is nothing to learn"):
        run(make_store(tmp_path / "s"))


def test_one_sample_is_measured_on_itself(tmp_path):
    store = make_store(tmp_path / "s", n_shards=1, samples_per_shard=1)
    run(store, settings=dataclasses.replace(SETTINGS, steps=3, batch_size=8))
    metrics = json.loads((store.root / "saes/a/metrics.json").read_text())
    assert metrics["held_out"] is False
    assert metrics["n_positions"] == 48


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k is 0, it must be at least 1"),
        ({"steps": 0}, "steps is 0"),
        ({"batch_size": 1}, "batch_size is 1, it must be at least 2"),
        ({"expansion": 0.0}, "expansion is 0.0, it must be positive"),
        ({"lr": -1.0}, "lr is -1.0, it must be positive"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"holdout": 1.0}, "expected 0 ≤ holdout < 1"),
    ],
)
def test_settings_are_checked(change, message):
    with pytest.raises(UsageError, match=message):
        TrainSettings(**change)


def test_names_and_k_are_checked(trained):
    with pytest.raises(UsageError, match=r"k = 49 is more than the 48 latents"):
        run(trained[0], "b", dataclasses.replace(SETTINGS, k=49))
    with pytest.raises(UsageError, match=r"latents are more than an SAE can have \(2\^31 - 1\)"):
        run(trained[0], "b", dataclasses.replace(SETTINGS, n_latents=2**31))
    with pytest.raises(TableError, match=r"an SAE's name '../b' cannot be a name"):
        run(trained[0], "../b")
    with pytest.raises(UsageError, match="device 'cudaa' cannot be used here"):
        train(trained[0], HOOK, "b", SETTINGS, device="cudaa")


def test_the_learning_rate_rises_and_falls():
    plan = Plan(SETTINGS, None, 1000, 1.0, 1, "")
    rates = [plan.lr_at(step) for step in range(1000)]
    assert rates[0] == pytest.approx(1 / 201)
    assert max(rates) == pytest.approx(1, abs=0.03)
    assert np.argmax(rates) in (199, 200)
    assert rates[-1] == pytest.approx(1 / 800)
    assert (np.diff(rates[200:]) < 0).all()


def test_defaults_follow_from_the_data(trained):
    batches = PositionBatches(trained[0], HOOK, "cond", 8, seed=0)
    plan = make_plan(trained[0], HOOK, TrainSettings(k=2, expansion=2.5, batch_size=8), batches)
    assert plan.config.n_latents == 40
    assert plan.steps == max(1000, 5 * batches.n_batches)
    assert plan.dead_after == plan.steps * 8 // 20
    assert make_plan(trained[0], HOOK, TrainSettings(steps=10**6), batches).dead_after == 10_000_000
