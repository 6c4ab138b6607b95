"""Processes that are killed, told to stop, or write and read at once."""

import multiprocessing
import os
import random
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from collectors.collection import CollectSettings, collect
from featurestore import Store
from featurestore.format.checksums import check_file
from featurestore.maintenance.verify import verify
from featurestore.prompts import Prompt
from sae.diffusion.pipelines import Model, RunSettings
from tests.torture.crashes import ROWS, RUN, Outcome, tree

FORK = multiprocessing.get_context("fork")
HOOKS = ["unet.up_blocks.1.attentions.1", "unet.mid_block.attentions.0"]
PROMPTS = [Prompt(f"picture {i}", i, {"style": "ab"[i % 2]}, i + 1) for i in range(12)]


def run_collect(root: Path, model: Model) -> None:
    """Collect twelve pictures in six shards of two hooks."""
    settings = CollectSettings(hooks=HOOKS, shard_samples=2, batch_size=2, exact=True)
    collect(root, model, PROMPTS, RunSettings(n_steps=2, guidance=3.0), settings, progress=False)


@dataclass
class Kills(Outcome):
    """Of a series of kills."""

    runs: int = 0
    """collections that came to their end"""
    lost: int = 0
    """samples that were committed before a kill and gone after it"""


def kill(
    model: Model, work: Path, n_kills: int, number: int = signal.SIGKILL, seed: int = 0
) -> Kills:
    """Collect again and again, with a signal to the process at a random moment; resume; each end
    must be the same bytes."""
    began = time.perf_counter()
    run_collect(work / "reference", model)
    longest = time.perf_counter() - began
    reference, rng, outcome = tree(work / "reference"), random.Random(seed), Kills()
    root, before = work / "store", set[tuple[str, int]]()
    while outcome.tried < n_kills:
        child = FORK.Process(target=run_collect, args=(root, model))
        child.start()
        child.join(rng.uniform(0, longest))
        if child.is_alive():
            os.kill(child.pid or 0, number)
            child.join()
            outcome.tried += 1
        elif child.exitcode == 0:
            outcome.runs += 1
            if tree(root) != reference:
                outcome.broken.append(f"run {outcome.runs} ended with other bytes")
            shutil.rmtree(root)
            before = set()
            continue
        else:
            outcome.broken.append(f"exit status {child.exitcode}")
        if (root / "manifest/store.json").exists():
            store = Store.open(root)
            damaged = [problem.what for problem in verify(store) if problem.damage]
            outcome.broken += damaged[:1]
            now = {(table, i) for table in store.tables() for i in store.committed_samples(table)}
            outcome.lost += len(before - now)
            before = now
    return outcome


def _write(root: Path, rank: int, n: int, own: bool, results: Any) -> None:
    store, wrong = Store.open(root), 0
    for number in range(n):
        shard = f"{rank}-{number:06d}" if own else f"{number:06d}"
        record = store.append(
            "scores/s", shard, ROWS.slice(number % 400, 20), (), made_by={"number": number % 400}
        )
        found = store.record("scores/s", shard)
        wrong += found is None or found.files != record.files
    results.put((rank, n, wrong))


def write_at_once(root: Path, n_writers: int, n_commits: int, own: bool) -> Outcome:
    """Let processes commit at once, each its own shards or all the same, while another reads; say
    what was lost or torn."""
    store, results, stop = Store.create(root, RUN), FORK.Queue(), FORK.Event()
    reader = FORK.Process(target=_read_meanwhile, args=(root, stop, results))
    writers = [
        FORK.Process(target=_write, args=(root, rank, n_commits, own, results))
        for rank in range(n_writers)
    ]
    for process in (reader, *writers):
        process.start()
    reports = [results.get(timeout=3600) for _ in writers]
    stop.set()
    reports.append(results.get(timeout=600))
    for process in (reader, *writers):
        process.join()
    outcome = Outcome(tried=sum(n for rank, n, _ in reports if rank >= 0))
    outcome.broken += [
        f"{'reader' if rank < 0 else rank}: {wrong} torn of {n}"
        for rank, n, wrong in reports
        if wrong
    ]
    expected = n_commits * (n_writers if own else 1)
    if (found := len(store.records("scores/s"))) != expected:
        outcome.broken.append(f"{found} of {expected} commits are there")
    outcome.broken += [problem.what for problem in verify(store) if problem.damage]
    return outcome


def _read_meanwhile(root: Path, stop: Any, results: Any) -> None:
    """Read records that appear, and their files, until told to stop."""
    store, seen, wrong = Store.open(root), set[str](), 0
    while True:
        last = stop.is_set()
        for path in sorted((root / "manifest/scores/s").glob("*.json")):
            if path.stem in seen:
                continue
            seen.add(path.stem)
            record = store.record("scores/s", path.stem)
            assert record is not None
            rows = pa.parquet.read_table(root / record.files[0].path, partitioning=None)
            start = dict(record.made_by)["number"]
            wrong += check_file(root, record.files[0]) is not None or not rows.equals(
                ROWS.slice(start, 20)
            )
        if last:
            results.put((-1, len(seen), wrong))
            return
