"""The contenders of ``score.py``, each run in a process of its own: NAME DIRECTORY OUT [MORE …].

The directory holds ``store`` and ``latents.pkl``. A contender prints a line of JSON (seconds, peak
megabytes) and writes what it found: ``selected`` (concept, step, feature), sorted, for the
``concepts`` it was asked for, and the ``score`` of one of them.
"""

import importlib.util
import json
import pickle
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from featurestore import Store

CONCEPT, PERCENTILE = "style 7", 99.99
N_STEPS, N_LATENTS, N_POSITIONS, DELTA = 100, 20480, 256, 1e-8
Found = dict[str, Any]


def number(concept: str) -> int:
    """Return the number at the end of a concept's name."""
    return int(concept.rpartition(" ")[2])


def listed(selections: dict[int, list[np.ndarray]]) -> Found:
    """Return (concept, step, feature), sorted, from a concept's features at each step."""
    rows = [
        (c, step, f)
        for c, steps in selections.items()
        for step, fs in enumerate(steps)
        for f in fs.tolist()
    ]
    return {
        "selected": np.array(sorted(rows)).reshape(-1, 3),
        "concepts": np.array(sorted(selections)),
    }


def make(directory: Path, scale: str) -> Found:
    """Make the store."""
    from large_store import make as make_store

    store = make_store(directory / "store", float(scale))
    records = store.records("stats/s")
    n_bytes = sum(file.bytes for record in records for file in record.files)
    return {"rows": sum(r.rows for r in records), "stats_mb": n_bytes / 1e6, "shards": len(records)}


def forget_sums(directory: Path) -> Found:
    """Remove sums and totals, so that they are made anew."""
    store = Store.open(directory / "store")
    for kind in ("totals", "sums"):
        for record in store.records(f"{kind}/s"):
            store.remove(record)
    return {}


def keep(directory: Path) -> Found:
    """Make the sums and totals of both families, as ``encode`` does."""
    from queries.derived.sums import keep_sums

    store = Store.open(directory / "store")
    keep_sums(store, "s")
    n_bytes = sum(file.bytes for record in store.records("sums/s") for file in record.files)
    return {
        "sums_rows": sum(record.rows for record in store.records("sums/s")),
        "sums_mb": n_bytes / 1e6,
    }


def ours(directory: Path, family: str, concept: str) -> Found:
    """Select one concept, as ``featurestore export`` does."""
    from queries import ask, select

    began = time.perf_counter()
    selection = select(Store.open(directory / "store"), "s", family, concept, percentile=PERCENTILE)
    took = {"seconds": time.perf_counter() - began, "peak_mb": peak_mb()}
    score = np.zeros((N_STEPS, N_LATENTS))
    asked = {"family": family, "concept": concept, "top": N_LATENTS}
    table = ask(Store.open(directory / "store"), "concept_scores", asked)
    score[table["step"].to_numpy(), table["feature"].to_numpy()] = table["score"].to_numpy()
    features = [selection.at(timestep).features for timestep in selection.timesteps]
    return {**listed({number(concept): features}), "score": score, **took}


def ours_all(directory: Path) -> Found:
    """Select every concept of a family."""
    from queries.selections import select_all

    began = time.perf_counter()
    selections = select_all(Store.open(directory / "store"), "s", "style", percentile=PERCENTILE)
    seconds = time.perf_counter() - began
    found = {number(s.concept): [s.at(t).features for t in s.timesteps] for s in selections}
    return {**listed(found), "seconds": seconds}


def make_pickle(directory: Path) -> Found:
    """Write the same numbers as SAeUron's script does: concept → float16
    ``[sample, step, latent]``, means over positions."""
    import torch

    store = Store.open(directory / "store")
    path = directory / "latents.pkl"
    if path.exists():
        return {}
    samples = store.arrow("samples", ["sample_id", "style"])
    names, ids = samples["style"].to_pylist(), samples["sample_id"].to_pylist()
    n = names.count(names[0])
    dense = {
        name: torch.zeros(n, N_STEPS, N_LATENTS, dtype=torch.float16)
        for name in dict.fromkeys(names)
    }
    place = {i: (name, number % n) for number, (i, name) in enumerate(zip(ids, names, strict=True))}
    for file in store.files("stats/s"):
        table = pq.read_table(
            file, columns=["sample_id", "step", "feature", "sum"], partitioning=None
        )
        sample_id, step, feature, total = (column.to_numpy() for column in table.columns)
        for i in np.unique(sample_id).tolist():
            mine, (name, row) = sample_id == i, place[i]
            dense[name][row].numpy()[step[mine], feature[mine]] = total[mine] / N_POSITIONS
    with path.open("wb") as file:
        pickle.dump(dense, file)
    return {}


def reference(directory: Path, n_concepts: str, checkout: str | None = None) -> Found:
    """Do what SAeUron's hook does when it is made, for ``n_concepts`` concepts from ``CONCEPT``
    on."""
    import torch

    importance, threshold = _saeuron(Path(checkout)) if checkout else (_importance, _threshold)
    times = [time.perf_counter()]
    with (directory / "latents.pkl").open("rb") as file:
        latents = pickle.load(file)  # the benchmark's own file
    times.append(time.perf_counter())
    first = list(latents).index(CONCEPT)
    found: dict[int, list[np.ndarray]] = {}
    for concept in list(latents)[first : first + int(n_concepts)]:
        for step in range(N_STEPS):
            scores = importance(latents, concept, step).float()
            chosen = torch.where(scores > threshold(scores, PERCENTILE))[0]
            latents[concept][:, step, chosen].mean(0)
            mean_all = torch.zeros(len(chosen))
            for other in latents:
                mean_all += latents[other][:, step, chosen].mean(dim=0)
            found.setdefault(number(concept), []).append(chosen.numpy())
        times.append(time.perf_counter())
    took = {
        "seconds": times[2] - times[0],
        "load": times[1] - times[0],
        "each": (times[-1] - times[1]) / int(n_concepts),
    }
    took["peak_mb"] = peak_mb()
    score = torch.stack([importance(latents, CONCEPT, step) for step in range(N_STEPS)]).numpy()
    return {**listed(found), "score": score, **took}


