"""What all cells of the table share: a store, SAEs and pictures to begin from, and how a cell is
made."""

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.unlearning.ledger import LIBRARIES, Ledger, outcome_of, outcome_row
from benchmarks.unlearning.methods.defence import Bench, Defence, Grid, removal
from benchmarks.unlearning.methods.keys import short_hash
from benchmarks.unlearning.pace import Pace
from benchmarks.unlearning.table.amounts import Amounts
from collectors.collection import CollectSettings, collect
from featurestore.errors import ModelError
from featurestore.format import durable
from featurestore.prompts import Prompt, read_prompts
from featurestore.store import Store
from minicanvas import Canvas
from sae.diffusion.pipelines import Model, RunSettings, describe_run
from sae.encoding import encode
from sae.evaluation.judge import Judge, load_judge, named
from sae.evaluation.measures.accuracy import Answer, Targets, asks
from sae.evaluation.outcomes import Outcome, Reference, depends_on, made, untouched
from sae.evaluation.search import Look
from sae.training.train import TrainSettings, train

SAES = (
    ("unet.up_blocks.1.attentions.1", 16),
    ("unet.up_blocks.0.attentions.1", 16),
    ("unet.up_blocks.0.attentions.1", 32),
)
"""hook and k of the SAEs among which each concept's is searched"""


CROSSING_K = 4
"""k of the SAEs of every cross-attention; with 16 a quarter of the features that are left fire for
everything, and concepts share them"""


class Run(NamedTuple):
    """What is shared by all cells."""

    bench: Bench
    crossing: Bench
    """the same with a store of every cross-attention, where what is asked for enters, and SAEs of
    these"""
    amounts: Amounts
    prompts: list[Prompt]
    search_prompts: list[Prompt]
    judge: Judge
    chooser: Judge
    reference: Reference
    before: Outcome


VERSION = 1
"""of how our rule and the searches compute; rows of another are made anew"""


def prepare(
    root: Path,
    model: Model,
    run: RunSettings,
    *,
    canvas: Canvas,
    amounts: Amounts,
    grid: Grid,
    ledger: Ledger,
    pace: Pace | None = None,
) -> Run:
    """Collect, train, encode and judge the untouched model, or find it done in ``root``."""
    path = root / "prompts.jsonl"
    write_prompts(path, canvas)
    styled = [p for p in read_prompts(path, amounts.collect_seeds) if p.labels["style"] is not None]
    training = {"expansion": amounts.expansion, "batch_size": amounts.train_batch}
    at_hooks = partial(_learnt, model=model, run=run, prompts=styled)
    saes = {f"sae{i}": sae for i, sae in enumerate(SAES)}
    crossings = {f"cross{i}": (hook, CROSSING_K) for i, hook in enumerate(cross_attentions(model))}
    bench = Bench(
        root,
        canvas,
        model,
        run,
        at_hooks(root / "store", saes, training={**training, "steps": amounts.train_steps}),
        [*dict.fromkeys(hook for hook, _ in SAES)],
        [*saes],
        grid,
        ledger,
        pace or Pace(),
        {"run": describe_run(model, run), "weights": weights_hash(canvas), **_versions()},
        short_hash([[*p.identity, named(p.labels)] for p in styled]),
    )
    judge, chooser = (
        load_judge([f"{canvas.name}:{name}"], str(model.pipe.device))
        for name in ("judge", "selection")
    )
    prompts = read_prompts(path, amounts.report_seeds)
    before, reference = untouched(
        root / "cells" / bench.basis["weights"],  # Features are of a judge, not only of its name.
        model,
        run,
        prompts=prompts,
        judge=judge,
        batch_size=bench.batch_size,
    )
    crossing = replace(
        bench,
        store=at_hooks(
            root / "cross-attention",
            crossings,
            training={**training, "steps": amounts.crossing_steps},
        ),
        hooks=[hook for hook, _ in crossings.values()],
        saes=[*crossings],
        grid=replace(grid, tops=grid.crossing_tops),
        selected={},
    )
    return Run(
        bench,
        crossing,
        amounts,
        prompts,
        read_prompts(path, amounts.looks[-1].seeds),
        judge,
        chooser,
        reference,
        before,
    )


def _learnt(
    path: Path,
    saes: Mapping[str, tuple[str, int]],
    *,
    model: Model,
    run: RunSettings,
    prompts: Sequence[Prompt],
    training: Mapping[str, Any],
) -> Store:
    """Return a store with activations of all prompts at the hooks of SAEs, the SAEs trained on
    them, and their codes: made, or found done.

    ``saes``: name → hook and k.
    """
    hooks = [*dict.fromkeys(hook for hook, _ in saes.values())]
    store = collect(path, model, prompts, run, CollectSettings(hooks=hooks, batch_size=20)).store
    for name, (hook, k) in saes.items():
        if store.record("saes", name) is None:
            train(store, hook, name, TrainSettings(k=k, **training))
        encode(store, name)
    return Store.open(store.root)


