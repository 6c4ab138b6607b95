"""Scores and selections at the published size: ours, SAeUron's path, a dense pass and Polars, on
one store.

python benchmarks/score.py                        a tenth of the published size, a minute
python benchmarks/score.py --scales 1 3 --directory /tmp/large
                                                  the published size, then more samples: 20 GB of
                                                  disk, half an hour
python benchmarks/score.py --scales 1 --directory /tmp/large --prepare
python benchmarks/score.py --scales 1 --directory /tmp/large --seconds 300
                                                  the same in pieces: what is not timed, then as
                                                  many contenders as begin within 300 s; run the
                                                  second again until all are measured

Each contender runs in a process of its own, on files that are dropped from the page cache before,
and is timed from the first look at the store to the last selected feature, imports left out; every
file that it reads is verified in its time, but for ``ours_verified_before``, which trusts what an
earlier run has verified, as commands do. Its memory is the peak of the whole process. Before a
time is recorded, its scores must be those of the others within 1e-6, and its selections the same.
SAeUron's path: unpickle the dictionary concept → float16 tensor ``[sample, step, latent]``, then
``compute_feature_importance``, the quantile and the means of what lies above it, for each step, as
the hook does that ablates. ``--saeuron DIRECTORY`` (a checkout) has it run its own functions.
``--former DIRECTORY`` (a checkout of 16584f0) is this project's own engine of version 0.1, in NumPy
over ``stats`` and its own totals. The reference is timed for ``--reference-concepts`` and, all
doing the same work, multiplied for all.
"""

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from record import record
from scaling.many_shards import as_former
from score_process import check, run

# What made the statement for all 50 styles cheaper than the dense engine: seconds of the processors
# for the statement alone, other work beside it, at scale 1 (36 million sums, 1.7 million totals) or
# 0.1 (13 million sums), where the answers were the same bits.
#   7.1 (0.1: 2.7)  before. It was expected that max_by over structs costs most; it was the join:
#                   by the filter mean_concept > 0 DuckDB expected a twenty-fifth of the sums, so
#                   it built the hash table of them and spilled 0.7 GB.
#   4.8 (0.1: 1.8)  the table built of totals: $only_fired leaves out the other half of the union,
#                   so that no filter on the sums is needed.
# At 0.1, without gain: 10 or 4 steps at a time (1.5 and 1.6 instead of 1.35 for scan, join and
# score); the join by one number, step * n_latents + feature (1.3; 0.68 instead of 0.82 for the
# first 40 steps, where the numbers are few enough for DuckDB's direct table: not worth a statement
# that is harder to read). The scan alone takes 0.3, max_by over structs 0.6.
# One style: 0.43 before, 0.30 with that, 0.27 with the timestep from sums instead of totals. Around
# it 0.25 went into importing pandas, which pyarrow does for a comparison with a value of Python,
# and 0.2 into following 20,000 page headers of the sums when every file is verified.
# With every file verified one style takes 0.47 s of the clock, verified before 0.24; the dense
# engine took 0.36. What is missing, of 107 MB of sums in 13 files, in seconds of the processors:
# SHA-256 0.07, footers 0.04, page headers 0.03, and that all bytes come from the disk, where the
# statement needs one concept in fifty. Verifying only the row groups that are read would mend it,
# but DuckDB chooses them itself, by statistics in the file.
# Aggregates in the place of windows, ten of the hundred steps: overlap 1.5 before, 0.3 now;
# overlap_matrix 1.9, 0.4; importance_one_vs_max 10.8, 6.3; importance_log_ratio 4.5, 4.3;
# random_control 0.13, 0.07. best_scores and best_features read all scores twice then, and did not
# end within 600 MB; by candidates.sql, whose bounds need the sums alone, they take 1.8 and 3.1
# (0.1).

CONCEPT, MIXED_CONCEPT, PERCENTILE = "style 7", "thing 1", 99.99


PEERS_SCALE = 1.0
"""above it the dictionary of dense tensors does not fit memory: ours alone goes on"""


@dataclass(frozen=True)
class Race:
    """A contender that is timed."""

    name: str
    contender: str
    extra: tuple[str, ...] = ()
    like: str | None = None
    """the race before it whose selections it must have"""
    runs: int = 1
    former: bool = False
    verify: str = "always"


