"""Training a TopK SAE: ours and other libraries', each as its authors run it, on the same data in
one run.

python benchmarks/train.py             every stage that is not in results/train.jsonl yet
python benchmarks/train.py --sizes small --peers sparsify     one stage
python benchmarks/train.py --table     what was found
python benchmarks/train.py --rehearse  a few steps of tiny SAEs, as far as a stage goes

A stage is ours and one peer at one size: small is d_in 320, 5120 latents, k 32, batch 1024, and
large d_in 1280, 20480 latents, k 32, batch 4096. Every trainer has its own initial weights,
optimiser, learning rate and bookkeeping (benchmarks/trainers.py) and the same batches; the two take
their steps in turns. Between them, outside their time, held-out FVU is measured: at the end for
equal steps, and along the way for the seconds until it is the peer's last. Seconds are of the
clock and of the processor: the latter are those of all threads together, and with one thread hardly
depend on what else the machine does.

A peer that cannot be imported is left out, and named. SAeUron is a checkout: --saeuron DIR. On a
CPU the peak memory of ours and of the peer is measured too, each in a process of its own: weights,
optimiser, and what a step needs.
"""

import argparse
import itertools
import json
import multiprocessing
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
import trainers
from mixture import Mixture
from record import RESULTS, record
from trainers import Task, Trainer, held_out

PEERS = ("sparsify", "sparsify_adam", "version_0_1", "saelens", "overcomplete", "saeuron")
SIZES = {"small": (320, 5120, 32, 1024), "large": (1280, 20480, 32, 4096)}
TINY, TINY_STEPS = (32, 128, 4, 64), 6
"""of a rehearsal"""
STEPS = {"small": 400, "large": 160}
TEST_POSITIONS, LOOKS = 2048, 20


def peak_bytes(name: str, sizes: tuple[int, int, int, int]) -> int:
    """Return the most memory that three steps held beyond what there was before the SAE."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_bytes, (name, sizes, list(sys.path)))


def _peak_bytes(name: str, sizes: tuple[int, int, int, int], path: list[str]) -> int:
    sys.path[:] = path
    d_in, n_latents, k, size = sizes
    make, data = getattr(trainers, name), Mixture(d_in, n_latents, size)
    batches = list(itertools.islice(data.epoch(0), 3))
    make(Task(data, d_in, 64, k, size, 3, 0)).step(batches[0])  # imports, thread pools
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark falls to what is held now
    before = _status("VmHWM")
    trainer = make(Task(data, d_in, n_latents, k, size, 3, 0))
    for x in batches:
        trainer.step(x)
    return _status("VmHWM") - before


def _status(field: str) -> int:
    with Path("/proc/self/status").open(encoding="utf-8") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(f"{field}:"))


class Course:
    """How one training goes: its seconds, and held-out FVU along the way."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.clock: list[float] = []
        self.cpu: list[float] = []
        self.looks: list[tuple[float, float, float]] = []
        """seconds of the clock, of the processor, and the FVU then"""
        self.n_dead = 0

    def step(self, x: torch.Tensor) -> None:
        """Take a step, timed."""
        wait = torch.cuda.synchronize if x.is_cuda else lambda: None
        wait()
        clock, cpu = time.perf_counter(), time.process_time()
        self.trainer.step(x)
        wait()
        self.clock.append(time.perf_counter() - clock)
        self.cpu.append(time.process_time() - cpu)

    def look(self, test: torch.Tensor, n_latents: int) -> None:
        """Measure the FVU of positions that were not trained on."""
        fvu, self.n_dead = held_out(self.trainer, test, n_latents)
        self.looks.append((sum(self.clock), sum(self.cpu), fvu))

    def figures(self, name: str, batch_size: int, goal: float) -> dict[str, Any]:
        """Return what came of it; ``goal``: the FVU that the seconds are counted to."""
        reached = next((look for look in self.looks if look[2] <= goal), (None, None))
        return {
            f"{name}_positions_per_s": batch_size / statistics.median(self.clock[2:]),
            f"{name}_positions_per_cpu_s": batch_size / statistics.median(self.cpu[2:]),
            f"{name}_fvu": self.looks[-1][2],
            f"{name}_n_dead": self.n_dead,
            f"{name}_seconds": sum(self.clock),
            f"{name}_cpu_seconds": sum(self.cpu),
            f"{name}_seconds_to_peers_fvu": reached[0],
            f"{name}_cpu_seconds_to_peers_fvu": reached[1],
        }


