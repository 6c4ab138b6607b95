"""Everything that needs a GPU, in one go: its tests, its benchmarks, and what is below its bar.

``python -m benchmarks.gpu`` on a machine with torch, or ``make gpu``; eight minutes on an H100.
Each stage has its own limit, so one that hangs does not take the others along. Rows are appended to
``benchmarks/results``. ``--dry-run`` runs the same stages' command lines as far as a CPU can: the
kernels in Triton's interpreter, every benchmark's options.
"""

import argparse
import json
import operator
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


class Stage(NamedTuple):
    """A command, and for how long it may run."""

    name: str
    command: tuple[str, ...]
    seconds: int


class Bar(NamedTuple):
    """A figure, and what it should be."""

    benchmark: str
    of: dict[str, Any]
    """figures that tell the row"""
    figure: str
    holds: Callable[[float, float], bool]
    bound: float
    says: str

    @property
    def title(self) -> str:
        """What it is about, and of which row."""
        row = ", ".join(f"{key} {value}" for key, value in self.of.items())
        return f"{self.says} ({row})" if row else self.says


STAGES = (
    Stage("tests", ("-m", "pytest", "-m", "gpu or triton", "-p", "no:cacheprovider"), 150),
    Stage(
        "ablate, one picture",
        ("benchmarks/ablate.py", "--device", "cuda", "--dtype", "float16"),
        60,
    ),
    Stage(
        "ablate, eight pictures",
        ("benchmarks/ablate.py", "--device", "cuda", "--dtype", "float16", "--batch", "8"),
        60,
    ),
    Stage(
        "train",
        (
            *("benchmarks/train.py", "--sizes", "large", "--steps", "100", "--device", "cuda"),
            *("--own", "ours_bfloat16", "--peers", "sparsify", "version_0_1", "--again"),
        ),
        75,
    ),
    Stage("feed", ("benchmarks/feed.py", "--large", "--device", "cuda"), 45),
    Stage("collect", ("benchmarks/collect.py", "--cuda", "--runs", "3"), 90),
)
LARGE = {"d_in": 1280, "batch": 4096}
H100_1 = {"device": "cuda", "dtype": "float16", "batch": 1}
BARS = (
    *(
        bar
        for batch in (1, 8)
        for bar in (
            Bar(
                "ablate",
                H100_1 | {"batch": batch},
                "absent_added_ms",
                operator.le,
                0.15,
                "a concept that is absent, ms per call",
            ),
            Bar(
                "ablate",
                H100_1 | {"batch": batch},
                "ten_added_ms",
                operator.le,
                0.5,
                "ten concepts, ms per call",
            ),
            Bar(
                "ablate",
                H100_1 | {"batch": batch},
                "ten_over_saeuron",
                operator.le,
                1 / 3,
                "ten concepts ÷ the released hook",
            ),
        )
    ),
    *(
        Bar("train", LARGE | {"device": "cuda", "peer": "sparsify"}, figure, holds, bound, says)
        for figure, holds, bound, says in (
            ("ours_bfloat16_positions_per_s", operator.ge, 1e6, "training, positions/s"),
            ("speed_over_peer", operator.ge, 1.5, "training ÷ sparsify, positions/s"),
            ("fvu_over_peer", operator.le, 1.01, "FVU ÷ sparsify's after equal steps"),
        )
    ),
    Bar(
        "feed",
        LARGE | {"device": "cuda"},
        "from_disk_over_from_memory",
        operator.ge,
        0.95,
        "training from disk ÷ from memory",
    ),
    Bar(
        "feed",
        LARGE | {"device": "cuda"},
        "encoding_over_matrix_product",
        operator.ge,
        0.8,
        "encoding ÷ its matrix product alone",
    ),
    Bar(
        "collect",
        {},
        "collecting_over_plain",
        operator.le,
        1.05,
        "collecting two hooks ÷ generating alone",
    ),
)


def run(stage: Stage) -> tuple[str, float]:
    """Run a stage; returns how it ended and its seconds."""
    began = time.perf_counter()
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    }
    try:
        done = subprocess.run(
            [sys.executable, *stage.command], cwd=ROOT, env=environment, timeout=stage.seconds
        )
        ended = "passed" if done.returncode == 0 else f"failed with {done.returncode}"
    except subprocess.TimeoutExpired:
        ended = f"stopped after {stage.seconds} s"
    return ended, time.perf_counter() - began


def rehearsed(stage: Stage) -> Stage:
    """Return what a CPU can run of a stage."""
    if "pytest" in stage.command:
        return stage._replace(
            command=("-m", "pytest", "-m", "triton or gpu", "-p", "no:cacheprovider"), seconds=600
        )
    return stage._replace(command=(stage.command[0], "--help"))


def counted() -> dict[str, int]:
    """Return how many rows each benchmark's results have."""
    names = {bar.benchmark for bar in BARS}
    return {
        name: len((RESULTS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines())
        for name in names
    }


def below(before: dict[str, int]) -> list[str]:
    """Return a line for each bar that no new row reaches, or that no new row is about."""
    lines = []
    for bar in BARS:
        new = (
            (RESULTS / f"{bar.benchmark}.jsonl")
            .read_text(encoding="utf-8")
            .splitlines()[before[bar.benchmark] :]
        )
        figures = [json.loads(line)["figures"] for line in new]
        found = [f[bar.figure] for f in figures if bar.figure in f and bar.of.items() <= f.items()]
        if not found:
            lines.append(f"not measured: {bar.title}, bar {bar.bound:g}")
        elif not bar.holds(found[-1], bar.bound):
            lines.append(f"below its bar: {bar.title} is {found[-1]:.4g}, bar {bar.bound:g}")
    return lines


def waiting() -> list[str]:
    """Return a line for each bar: what waits for a GPU."""
    return [f"waits for a GPU: {bar.title}, bar {bar.bound:g}" for bar in BARS]


def main() -> None:
    """Run all stages, then say what is below its bar; exit 1 if a stage failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args()
    before = counted()
    ends = []
    for stage in STAGES:
        print(f"— {stage.name}", flush=True)
        ends.append(run(rehearsed(stage) if options.dry_run else stage))
    for stage, (ended, seconds) in zip(STAGES, ends, strict=True):
        print(f"{ended:24} {seconds:6.1f} s  {stage.name}")
    for line in waiting() if options.dry_run else below(before):
        print(line)
    sys.exit(any(ended != "passed" for ended, _ in ends))


if __name__ == "__main__":
    main()
