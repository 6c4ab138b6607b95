"""How long the command line takes to start: the help, and a question to a store.

python benchmarks/start.py STORE --sae NAME

Each command runs in a new process, eleven times, of which the first is not counted; a Python that
does nothing runs beside them.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from record import record

RUNS = 10
COMMAND = (sys.executable, "-m", "featurestore")


def timed(*command: str) -> dict[str, float]:
    """Return the least and the median seconds of a command, and the median of the processor's."""
    clock, cpu = [], []
    for _ in range(RUNS + 1):
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        clock.append(time.perf_counter() - began)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    median = statistics.median
    return {"min_s": min(clock[1:]), "median_s": median(clock[1:]), "cpu_s": median(cpu[1:])}


def main() -> None:
    """Time them and record it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("store", type=Path)
    parser.add_argument("--sae", required=True)
    options = parser.parse_args()
    question = ("query", str(options.store), "timestep_profile")
    question += ("-p", f"sae={options.sae}", "-p", "feature=41", "--format", "json")
    rows = json.loads(subprocess.run((*COMMAND, *question), check=True, capture_output=True).stdout)
    assert len(rows) > 0, "an answer"
    commands = {
        "python": (sys.executable, "-c", "pass"),
        "help": (*COMMAND, "--help"),
        "query": (*COMMAND, *question),
    }
    figures: dict[str, Any] = {}
    for name, command in commands.items():
        figures |= {f"{name}_{key}": value for key, value in timed(*command).items()}
    record("start", figures)


if __name__ == "__main__":
    main()
