"""Every pair of writers at once, with different bytes under one name: what is committed stays what
it was."""

import contextlib
import hashlib
import io
import itertools
import json
import multiprocessing
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from featurestore import Store
from featurestore.card import write_card
from featurestore.errors import FeatureStoreError
from featurestore.format.schemas import SCORES
from featurestore.maintenance.compact import compact
from featurestore.maintenance.repair import repair
from featurestore.maintenance.verify import verify
from featurestore.saes import commit_sae
from featurestore.sharing.bundle import pack
from tests.torture.crashes import ROWS, RUN, STATS_ROWS, Outcome

FORK = multiprocessing.get_context("fork")
_CONFIG = {
    "d_in": 8,
    "n_latents": 16,
    "k": 4,
    "hook": "h",
    "architecture": "topk",
    "io": "output",
    "height": 1,
    "width": 1,
}
Writer = Callable[[Store, int], object]


def _append(store: Store, number: int) -> None:
    store.append("scores/s", "a", ROWS.slice(number, 50), (), made_by={"number": number})


def _append_parts(store: Store, number: int) -> None:
    store.append_parts(
        "scores/s",
        "a",
        SCORES,
        [ROWS.slice(number, 20), ROWS.slice(number + 30, 20)],
        made_by={"number": -number},
    )


def _selection(store: Store, number: int) -> None:
    store.append("selections/s", "a", ROWS.slice(2 * number, 30), (), made_by={})


def _sae(store: Store, number: int) -> None:
    weights = bytes([number % 256]) * (1000 + number)
    commit_sae(
        store,
        "z",
        {"config.json": json.dumps(_CONFIG).encode(), "sae.safetensors": weights},
        {"number": number},
    )


def _supersede(store: Store, number: int) -> None:
    for record in store.records("scores/s"):
        if record.shard != "b":
            store.remove(record)
    store.append("scores/s", "b", ROWS.slice(number, 40), (), made_by={})


def _card(store: Store, number: int) -> None:
    write_card(store)


def _repair(store: Store, number: int) -> None:
    repair(store.root)


def _pack_over(store: Store, number: int) -> None:
    pack(store, store.root / "scores/s/a.parquet")


def _stats(store: Store, number: int) -> None:
    """Write the same shards as everyone who does so, as `encode` and `collect` do."""
    for shard in range(4):
        rows, ids = STATS_ROWS.slice(10 * shard, 10), (shard,)
        store.append("stats/s", f"{shard:08d}-0123456789abcdef", rows, ids, made_by={})


def _compact(store: Store, number: int) -> None:
    for _ in range(2):
        compact(store)
        _stats(store, number)


WRITERS: dict[str, Writer] = {
    "append": _append, "append_parts": _append_parts, "selection": _selection, "sae": _sae, "supersede": _supersede,
    "card": _card, "repair": _repair, "pack over": _pack_over, "stats": _stats, "compact": _compact,
}  # fmt: skip


def _work(tasks: Any, gate: Any, results: Any) -> None:
    """Do what is asked for, each time at once with the other; None ends it."""
    while (task := tasks.get()) is not None:
        root, name, number = task
        store, wrong = Store.open(root), ""
        gate.wait()
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                WRITERS[name](store, number)
        except FeatureStoreError as error:
            wrong = "" if "\n" not in str(error) else f"several lines: {error}"
        except Exception as error:  # noqa: BLE001
            wrong = f"{type(error).__name__}: {error}"
        results.put(wrong)


def race(work: Path, rounds: int) -> Outcome:
    """Let every pair of writers, each writer with itself too, write at once; look whether what
    stands is whole.

    A third shard of each kind is there before: nobody may change it.
    """
    outcome = Outcome()
    pairs = list(itertools.combinations_with_replacement(WRITERS, 2))
    made = Store.create(work / "made", RUN)
    for table in ("scores/t", "selections/s"):
        made.append(table, "before", ROWS.slice(0, 10), (), made_by={})
    write_card(made)
    before = _committed(made, "before")
    gate, results, tasks = FORK.Barrier(2), FORK.Queue(), [FORK.Queue() for _ in range(2)]
    children = [FORK.Process(target=_work, args=(asked, gate, results)) for asked in tasks]
    for child in children:
        child.start()
    for number, (one, other) in itertools.product(range(rounds), pairs):
        root = Path(shutil.copytree(made.root, work / f"{one} {other} {number}"))
        store = Store.open(root)
        for place, name in enumerate((one, other)):
            tasks[place].put((root, name, 7 * number + 100 * place + 1))
        said = [results.get() for _ in children]
        outcome.tried += 1
        wrong = [line for line in said if line] + [
            f"{p.path} {p.what}" for p in verify(store) if p.damage
        ]
        ids = [i for record in store.records("stats/s") for i in record.sample_ids]
        wrong += ["rows are there twice"] if len(ids) != len(set(ids)) else []
        wrong += (
            ["what was there before has changed"] if _committed(store, "before") != before else []
        )
        if wrong:
            outcome.broken.append(f"{one} and {other}: {wrong[0]}")
    for asked, child in zip(tasks, children, strict=True):
        asked.put(None)
        child.join()
    return outcome


def _committed(store: Store, shard: str) -> dict[str, str]:
    return {
        path.relative_to(store.root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in store.root.rglob(f"{shard}.*")
        if ".work" not in path.parts
    }
