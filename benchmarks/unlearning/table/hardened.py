"""Our chosen setting, made to withstand attack: what attacks on the search's pictures use is taken,
too."""

import functools
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from benchmarks.unlearning.methods.defence import Bench, Defence
from benchmarks.unlearning.methods.keys import short_hash
from benchmarks.unlearning.methods.ours import features
from benchmarks.unlearning.table.attacks import attack_settings, styled
from benchmarks.unlearning.table.run import Run
from collectors.learner import learner
from featurestore.selection import Selection
from featurestore.selection_files import ROWS
from featurestore.store import Store
from queries.selections import select
from sae.evaluation.attack.hardening import HardenSettings, harden
from sae.evaluation.attack.loop import VERSION
from sae.intervention.settings import Intervention

HARDENED = "ours, hardened"
TOP = 8
"""features per step of what came back, the default of ``featurestore harden``"""


def hardened(run: Run, chosen: Sequence[Intervention]) -> Defence:
    """Return a chosen setting with what hardening adds to it: from the ledger, or found in a copy
    of the store, and added to the ledger."""
    bench, selection = run.bench, chosen[0].selection
    settings = HardenSettings(
        attack=attack_settings(run, "words", selection.family, seed=0),
        pictures=run.amounts.search_attacked,
        n_others=run.amounts.looks[-1].n_others,
    )
    about = {
        "method": HARDENED,
        "edits": [one.identified() for one in chosen],
        "settings": asdict(settings),
        "top": TOP,
        "attack": VERSION,
        "basis": dict(bench.basis),
        "collected": bench.collected,
        "prompts": [p.identity for p in styled(run.search_prompts)],
        "judge": run.chooser.name,
    }
    key = short_hash(about)
    if key not in bench.ledger.rows:
        bench.pace.check()
        if bench.pace.counting:
            bench.pace.count(key, HARDENED)
            return features(bench, chosen, method=HARDENED)
        _harden(run, key, chosen, settings)
    added = [_read(bench, chosen[0], one) for one in bench.ledger.rows[key]["added"]]
    return features(bench, [*chosen, *added], method=HARDENED)


def _harden(run: Run, key: str, chosen: Sequence[Intervention], settings: HardenSettings) -> None:
    bench, selection = run.bench, chosen[0].selection
    folder = bench.root / "hardened" / f"{selection.concept}-{key}"
    # What is learnt from is added to the store, and would change the scores of everything else.
    store = _copy(bench.store, folder / "store")
    began = time.perf_counter()
    result = harden(
        bench.model,
        chosen,
        prompts=styled(run.search_prompts),
        judge=run.chooser,
        learn=learner(
            store,
            bench.model,
            bench.run,
            select=functools.partial(select, top=TOP),
            batch_size=bench.batch_size,
            progress=False,
        ),
        out=folder,
        settings=settings,
        run=bench.run,
        batch_size=bench.batch_size,
        progress=False,
    )
    bench.ledger.add(
        key,
        kind="hardening",
        method=HARDENED,
        family=selection.family,
        concept=selection.concept,
        seconds=time.perf_counter() - began,
        reason=result.reason,
        rounds=result.rounds,
        added=[_written(bench, one) for one in result.interventions[len(chosen) :]],
    )
    shutil.rmtree(folder)


def _copy(store: Store, path: Path) -> Store:
    """Return a copy of a store: the one that an interrupted run goes on in, or a new one."""
    if not path.is_dir():
        begun = path.with_suffix(".begun")
        shutil.rmtree(begun, ignore_errors=True)
        shutil.copytree(store.root, begun)
        begun.rename(path)
    return Store.open(path)


def _written(bench: Bench, one: Intervention) -> dict[str, Any]:
    """Return what an intervention has that the concept's own has not."""
    selection = replace(one.selection, store=str(bench.store.root.resolve()))
    header = selection.header(bench.store.root.resolve())
    rows = selection.rows.to_pydict()
    return {"strength": one.strength, "selection": header, "rows": rows}


def _read(bench: Bench, own: Intervention, row: dict[str, Any]) -> Intervention:
    """Return the intervention that was written."""
    rows = pa.Table.from_pydict(row["rows"], schema=ROWS)
    place = bench.store.root.resolve() / bench.ledger.path.name
    selection = Selection.from_header(row["selection"], rows, place)
    return replace(own, selection=selection, strength=row["strength"])
