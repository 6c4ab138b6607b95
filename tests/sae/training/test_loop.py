"""What is around the steps: precision, history, picture, several SAEs, several processes."""

import dataclasses
import json
import multiprocessing
import os

import pytest
import torch

from featurestore.errors import UsageError
from featurestore.store import Store
from sae.checkpoint import store_sae
from sae.feed.batches import PositionBatches
from sae.training import loop as module
from sae.training.logs import open_log
from sae.training.processes import join_processes
from sae.training.train import TrainSettings, train, train_many
from tests.builders.saes import HOOK, make_store

SETTINGS = TrainSettings(k=4, n_latents=48, steps=200, batch_size=64, seed=3, dead_after=3000)


def metrics(store, name="a"):
    return json.loads((store.root / f"saes/{name}/metrics.json").read_text())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    store = make_store(
        tmp_path_factory.mktemp("training") / "store", n_shards=6, samples_per_shard=4
    )
    train(store, HOOK, "a", SETTINGS, progress=False, device="cpu")
    return store


def test_the_course_is_kept_thinned_and_drawn(trained, monkeypatch, tmp_path):
    course = metrics(trained)["training"]
    assert course["step"] == list(range(10, 201, 10))
    assert course["fvu"][0] > 2 * course["fvu"][-1] and set(map(len, course.values())) == {20}
    assert (trained.root / "saes/a/training.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr("sae.training.state._HISTORY", 6)
    store = make_store(tmp_path / "s", n_shards=6, samples_per_shard=4)
    train(store, HOOK, "a", SETTINGS, progress=False, device="cpu")
    steps = metrics(store)["training"]["step"]
    assert 3 <= len(steps) <= 6 and steps[-1] == 200


def test_bfloat16_learns_as_well(trained):
    settings = dataclasses.replace(SETTINGS, precision="bfloat16")
    train(trained, HOOK, "half", settings, progress=False, device="cpu")
    assert metrics(trained, "half")["fvu"] == pytest.approx(metrics(trained)["fvu"], rel=0.1)
    assert store_sae(trained, "half").W_enc.dtype == torch.float32
    with pytest.raises(UsageError, match="precision 'int8' is not one of float32, bfloat16"):
        TrainSettings(precision="int8")


def test_saes_trained_side_by_side_are_those_trained_alone(trained):
    sources = {name: PositionBatches(trained, HOOK, "cond", 64, seed=3) for name in ("b", "c")}
    seen = []
    train_many(
        trained,
        sources,
        SETTINGS,
        progress=False,
        device="cpu",
        on_report=lambda p: seen.append((p.step, p.name)),
    )
    assert seen[:4] == [(10, "b"), (10, "c"), (20, "b"), (20, "c")]
    alone = store_sae(trained, "a").state_dict()
    for name in sources:
        assert all(
            torch.equal(tensor, alone[key])
            for key, tensor in store_sae(trained, name).state_dict().items()
        )


def in_a_process(root, rank, architecture):
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29533",
    }
    torch.set_num_threads(1)
    settings = dataclasses.replace(SETTINGS, architecture=architecture)
    train(Store.open(root), HOOK, architecture, settings, progress=False, device="cpu")


@pytest.mark.slow  # rarely, gloo ends a process with an abort after its work is done
@pytest.mark.parametrize("architecture", ["topk", "batchtopk"])
def test_two_processes_train_one_sae(trained, architecture):
    context = multiprocessing.get_context("spawn")
    args = [(trained.root, rank, architecture) for rank in range(2)]
    children = [context.Process(target=in_a_process, args=one) for one in args]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0]
    together = metrics(trained, architecture)
    assert together["fvu"] < 1.3 * metrics(trained)["fvu"]
    assert together["training"]["step"] == metrics(trained)["training"]["step"]
    if architecture == "topk":
        # The first gradients differ only in the unit of each part's variance.
        assert together["training"]["fvu"][0] == pytest.approx(
            metrics(trained)["training"]["fvu"][0], rel=0.05
        )


def test_a_batch_that_cannot_be_shared_is_refused():
    with (
        pytest.raises(UsageError, match="--batch-size 5 cannot be shared evenly by 2 processes"),
        join_processes(5, {"WORLD_SIZE": "2", "MASTER_ADDR": "x"}),
    ):
        pass


def test_a_log_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with (
        pytest.raises(
            UsageError, match="--log tensorboard: it is not installed: pip install tensorboard"
        ),
        open_log("tensorboard", tmp_path),
    ):
        pass


def test_checkpoints_hold_the_history(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHECKPOINT_SECONDS", 0.0)
    stores = [make_store(tmp_path / name) for name in ("whole", "parts")]
    settings = dataclasses.replace(SETTINGS, steps=60, batch_size=32)
    train(stores[0], HOOK, "a", settings, progress=False, device="cpu")

    def stop(progress):
        if progress.step == 30:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        train(stores[1], HOOK, "a", settings, progress=False, device="cpu", on_report=stop)
    train(stores[1], HOOK, "a", settings, progress=False, device="cpu")
    assert metrics(stores[0]) == metrics(stores[1])