def compare(task: Task, own: str, peer: str) -> dict[str, Any]:
    """Let ours and a peer take their steps in turns; return their figures."""
    courses = {name: Course(getattr(trainers, name)(task)) for name in (own, peer)}
    test, every = task.data.held_out(TEST_POSITIONS), max(1, task.steps // LOOKS)
    for number, x in enumerate(itertools.islice(task.data.epoch(0), task.steps), 1):
        for course in courses.values():
            course.step(x)
            if number % every == 0 or number == task.steps:
                course.look(test, task.n_latents)
    assert courses[own].looks[-1][2] < courses[own].looks[0][2], "it learns"
    goal = courses[peer].looks[-1][2]
    figures = {
        key: value
        for name, course in courses.items()
        for key, value in course.figures(name, task.batch_size, goal).items()
    }
    mine, theirs = (figures[f"{name}_positions_per_s"] for name in (own, peer))
    return figures | {
        "speed_over_peer": mine / theirs,
        "fvu_over_peer": figures[f"{own}_fvu"] / goal,
    }


def found() -> list[dict[str, Any]]:
    """Return the stages that were recorded."""
    with (RESULTS / "train.jsonl").open(encoding="utf-8") as file:
        return [row for line in file if "peer" in (row := json.loads(line)["figures"])]


def print_table() -> None:
    """Print every stage: ours beside the peer."""
    print("d_in peer            positions/s of CPU    FVU, dead               CPU s to its FVU")
    for row in found():
        own, peer = row["own"], row["peer"]
        told = [
            f"{row[f'{name}_positions_per_cpu_s']:7,.0f} {row[f'{name}_fvu']:.4f} "
            f"{row[f'{name}_n_dead']:5} "
            f"{row[f'{name}_cpu_seconds_to_peers_fvu'] or float('nan'):7.1f}"
            for name in (own, peer)
        ]
        print(f"{row['d_in']:4} {row['device']:4} {own:12} {told[0]} | {peer:14} {told[1]}")


def run(size: str, peer: str, options: argparse.Namespace) -> None:
    """Run a stage and record it."""
    sizes = d_in, n_latents, k, batch = TINY if options.rehearse else SIZES[size]
    steps = TINY_STEPS if options.rehearse else options.steps or STEPS[size]
    about = {"d_in": d_in, "n_latents": n_latents, "k": k, "batch": batch, "steps": steps}
    about |= {"device": options.device, "threads": torch.get_num_threads()}
    about |= {"own": options.own, "peer": peer}
    if not options.again and any(about.items() <= row.items() for row in found()):
        return
    task = Task(Mixture(d_in, n_latents, batch, device=options.device), *sizes, steps, 0)
    try:
        figures = compare(task, options.own, peer)
    except ImportError as error:
        print(f"{peer} is left out: {error}")
        return
    measured = options.device == "cpu" and not (options.no_memory or options.rehearse)
    for name in (options.own, peer) if measured else ():
        figures[f"{name}_peak_bytes"] = peak_bytes(name, sizes)
    record("train", about | figures)


def main() -> None:
    """Run the stages that are missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=PEERS)
    parser.add_argument("--own", default="ours", choices=("ours", "ours_bfloat16"))
    parser.add_argument("--steps", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--saeuron", type=Path, help="a checkout of SAeUron")
    parser.add_argument("--path", type=Path, action="append", default=[], help="installed peers")
    parser.add_argument("--again", action="store_true", help="also stages that are recorded")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--rehearse", action="store_true", help="tiny, whatever the sizes say")
    options = parser.parse_args()
    sys.path += [str(path) for path in (*options.path, options.saeuron) if path]
    if options.table:
        print_table()
        return
    for size in options.sizes:
        for peer in options.peers:
            run(size, peer, options)


if __name__ == "__main__":
    main()
