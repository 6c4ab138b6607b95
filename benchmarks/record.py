"""What every benchmark writes: one JSON line per run, with machine, versions and date."""

import datetime
import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(os.environ.get("BENCHMARK_RESULTS", Path(__file__).parent / "results"))
"""where rows are kept; a rehearsal's go elsewhere, so that no figure of it is ever quoted"""
PACKAGES = ("torch", "pyarrow", "duckdb", "polars", "datasets", "numpy")


def machine() -> dict[str, Any]:
    """Return what the numbers depend on."""
    with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
        names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
    }


def record(benchmark: str, figures: dict[str, Any]) -> None:
    """Append a run to ``results/<benchmark>.jsonl`` and print it."""
    versions = {
        name: importlib.metadata.version(name)
        for name in PACKAGES
        if importlib.util.find_spec(name)
    }
    row = {
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "versions": versions,
        "figures": figures,
    }
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{benchmark}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    for key, value in figures.items():
        print(f"{key:48} {value:.4g}" if isinstance(value, float) else f"{key:48} {value}")


def interleaved(runs: int, **candidates: Callable[[], object]) -> dict[str, float]:
    """Return the median seconds of each candidate; they take turns, so that a slow moment of the
    machine hits all.

    What one leaves to the system to write is written before the next begins, outside its time.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(runs + 1):
        for name, call in candidates.items():
            os.sync()
            began = time.perf_counter()
            call()
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}
