import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from featurestore import Store
from featurestore.maintenance.verify import verify
from tests.torture import processes


def test_kills_lose_nothing(model, tmp_path):
    outcome = processes.kill(model, tmp_path, 8)
    assert (outcome.tried, outcome.lost, outcome.broken) == (8, 0, [])


@pytest.mark.parametrize("own", [True, False])
def test_writers_at_once_lose_nothing_and_a_reader_sees_whole_shards(tmp_path, own):
    outcome = processes.write_at_once(tmp_path / "store", n_writers=4, n_commits=10, own=own)
    assert outcome.tried == 40 and outcome.broken == []


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_collection_that_is_told_to_stop_leaves_whole_shards_and_goes_on(
    model_dir, tmp_path, number, status
):
    lines = [
        json.dumps({"prompt": p.prompt, "seed": p.seed, **p.labels}) for p in processes.PROMPTS
    ]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    command = [sys.executable, "-m", "featurestore", "collect", "--model", str(model_dir), "--prompts", "prompts.jsonl",
               "--store", "store", "--steps", "2", "--guidance", "3", "--shard-samples", "1", "--exact", "--quiet",
               "--hook", processes.HOOKS[0]]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), *sys.path])}
    # A background job of a shell ignores SIGINT; this one is to hear of it.
    child = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    records = tmp_path / "store" / "manifest" / "samples"
    while not (records.is_dir() and any(records.glob("*.json"))) and child.poll() is None:
        time.sleep(0.01)
    child.send_signal(number)
    _, said = child.communicate(timeout=100)
    store = Store.open(tmp_path / "store")
    n_committed = len(store.committed_samples("samples"))
    assert (child.returncode, "Interrupted. What was committed stays" in said) == (status, True), (
        said
    )
    assert 0 < n_committed < len(processes.PROMPTS)
    assert verify(store) == []
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    assert len(store.committed_samples("samples")) == len(processes.PROMPTS)
