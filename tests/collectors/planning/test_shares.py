"""Many processes, one store."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from collectors.collection import CollectSettings, collect
from collectors.planning.plan import WorkItem
from collectors.planning.shares import Share, claim_item, find_share
from featurestore import Store
from featurestore.errors import UsageError
from featurestore.maintenance.verify import verify
from featurestore.prompts import Prompt
from sae.diffusion.pipelines import RunSettings
from sae.training.processes import local_device
from tests.builders.trees import same_tree

HOOK, MID = "unet.up_blocks.1.attentions.1", "unet.mid_block.attentions.0"
RUN = RunSettings(n_steps=2, guidance=3.0)
PROMPTS = [Prompt(f"picture {i}", i, {"style": "ab"[i % 2]}, i + 1) for i in range(9)]
FORK = multiprocessing.get_context("fork")


def run(path, model, share=None, batch_size=2):
    settings = CollectSettings(
        hooks=[HOOK, MID], shard_samples=2, batch_size=batch_size, exact=True
    )
    return collect(path, model, PROMPTS, RUN, settings, progress=False, share=share)


@pytest.fixture(scope="module")
def alone(model, tmp_path_factory):
    return run(tmp_path_factory.mktemp("alone") / "store", model).store.root


@pytest.mark.parametrize(("n_processes", "batch_size"), [(1, 3), (2, 1), (4, 2)])
def test_processes_and_batch_sizes_leave_the_same_bytes(
    model, tmp_path, alone, n_processes, batch_size
):
    shares = [Share(rank, n_processes) for rank in range(n_processes)]
    children = [
        FORK.Process(target=run, args=(tmp_path / "store", model, share, batch_size))
        for share in shares
    ]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * n_processes
    same_tree(tmp_path / "store", alone)


def die_at(path, model, share, call):
    calls = []

    def count(module, args, kwargs):
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)

    model.pipe.unet.register_forward_pre_hook(count, with_kwargs=True)
    run(path, model, share)


@pytest.mark.parametrize("call", [1, 6, 11])
def test_what_a_killed_process_leaves_another_takes_up(model, tmp_path, alone, call):
    dying = FORK.Process(target=die_at, args=(tmp_path / "store", model, Share(0, 2), call))
    dying.start()
    dying.join()
    assert dying.exitcode == -signal.SIGKILL
    begun = (tmp_path / "store" / "manifest" / "store.json").exists()
    before = len(Store.open(tmp_path / "store").committed_samples("samples")) if begun else 0
    assert before < len(PROMPTS) and (begun or call < 11)
    report = run(tmp_path / "store", model, Share(1, 2))
    assert report.n_samples == len(PROMPTS) - before
    assert not any(problem.damage for problem in verify(report.store))
    for leftover in (tmp_path / "store").rglob("*.tmp"):
        leftover.unlink()
    same_tree(tmp_path / "store", alone)


def test_a_claim_is_held_once_and_until_released(tmp_path):
    first = claim_item(tmp_path, "a")
    assert first is not None and claim_item(tmp_path, "a") is None
    other = claim_item(tmp_path, "b")
    assert other is not None
    first.release()
    again = claim_item(tmp_path, "a")
    assert again is not None
    again.release()
    other.release()
    assert list((tmp_path / ".work" / "claims").iterdir()) == []


def test_each_process_does_its_own_items_first():
    items = [WorkItem(str(i), [], frozenset()) for i in range(5)]
    assert ["".join(item.shard for item in Share(rank, 2).order(items)) for rank in (0, 1)] == [
        "02413",
        "13024",
    ]


def test_ranks_come_from_options_or_launchers():
    assert find_share(None, None, {}) == Share(0, 1)
    assert find_share(2, 4, {"RANK": "0", "WORLD_SIZE": "2"}) == Share(2, 4)
    assert find_share(None, None, {"RANK": "1", "WORLD_SIZE": "2"}) == Share(1, 2)
    assert find_share(None, None, {"SLURM_PROCID": "3", "SLURM_NTASKS": "8"}) == Share(3, 8)
    with pytest.raises(UsageError, match="go together"):
        find_share(1, None, {})
    with pytest.raises(UsageError, match="ranks go from 0 to 3"):
        find_share(4, 4, {})
    assert local_device("cpu", {"LOCAL_RANK": "1"}) == "cpu"


@pytest.mark.slow
def test_torchrun_fills_one_store(model_dir, tmp_path):
    lines = [json.dumps({"prompt": p.prompt, "seed": p.seed, **p.labels}) for p in PROMPTS]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "-m",
        "featurestore",
        "collect",
    ]
    options = [
        "--model",
        str(model_dir),
        "--prompts",
        "prompts.jsonl",
        "--store",
        "store",
        "--steps",
        "2",
    ]
    options += [
        "--guidance",
        "3",
        "--hook",
        HOOK,
        "--hook",
        MID,
        "--shard-samples",
        "2",
        "--exact",
        "--quiet",
    ]
    done = subprocess.run(
        [*launch, *options], cwd=tmp_path, capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), *sys.path])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("samples collected") == 2
    store = Store.open(tmp_path / "store")
    assert len(store.committed_samples("samples")) == len(PROMPTS)
    assert verify(store, deep=True) == []
