"""Where training begins and how fast it goes: held-out FVU and dead latents of several ways, at
equal steps, on equal data.

python benchmarks/init.py --work DIR      all that is not in results/init.jsonl yet
python benchmarks/init.py --work DIR --data up1 --steps 400 --seeds 0
python benchmarks/init.py --table         what was found

Data: three hooks of the included model (the demo's 200 pictures, k 16, 8 latents per channel,
batches of 1024), and synthetic activations of Stable Diffusion 1.5's smaller width (d_in 320, 5120
latents, k 32, batches of 1024).
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
import trainers
from mixture import Mixture
from record import RESULTS, record
from trainers import Task, held_out

from collectors import CollectSettings, collect
from featurestore import Store
from featurestore.cli.demo.settings import FULL
from featurestore.prompts import Prompt
from minicanvas import OBJECTS, STYLES, prompt
from sae.diffusion.pipelines import RunSettings, load_model
from sae.feed.batches import PositionBatches

HOOKS = {
    "up1": "unet.up_blocks.1.attentions.1",
    "up0": "unet.up_blocks.0.attentions.1",
    "mid": "unet.mid_block.attentions.0",
}
WAYS = ("ours", "unhurried", "version_0_1", "sparsify", "sparsify_adam")
FIGURES = ("data", "steps", "seed", "way")
TEST_MAPS, TEST_POSITIONS = 200, 8192


def demo_store(work: Path) -> Store:
    """Return a store of the demo's pictures at three hooks; collected if it is not there."""
    model = load_model("minicanvas", "cpu")
    pairs = [(o, s) for o in OBJECTS[: FULL.n_concepts] for s in STYLES[: FULL.n_concepts]]
    prompts = [
        Prompt(prompt(o, s), seed, {"style": s, "object": o}, line)
        for line, (o, s) in enumerate(pairs, 1)
        for seed in FULL.collect_seeds
    ]
    settings = CollectSettings(hooks=list(HOOKS.values()), batch_size=16)
    return collect(
        work / "store", model, prompts, RunSettings(model.steps, model.guidance), settings
    ).store


def make_task(work: Path, data: str, steps: int, seed: int) -> tuple[Task, torch.Tensor]:
    """Return what is to be trained, and the positions that it is measured on."""
    if data == "synthetic":
        mixture = Mixture(320, 5120, 1024, seed=seed)
        return Task(mixture, 320, 5120, 32, 1024, steps, seed), mixture.held_out(TEST_POSITIONS)
    batches = PositionBatches(Store.open(work / "store"), HOOKS[data], "cond", 1024, seed=seed)
    rows, indices, _ = batches.evaluation()
    chosen = np.random.default_rng(0).permutation(indices)[:TEST_MAPS]
    d_in = rows.d_in
    return Task(batches, d_in, 8 * d_in, 16, 1024, steps, seed), torch.from_numpy(
        rows.fill(chosen)
    ).float().flatten(0, 1)


def stream(task: Task) -> Iterator[torch.Tensor]:
    """Yield a task's batches, epoch after epoch."""
    for number in range(2**31):
        yield from task.data.epoch(number)


def run(work: Path, data: str, steps: int, *, seed: int, way: str) -> dict[str, Any]:
    """Train one way; return its figures."""
    task, test = make_task(work, data, steps, seed)
    trainer, batches, seconds = getattr(trainers, way)(task), stream(task), 0.0
    for _ in range(steps):
        x = next(batches)
        began = time.perf_counter()
        trainer.step(x)
        seconds += time.perf_counter() - began
    fvu, n_dead = held_out(trainer, test, task.n_latents)
    about = {"data": data, "steps": steps, "seed": seed, "way": way, "n_latents": task.n_latents}
    return about | {"fvu": fvu, "n_dead": n_dead, "seconds": seconds}


def found() -> list[dict[str, Any]]:
    """Return the figures that were recorded."""
    path = RESULTS / "init.jsonl"
    return (
        [json.loads(line)["figures"] for line in path.open(encoding="utf-8")]
        if path.exists()
        else []
    )


def print_table() -> None:
    """Print the means over seeds."""
    rows = found()
    for data, steps in sorted({(row["data"], row["steps"]) for row in rows}):
        for way in WAYS:
            those = [
                row for row in rows if (row["data"], row["steps"], row["way"]) == (data, steps, way)
            ]
            if those:
                fvu, dead = mean(row["fvu"] for row in those), mean(row["n_dead"] for row in those)
                print(
                    f"{data:10} {steps:5} {way:16} FVU {fvu:.4f}  dead {dead:6.1f}  ({len(those)} "
                    f"seeds)"
                )


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path)
    parser.add_argument("--data", nargs="+", default=[*HOOKS, "synthetic"])
    parser.add_argument("--steps", type=int, nargs="+", default=[400, 1500, 5000])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.table:
        print_table()
        return
    if options.work is None:
        parser.error("--work DIR: where the store of the included model lies, or is to be made")
    if not (options.work / "store").exists() and set(options.data) & set(HOOKS):
        demo_store(options.work)
    for seed in options.seeds:
        for steps in options.steps:
            for data in options.data:
                for way in options.ways:
                    if not any(
                        tuple(row[key] for key in FIGURES) == (data, steps, seed, way)
                        for row in found()
                    ):
                        record("init", run(options.work, data, steps, seed=seed, way=way))


if __name__ == "__main__":
    main()