def races(scale: float, options: argparse.Namespace) -> list[Race]:
    """Return what is timed at a scale, in order."""
    one, all_styles = ("style", CONCEPT), "ours_all"
    listed = [
        Race("make_sums", "keep"),
        Race("ours", "ours", one, runs=3),
        Race("ours_verified_before", "ours", one, "ours", 4, verify="cached"),
        Race("ours_mixed", "ours", ("object", MIXED_CONCEPT), runs=3),
        Race("ours_all", "ours_all", like="ours", runs=3),
    ]
    if options.kept:
        listed = [race for race in listed if race.name not in ("make_sums", "ours_mixed")]
    if options.former:
        listed += [
            Race("former", "ours", one, "ours", 3, former=True),
            Race("former_mixed", "ours", ("object", MIXED_CONCEPT), "ours_mixed", 3, former=True),
            Race("former_all", "ours_all", (), all_styles, 3, former=True),
        ]
    if scale <= PEERS_SCALE:
        theirs = (str(options.saeuron),) if options.saeuron else ()
        asked = (str(options.reference_concepts), *theirs)
        listed += [
            Race("reference", "reference", asked, all_styles),
            Race("dense", "dense", ("1",), "ours"),
            Race("dense_all", "dense", ("50",), all_styles),
            Race("polars_all", "polars_all", (), all_styles),
        ]
    return listed


def prepare(directory: Path, scale: float, former: Path | None) -> dict[str, Any]:
    """Make the store, the dictionary that the reference unpickles, and a second store with the
    totals of the former engine; return the size of the store."""
    size = directory / "size.json"
    if not size.exists():
        made = run("make", directory, str(scale))
        figures = {key: made[key] for key in ("rows", "stats_mb", "shards")}
        size.write_text(json.dumps(figures), encoding="utf-8")
    if scale <= PEERS_SCALE and not (directory / "latents.pkl").exists():
        run("pickle", directory)
    beside = directory / "former"
    if former and not (beside / "done").exists():
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        as_former(directory / "store").rename(beside / "store")
        run("keep", beside, checkout=former)
        (beside / "done").touch()
    return dict(json.loads(size.read_text(encoding="utf-8")))


def measure(
    directory: Path, listed: Sequence[Race], former: Path | None, until: float
) -> dict[str, dict[str, Any]] | None:
    """Run the races that were not run before and begin until a time; return all, or None if some
    are left."""
    kept = directory / "measured"
    kept.mkdir(exist_ok=True)
    timed: dict[str, dict[str, Any]] = {}
    for race in listed:
        figures, found = kept / f"{race.name}.json", kept / f"{race.name}.npz"
        if not figures.exists():
            if time.monotonic() > until:
                print(f"{race.name} and what follows are left: run this again.")
                return None
            if race.name == "make_sums":
                run("forget_sums", directory)
            place, checkout = (directory / "former", former) if race.former else (directory, None)
            took = run(
                race.contender, place, *race.extra,
                runs=race.runs, checkout=checkout, verify=race.verify,
            )  # fmt: skip
            np.savez(found, **took.pop("found"))
            figures.write_text(json.dumps(took), encoding="utf-8")
        timed[race.name] = json.loads(figures.read_text(encoding="utf-8"))
        timed[race.name]["found"] = dict(np.load(found))
        if race.like:
            check(race.name, timed[race.name]["found"], timed[race.like]["found"])
    return timed


def summary(timed: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the recorded figures of all races."""
    figures: dict[str, Any] = {}
    for name, took in timed.items():
        figures |= {f"{name}_s": took["seconds"], f"{name}_mb": took["peak_mb"]}
        figures[f"{name}_process_cpu_s"] = took["process_cpu_s"]
    figures["most_by_others_s"] = max(took["others"] for took in timed.values())
    if "make_sums" in timed:
        figures |= {key: timed["make_sums"][key] for key in ("sums_rows", "sums_mb")}
    if "reference" in timed:
        check("reference", timed["reference"]["found"], timed["ours"]["found"])
        reference = timed["reference"]
        figures["reference_all_s"] = reference["load"] + 50 * reference["each"]
        figures["reference_over_ours"] = figures["reference_s"] / figures["ours_s"]
        figures["reference_over_ours_mixed"] = figures["reference_s"] / figures["ours_mixed_s"]
        figures["ours_memory_over_reference"] = figures["ours_mb"] / figures["reference_mb"]
        figures["reference_all_over_ours_all"] = figures["reference_all_s"] / figures["ours_all_s"]
    return figures


def main() -> None:
    """Measure every scale asked for, one recorded line each."""

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
    parser.add_argument(
        "--kept", action="store_true", help="only styles, from the sums of them that are there"
    )
    parser.add_argument("--prepare", action="store_true", help="only make what is not timed")
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="begin no contender after these"
    )
    options = parser.parse_args()
    until = time.monotonic() + options.seconds
    with tempfile.TemporaryDirectory() as temporary:
        for scale in options.scales:
            directory = (options.directory or Path(temporary)) / f"{scale:g}"
            directory.mkdir(parents=True, exist_ok=True)
            size = prepare(directory, scale, options.former)
            if options.prepare:
                continue
            timed = measure(directory, races(scale, options), options.former, until)
            if timed is None:
                break
            record("score", {"scale": scale, **size, **summary(timed)})
            shutil.rmtree(directory / "measured")


if __name__ == "__main__":
    main()
