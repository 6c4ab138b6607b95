"""A contender of ``score.py`` in a process of its own, on cold files; what it found compared with
the others."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np


def run(
    contender: str,
    directory: Path,
    *extra: str,
    runs: int = 1,
    checkout: Path | None = None,
    verify: str = "always",
) -> dict[str, Any]:
    """Run a contender in a new process on cold files; return the fastest run's seconds, its peak
    megabytes and what it found, and the least seconds of the processors."""
    best: dict[str, Any] = {}
    for _ in range(runs):
        forget(directory)
        out = directory / "found.npz"
        scripts = Path(__file__).parent if checkout is None else checkout / "benchmarks"
        command = [
            sys.executable,
            scripts / "score_contenders.py",
            contender,
            directory,
            out,
            *extra,
        ]
        environment = os.environ | {"FEATURESTORE_VERIFY": verify}
        environment |= {} if checkout is None else {"PYTHONPATH": str(checkout)}
        before = busy_seconds(), os.times()
        printed = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, text=True, env=environment
        ).stdout
        after = busy_seconds(), os.times()
        own = sum(
            getattr(after[1], kind) - getattr(before[1], kind)
            for kind in ("children_user", "children_system")
        )
        figures = {**json.loads(printed.splitlines()[-1]), "others": after[0] - before[0] - own}
        cpu = min(own, best.get("process_cpu_s", own))
        if not best or figures["seconds"] < best["seconds"]:
            best = {**figures, "found": dict(np.load(out)) if out.exists() else {}}
        best["process_cpu_s"] = cpu
        out.unlink(missing_ok=True)
    others = f"{best['others']:6.1f} s of other processes"
    print(
        f"{contender:24} {best['seconds']:9.2f} s {best['peak_mb']:9.0f} MB {others}",
        *extra,
        flush=True,
    )
    return best


def busy_seconds() -> float:
    """Return the processors' time, of all processes: a time that others took part in is no
    measurement."""
    user, nice, system = Path("/proc/stat").read_text(encoding="utf-8").split()[1:4]
    return (int(user) + int(nice) + int(system)) / os.sysconf("SC_CLK_TCK")


def forget(directory: Path) -> None:
    """Drop the files below a directory from the page cache."""
    os.sync()
    for path in (p for p in directory.rglob("*") if p.is_file()):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def check(name: str, found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Refuse another selection, or a score that is off by more than 1e-6."""
    both = set(found) & set(expected)
    assert "selected" in both, name
    concepts = np.intersect1d(found["concepts"], expected["concepts"])
    mine, theirs = (
        x["selected"][np.isin(x["selected"][:, 0], concepts)] for x in (found, expected)
    )
    assert len(mine), f"{name} selects nothing"
    assert np.array_equal(mine, theirs), f"{name} selects other features"
    if "score" in both:
        assert np.abs(found["score"] - expected["score"]).max() <= 1e-6, f"{name} has other scores"