def cross_attentions(model: Model) -> list[str]:
    """Return the hooks of every cross-attention of a UNet, in order."""
    names = (name for name, _ in model.pipe.unet.named_modules())
    return [f"unet.{name}" for name in names if name.endswith(".attn2")]


def write_prompts(path: Path, canvas: Canvas) -> None:
    """Write every prompt of a benchmark with its labels, those without a style last."""
    lines = canvas.all_prompts(include_plain=True)
    durable.write_bytes(path, "".join(json.dumps(line) + "\n" for line in lines).encode())


def _versions() -> dict[str, Any]:
    """Return the versions that pictures depend on, to the second number."""
    libraries = {name: importlib.metadata.version(name).split(".")[:2] for name in LIBRARIES}
    return {"libraries": libraries, "benchmark": VERSION}


def weights_hash(canvas: Canvas) -> str:
    """Return a hash of all weights of a benchmark's model and its classifiers."""
    files = sorted(canvas.folder.rglob("*.safetensors"))
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    return short_hash(digests)


def cell(run: Run, defence: Defence, look: Look | None = None) -> Outcome:
    """Return a defence's outcome, on what is reported or on the search's judge and pictures: from
    the ledger, or made and added to it."""
    prompts, judge, reference = _asked(run, defence, look)
    bench, removed = run.bench, removal(run.bench, defence)
    _, key = depends_on(removed, prompts, judge, identity=bench.basis, reference=reference)
    if key not in bench.ledger.rows:
        bench.pace.check()
        if bench.pace.counting:
            count_training(run, defence)
            bench.pace.count(key, "picture", len(prompts))
            return _shown(defence, prompts, judge, others=True)
        defence.prepare()
        try:
            outcome = made(removed, prompts, judge, reference)
        except ModelError:
            if look is None:
                raise
            outcome = _shown(defence, prompts, judge, others=False)
        what = {"targets": defence.targets, "setting": defence.setting, "judge": judge.name}
        split = "search" if look else "report"
        seeds = sorted({p.seed for p in prompts})
        row = outcome_row(outcome, prompts)
        bench.ledger.add(key, kind="cell", split=split, seeds=seeds, **what, **row)
    of = {"targets": defence.targets, "setting": defence.setting, "judge": judge.name}
    return outcome_of(bench.ledger.rows[key], prompts, **of)


def _asked(
    run: Run, defence: Defence, look: Look | None
) -> tuple[list[Prompt], Judge, Reference | None]:
    """Return the prompts of a cell, who judges, and what kept pictures are compared with."""
    if look:
        return look.taken(run.search_prompts, defence.targets), run.chooser, None
    several = sum(map(len, defence.targets.values())) > 1
    n_seeds = run.amounts.seeds_beside_several if several else run.amounts.other_seeds
    return in_turn(run.prompts, defence.targets, n_seeds), run.judge, run.reference


def count_training(run: Run, defence: Defence) -> None:
    """Count what would have to be trained for a defence."""
    weights = defence.training
    if weights is not None and not weights.is_file():
        n_targets = sum(map(len, defence.targets.values()))
        run.bench.pace.count(weights.name, defence.setting["method"], n_targets)


def _shown(defence: Defence, prompts: Sequence[Prompt], judge: Judge, *, others: bool) -> Outcome:
    """Return an outcome in which every target is shown, and with ``others`` everything else, too:
    of what is not known, so that a search goes through everything, or of faulty pictures."""
    answers, targets = [], defence.targets
    for prompt in prompts:
        asked = named(prompt.labels)
        seen = {f: c if others or c in targets.get(f, ()) else "nothing" for f, c in asked.items()}
        answers.append(Answer(asked, seen, prompt.seed, dict.fromkeys(asked, 1.0)))
    about = targets, defence.setting, judge.name, answers
    return Outcome(*about, seconds_per_picture=0.0, peak_bytes=0, stored_bytes=0)


def in_turn(prompts: Sequence[Prompt], targets: Targets, n_seeds: int) -> list[Prompt]:
    """Return every prompt that asks for a target, with every seed, and each other one with
    ``n_seeds`` of them, in turn.

    Neighbouring prompts get other seeds, so that all seeds count alike.
    """
    seeds = {seed: i for i, seed in enumerate(sorted({p.seed for p in prompts}))}
    places = {text: i for i, text in enumerate(dict.fromkeys(p.prompt for p in prompts))}

    def has_turn(p: Prompt) -> bool:
        place = places[p.prompt]
        return (seeds[p.seed] - place - place // len(seeds)) % len(seeds) < n_seeds

    return [p for p in prompts if has_turn(p) or asks(p.labels, targets)]
