"""Training a TopK SAE: ours and other libraries', each as its authors run it, on the same data in
one run.

python benchmarks/train.py d_in 320, 5120 latents, k 32, batch 1024 python benchmarks/train.py
--large d_in 1280, 20480 latents, k 32, batch 4096 python benchmarks/train.py --saeuron DIR --peers
DIR with a checkout of SAeUron, and a directory of installed peers

Every trainer has its own initial weights, optimiser, learning rate and bookkeeping
(benchmarks/trainers.py) and the same batches, and takes its steps in turns with the others. Between
them, outside their time, held-out FVU is measured: at the end for equal steps, and along the way
for the seconds until it is sparsify's last. A peer that cannot be imported is left out, and named.
On a CPU the peak memory of ours and of sparsify is measured too, each in a process of its own:
weights, optimiser, and what a step needs.
"""

import argparse
import itertools
import multiprocessing
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import trainers
from mixture import Mixture
from record import record
from trainers import Task, Trainer, held_out

WAYS = ("ours", "version_0_1", "sparsify", "sparsify_adam", "saelens", "overcomplete", "saeuron")
TEST_POSITIONS = 4096


def begin_all(task: Task, ways: Sequence[str]) -> dict[str, Trainer]:
    """Return the trainers that can be imported."""
    begun = {}
    for name in ways:
        try:
            begun[name] = getattr(trainers, name)(task)
        except ImportError as error:
            print(f"{name} is left out: {error}")
    return begun


def peak_bytes(name: str, d_in: int, n_latents: int, k: int, size: int) -> int | None:
    """Return the most memory that three steps held beyond what there was before the SAE; None if
    the peer is not there."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_bytes, (name, d_in, n_latents, k, size))


def _peak_bytes(name: str, d_in: int, n_latents: int, k: int, size: int) -> int | None:
    make, data = getattr(trainers, name), Mixture(d_in, n_latents, size)
    batches = list(itertools.islice(data.epoch(0), 3))
    try:
        make(Task(data, d_in, 64, k, size, 3, 0)).step(batches[0])  # imports, thread pools
    except ImportError:
        return None
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark falls to what is held now
    before = _status("VmHWM")
    trainer = make(Task(data, d_in, n_latents, k, size, 3, 0))
    for x in batches:
        trainer.step(x)
    return _status("VmHWM") - before


def _status(field: str) -> int:
    with Path("/proc/self/status").open(encoding="utf-8") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(f"{field}:"))


def memory(*sizes: int) -> dict[str, Any]:
    """Return the peak memory of ours and of sparsify, in bytes, and their ratio."""
    found = {f"{name}_peak_bytes": peak_bytes(name, *sizes) for name in ("ours", "sparsify")}
    mine, theirs = found["ours_peak_bytes"], found["sparsify_peak_bytes"]
    return found | ({"ours_over_sparsify_peak": mine / theirs} if mine and theirs else {})


def compare(task: Task, ways: Sequence[str], every: int) -> dict[str, Any]:
    """Let all take their steps in turns; return speed, held-out FVU and dead latents, and seconds
    to sparsify's last FVU."""
    begun, test = begin_all(task, ways), task.data.held_out(TEST_POSITIONS)
    seconds: dict[str, list[float]] = {name: [] for name in begun}
    course: dict[str, list[tuple[float, float]]] = {name: [] for name in begun}
    last: dict[str, tuple[float, int]] = {}
    wait = torch.cuda.synchronize if test.is_cuda else lambda: None
    for number, x in enumerate(itertools.islice(task.data.epoch(0), task.steps), 1):
        for name, trainer in begun.items():
            wait()
            began = time.perf_counter()
            trainer.step(x)
            wait()
            seconds[name].append(time.perf_counter() - began)
        for name, trainer in begun.items() if number % every == 0 or number == task.steps else ():
            last[name] = held_out(trainer, test, task.n_latents)
            course[name].append((sum(seconds[name]), last[name][0]))
    figures: dict[str, Any] = {}
    for name in begun:
        figures[f"{name}_positions_per_s"] = task.batch_size / statistics.median(seconds[name][2:])
        figures |= {f"{name}_fvu": last[name][0], f"{name}_n_dead": last[name][1]}
        figures[f"{name}_seconds"] = sum(seconds[name])
    for name in begun if "sparsify" in begun else ():
        reached = [at for at, fvu in course[name] if fvu <= last["sparsify"][0]]
        figures[f"{name}_seconds_to_sparsify_fvu"] = reached[0] if reached else None
    assert last["ours"][0] < course["ours"][0][1], "it learns"
    if "sparsify" in begun:
        assert last["ours"][0] <= last["sparsify"][0], "no worse at equal steps"
    return figures


def main() -> None:
    """Compare the trainers that there are, at one size."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--peers", type=Path, action="append", default=[])
    parser.add_argument("--saeuron", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    options = parser.parse_args()
    sys.path += [str(path) for path in (*options.peers, options.saeuron) if path]
    sizes = (1280, 20480, 32, 4096) if options.large else (320, 5120, 32, 1024)
    d_in, n_latents, k, size = sizes
    steps = options.steps or (40 if options.large else 400)
    task = Task(Mixture(d_in, n_latents, size, device=options.device), *sizes, steps, 0)
    figures: dict[str, Any] = {"d_in": d_in, "n_latents": n_latents, "k": k, "batch": size}
    figures |= {"steps": steps, "device": options.device} | compare(
        task, options.ways, max(1, steps // 40)
    )
    figures |= memory(*sizes) if options.device == "cpu" else {}
    record("train", figures)


if __name__ == "__main__":
    main()