def _saeuron(checkout: Path) -> tuple[Callable[..., Any], Callable[..., Any]]:
    spec = importlib.util.spec_from_file_location(
        "unlearning_utils", checkout / "SAE" / "unlearning_utils.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.compute_feature_importance, module.get_percentile_threshold


def _importance(latents: dict[str, Any], concept: str, step: int) -> Any:
    """Score as SAeUron does: the others' activations are put together anew for every concept and
    step."""
    import torch

    mine = latents[concept][:, step].float().mean(0)
    rest = torch.cat([latents[name][:, step].float() for name in latents if name != concept]).mean(
        0
    )
    return mine / (mine.sum() + DELTA) - rest / (rest.sum() + DELTA)


def _threshold(scores: Any, percentile: float) -> Any:
    import torch

    return torch.quantile(scores, percentile / 100)


def dense(directory: Path, n_concepts: str) -> Found:
    """The floor of the dense way: the same dictionary, everything added up once, NumPy."""
    began = time.perf_counter()
    with (directory / "latents.pkl").open("rb") as file:
        latents = {name: tensor.numpy() for name, tensor in pickle.load(file).items()}
    n, names = len(latents[CONCEPT]), list(latents)
    first = names.index(CONCEPT) if n_concepts == "1" else 0
    sums = np.stack([latents[name].sum(0, dtype=np.float32) for name in names])
    total, scores, found = sums.sum(0, dtype=np.float64), {}, {}
    for i in range(first, first + int(n_concepts)):
        scores[i] = _scores(sums[i].astype(np.float64), total, n, len(names))
        found[number(names[i])] = [
            np.flatnonzero(s > np.quantile(s, PERCENTILE / 100)) for s in scores[i]
        ]
        if names[i] == CONCEPT:
            kept = scores[i]
    return {"seconds": time.perf_counter() - began, **listed(found), "score": kept}


def _scores(mine: np.ndarray, total: np.ndarray, n: int, n_concepts: int) -> np.ndarray:
    """Return ``[step, latent]`` from means' sums over the samples."""
    mean, rest = mine / n, (total - mine) / (n * (n_concepts - 1))
    return mean / (mean.sum(-1, keepdims=True) + DELTA) - rest / (
        rest.sum(-1, keepdims=True) + DELTA
    )


def polars_all(directory: Path) -> Found:
    """Sums by Polars, a quarter of the steps at a time, as all at once takes more than the machine
    has; scores by NumPy."""
    import polars as pl

    began = time.perf_counter()
    store = Store.open(directory / "store")
    names = store.arrow("samples", ["sample_id", "style"])
    labels = pl.from_arrow(names)
    assert isinstance(labels, pl.DataFrame)
    concepts = sorted(labels["style"].unique().to_list())
    n = len(labels) // len(concepts)
    labels = labels.with_columns(
        c=pl.col("style").replace_strict(
            {name: i for i, name in enumerate(concepts)}, return_dtype=pl.Int32
        )
    )
    found: dict[int, list[np.ndarray]] = {number(name): [] for name in concepts}
    rows = pl.scan_parquet(store.files("stats/s")).select("sample_id", "step", "feature", "sum")
    for step in range(0, N_STEPS, 25):
        part = rows.filter(pl.col("step").is_between(step, step + 24)).join(
            labels.lazy().select("sample_id", "c"), on="sample_id"
        )
        grouped = (
            part.group_by("c", "step", "feature")
            .agg(pl.col("sum").cast(pl.Float64).sum())
            .collect(engine="streaming")
        )
        sums = np.zeros((len(concepts), 25, N_LATENTS))
        sums[
            grouped["c"].to_numpy(),
            grouped["step"].to_numpy() - step,
            grouped["feature"].to_numpy(),
        ] = grouped["sum"].to_numpy()
        total = sums.sum(0)
        for i, name in enumerate(concepts):
            scores = _scores(sums[i] / N_POSITIONS, total / N_POSITIONS, n, len(concepts))
            found[number(name)] += [
                np.flatnonzero(s > np.quantile(s, PERCENTILE / 100)) for s in scores
            ]
    return {"seconds": time.perf_counter() - began, **listed(found)}


def peak_mb() -> float:
    """Return the most memory that this process has held (not what it inherited, as getrusage
    would)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1e3


CONTENDERS: dict[str, Callable[..., Found]] = {
    "make": make, "forget_sums": forget_sums, "keep": keep, "ours": ours, "ours_all": ours_all,
    "pickle": make_pickle, "reference": reference, "dense": dense, "polars_all": polars_all,
}  # fmt: skip


def main() -> None:
    """Run one contender."""
    name, directory, out, *extra = sys.argv[1:]
    began = time.perf_counter()
    found = CONTENDERS[name](Path(directory), *extra)
    figures = {"seconds": time.perf_counter() - began, "peak_mb": peak_mb()}
    arrays = {key: value for key, value in found.items() if isinstance(value, np.ndarray)}
    if arrays:
        np.savez(out, **arrays)
    print(
        json.dumps({**figures, **{key: value for key, value in found.items() if key not in arrays}})
    )


if __name__ == "__main__":
    main()
