"""Scores and selections at the published size: ours, SAeUron's path, a dense pass and Polars, on
one store.

python benchmarks/score.py a tenth of the published size, a minute python benchmarks/score.py
--scales 1 3 10 --directory /tmp/large the published size, then more samples: 24 GB of disk, an hour

Each contender runs in a process of its own, on files that are dropped from the page cache before,
and is timed from the first look at the store to the last selected feature, imports left out; its
memory is the peak of the whole process. Before a time is printed, its scores must be those of the
others within 1e-6, and its selections the same. SAeUron's path: unpickle the dictionary concept →
float16 tensor ``[sample, step, latent]``, then ``compute_feature_importance``, the quantile and the
means of what lies above it, for each step, as the hook does that ablates. ``--saeuron DIRECTORY``
(a checkout) has it run its own functions. ``--former DIRECTORY`` is this project's own engine of
version 0.1, in NumPy over ``stats``. It is timed for ``--reference-concepts`` and, all doing the
same work, multiplied for all.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

CONCEPT, MIXED_CONCEPT, PERCENTILE = "style 7", "thing 1", 99.99
PEERS_SCALE = 1.0
"""above it the dictionary of dense tensors does not fit memory: ours alone goes on"""


def run(
    contender: str, directory: Path, *extra: str, runs: int = 1, checkout: Path | None = None
) -> dict[str, Any]:
    """Run a contender in a new process on cold files; return the fastest run's seconds, the peak
    megabytes and what it found."""
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
        environment = os.environ | ({} if checkout is None else {"PYTHONPATH": str(checkout)})
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
        if not best or figures["seconds"] < best["seconds"]:
            best = {**figures, "found": dict(np.load(out)) if out.exists() else {}}
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


def measure(directory: Path, scale: float, options: argparse.Namespace) -> dict[str, Any]:
    """Make the store of a scale and run everyone on it."""
    figures: dict[str, Any] = run("make", directory, str(scale))
    figures = {"scale": scale, **{key: figures[key] for key in ("rows", "stats_mb", "shards")}}
    timed: dict[str, dict[str, Any]] = {}

    def race(
        name: str,
        contender: str,
        *extra: str,
        like: str | None = "ours",
        runs: int = 1,
        checkout: Path | None = None,
    ) -> None:
        timed[name] = run(contender, directory, *extra, runs=runs, checkout=checkout)
        if like:
            check(name, timed[name]["found"], timed[like]["found"])
        figures.update({f"{name}_s": timed[name]["seconds"], f"{name}_mb": timed[name]["peak_mb"]})
        figures["most_by_others_s"] = max(
            figures.get("most_by_others_s", 0.0), timed[name]["others"]
        )

    made = run("keep", directory)
    figures |= {"make_sums_s": made["seconds"], "make_sums_mb": made["peak_mb"]}
    figures |= {key: made[key] for key in ("sums_rows", "sums_mb")}
    race("ours", "ours", "style", CONCEPT, like=None, runs=3)
    race("ours_mixed", "ours", "object", MIXED_CONCEPT, like=None, runs=3)
    race("ours_all", "ours_all", like=None, runs=3)
    check("ours", timed["ours"]["found"], timed["ours_all"]["found"])
    if options.former:
        race("former", "ours", "style", CONCEPT, runs=3, checkout=options.former)
        race("former_all", "ours_all", like="ours_all", runs=3, checkout=options.former)
    if scale <= PEERS_SCALE:
        run("pickle", directory)
        theirs = [str(options.saeuron)] if options.saeuron else []
        race("reference", "reference", str(options.reference_concepts), *theirs, like="ours_all")
        check("reference", timed["reference"]["found"], timed["ours"]["found"])
        figures["reference_all_s"] = timed["reference"]["load"] + 50 * timed["reference"]["each"]
        race("dense", "dense", "1")
        race("dense_all", "dense", "50", like="ours_all")
        race("polars_all", "polars_all", like="ours_all")
        figures["reference_over_ours"] = figures["reference_s"] / figures["ours_s"]
        figures["reference_over_ours_mixed"] = figures["reference_s"] / figures["ours_mixed_s"]
        figures["ours_memory_over_reference"] = figures["ours_mb"] / figures["reference_mb"]
        figures["reference_all_over_ours_all"] = figures["reference_all_s"] / figures["ours_all_s"]
    return figures


def main() -> None:
    """Measure every scale asked for, one recorded line each."""
    from record import record

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--scales",
        type=float,
        nargs="+",
        default=[0.1],
        help="1: 20 samples of each of 50 concepts",
    )
    parser.add_argument("--directory", type=Path, help="keep the stores here and use them again")
    parser.add_argument(
        "--saeuron", type=Path, help="a checkout of SAeUron, whose own functions are run"
    )
    parser.add_argument("--reference-concepts", type=int, default=3)
    parser.add_argument(
        "--former", type=Path, help="a checkout of this project before sums were kept (16584f0)"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        for scale in options.scales:
            directory = (options.directory or Path(temporary)) / f"{scale:g}"
            directory.mkdir(parents=True, exist_ok=True)
            record("score", measure(directory, scale, options))


if __name__ == "__main__":
    main()
