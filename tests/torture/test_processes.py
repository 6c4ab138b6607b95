import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from featurestore import Store
from featurestore.maintenance.verify import verify
from tests.builders.cli import run
from tests.torture import processes

TOLD = """
import os, sys
from featurestore import Store
from featurestore.cli import main
from featurestore.store import shards

def commit(root, record, commit=shards.commit):
    committed = commit(root, record)
    if record.table == "samples" and len(Store.open(root).records("samples")) == 2:
        os.kill(os.getpid(), int(sys.argv[1]))
    return committed

shards.commit = commit
main(sys.argv[2:])
"""
"""the command line, told to stop when the second shard of samples is committed"""


def test_kills_lose_nothing(model, tmp_path):
    outcome = processes.kill(model, tmp_path, 8)
    assert (outcome.tried, outcome.lost, outcome.broken) == (8, 0, [])


@pytest.mark.parametrize("own", [True, False])
def test_writers_at_once_lose_nothing_and_a_reader_sees_whole_shards(tmp_path, own):
    outcome = processes.write_at_once(tmp_path / "store", n_writers=4, n_commits=10, own=own)
    assert outcome.tried == 40 and outcome.broken == []


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_collection_that_is_told_to_stop_leaves_whole_shards_and_goes_on(
    capsys, model_dir, tmp_path, number, status
):
    prompts = processes.PROMPTS[:4]
    lines = [json.dumps({"prompt": p.prompt, "seed": p.seed, **p.labels}) for p in prompts]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    arguments = ["collect", "--model", str(model_dir), "--prompts", str(tmp_path / "prompts.jsonl"), "--store",
                 str(tmp_path / "store"), "--steps", "2", "--guidance", "3", "--shard-samples", "1", "--exact", "--quiet",
                 "--hook", processes.HOOKS[0]]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), *sys.path])}
    # A background job of a shell ignores SIGINT; this one is to hear of it.
    child = subprocess.run(
        [sys.executable, "-c", TOLD, str(int(number)), *arguments],
        env=environment, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    store = Store.open(tmp_path / "store")
    n_committed = len(store.committed_samples("samples"))
    said = child.stderr
    assert (child.returncode, "Interrupted. What was committed stays" in said) == (status, True), (
        said
    )
    assert 0 < n_committed < len(prompts)
    assert verify(store) == []
    assert run(capsys, *arguments)[0] == 0
    assert len(store.committed_samples("samples")) == len(prompts)
