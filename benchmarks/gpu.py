"""Everything that needs a GPU, in one go: its tests, its benchmarks, and what is below its bar.

``python -m benchmarks.gpu`` on a machine with torch, or ``make gpu``; eight minutes on an H100.
Each stage has its own limit, so one that hangs does not take the others along. Rows are appended to
``benchmarks/results``. ``--saeuron DIR``: a checkout of SAeUron, whose hook is timed beside ours.

``--dry-run`` needs no GPU and takes a minute or two: every stage with its own options, in the
smallest sizes (``--rehearse``), the kernels in Triton's interpreter. It fails where a stage would
for want of an argument, an import or a figure that a bar asks for; its rows are thrown away.
"""

import argparse
import json
import operator
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


REHEARSED_TESTS = (
    "tests/sae/intervention/test_kernels.py",
    "tests/sae/training/stepping",
    *("-k", "not compile"),
)
"""what a rehearsal runs of the tests: those of the kernels' values"""


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
    needs: str = ""
    """what has to be given for it; empty: nothing"""

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
                "saeuron_over_ours_ten",
                operator.ge,
                3,
                "the released hook ÷ ten concepts",
                needs="--saeuron",
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


def run(stage: Stage, **environment: str) -> tuple[str, float]:
    """Run a stage; returns how it ended and its seconds."""
    began = time.perf_counter()
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    try:
        done = subprocess.run(
            [sys.executable, *stage.command],
            cwd=ROOT,
            env=os.environ | environment | {"PYTHONPATH": path},
            timeout=stage.seconds,
        )
        ended = "passed" if done.returncode == 0 else f"failed with {done.returncode}"
    except subprocess.TimeoutExpired:
        ended = f"stopped after {stage.seconds} s"
    return ended, time.perf_counter() - began


def rehearsed(stage: Stage) -> Stage:
    """Return what a CPU can run of a stage: the same command in its smallest size."""
    command = stage.command
    if "pytest" in command:
        # Triton's interpreter stands for the GPU; what is marked 'gpu' needs one.
        command = tuple(word.replace("gpu or triton", "triton and not gpu") for word in command)
        command = (*command, *REHEARSED_TESTS)
    else:
        command = tuple("cpu" if word == "cuda" else word for word in command if word != "--cuda")
        command = (*command, "--rehearse")
    return stage._replace(command=command, seconds=600)


def unwritten(results: Path, saeuron: bool) -> list[str]:
    """Return a line for each bar whose figure is in no row of a rehearsal: a GPU would not write it
    either."""
    lines = []
    for bar in BARS:
        path = results / f"{bar.benchmark}.jsonl"
        rows = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        figures = [json.loads(row)["figures"] for row in rows]
        needed = {bar.figure, *bar.of}
        if not any(needed <= set(found) for found in figures) and (saeuron or not bar.needs):
            lines.append(
                f"no stage writes {bar.figure} of {bar.benchmark}, which has a bar: {bar.title}"
            )
    return lines


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
    parser.add_argument("--saeuron", type=Path, metavar="DIR")
    options = parser.parse_args()
    stages = [with_saeuron(stage, options.saeuron) for stage in STAGES]
    if options.dry_run:
        with tempfile.TemporaryDirectory() as results:
            failed = run_all(list(map(rehearsed, stages)), BENCHMARK_RESULTS=results)
            wrong = unwritten(Path(results), options.saeuron is not None)
        failed |= bool(wrong)
        lines = [*wrong, *waiting()]
    else:
        before = counted()
        failed = run_all(stages)
        lines = below(before)
    for line in lines:
        print(line)
    sys.exit(failed)


def with_saeuron(stage: Stage, directory: Path | None) -> Stage:
    """Return a stage that also times the released hook, where it times ours."""
    if directory is None or "benchmarks/ablate.py" not in stage.command:
        return stage
    return stage._replace(command=(*stage.command, "--saeuron", str(directory.resolve())))


def run_all(stages: Sequence[Stage], **environment: str) -> bool:
    """Run stages one after another, say how each ended, and return whether one failed."""
    ends = []
    for stage in stages:
        print(f"— {stage.name}", flush=True)
        ends.append(run(stage, **environment))
    for stage, (ended, seconds) in zip(stages, ends, strict=True):
        print(f"{ended:24} {seconds:6.1f} s  {stage.name}")
    return any(ended != "passed" for ended, _ in ends)


if __name__ == "__main__":
    main()
