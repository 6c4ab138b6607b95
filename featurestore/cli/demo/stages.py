"""The demo's stages: each is what a user would call, with the time it took."""

import contextlib
import json
import shlex
import time
from collections.abc import Iterator
from pathlib import Path

import click

from collectors.collection import CollectSettings, collect
from featurestore.cli.demo.outcome import Demo, Result, rows_of_table, store_bytes
from featurestore.cli.demo.report import write_report
from featurestore.cli.demo.settings import (
    BATCH_SIZE,
    EXPANSION,
    FULL,
    QUICK,
    STUDIES,
    Amounts,
    K,
    Study,
)
from featurestore.cli.terminal.text import human_bytes, text_table
from featurestore.format import durable
from featurestore.prompts import read_prompts
from featurestore.selection import Selection
from featurestore.store import Store
from sae.diffusion.pipelines import Model, RunSettings, load_model
from sae.evaluation.judge import load_judge
from sae.evaluation.measures.accuracy import accuracy, unlearning
from sae.intervention.generate import generate_images
from sae.intervention.settings import Intervention


def run_demo(out: Path, quick: bool = False) -> Demo:
    """Run all stages in ``out`` and write ``report.html`` there."""
    amounts = QUICK if quick else FULL
    seconds: dict[str, float] = {}
    began = time.perf_counter()
    with _stage(seconds, "load the model"):
        model = load_model("minicanvas")
        run = RunSettings(model.steps, model.guidance)
    demo = Demo(out, _collect(out, model, run, amounts, seconds=seconds), [], seconds=seconds)
    demo.commands += [_collect_command(out, amounts)]
    for study in STUDIES:
        _learn(demo, study, amounts)
    _generate(demo, model, run, amounts)
    with _stage(seconds, "write the report"):
        write_report(demo)
    _print_table(demo, time.perf_counter() - began)
    return demo


@contextlib.contextmanager
def _stage(seconds: dict[str, float], name: str) -> Iterator[None]:
    click.secho(f"— {name}", bold=True)
    began = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - began


def _write_prompts(path: Path, n_concepts: int) -> None:
    from minicanvas import OBJECTS, STYLES, prompt

    pairs = [(o, s) for o in OBJECTS[:n_concepts] for s in STYLES[:n_concepts]]
    lines = [json.dumps({"prompt": prompt(o, s), "style": s, "object": o}) for o, s in pairs]
    durable.write_bytes(path, "".join(f"{line}\n" for line in lines).encode())


def _collect(
    out: Path, model: Model, run: RunSettings, amounts: Amounts, *, seconds: dict[str, float]
) -> Store:
    with _stage(seconds, "collect activations"):
        _write_prompts(out / "prompts.jsonl", amounts.n_concepts)
        prompts = read_prompts(out / "prompts.jsonl", amounts.collect_seeds)
        hooks = [study.hook for study in STUDIES]
        return collect(
            out / "store",
            model,
            prompts,
            run,
            CollectSettings(hooks=hooks, images=True, batch_size=16, shard_samples=16),
        ).store


def _learn(demo: Demo, study: Study, amounts: Amounts) -> None:
    from queries.scores import score
    from queries.selections import select
    from sae.encoding import encode
    from sae.training.train import TrainSettings, train

    store, name = demo.store, study.sae
    settings = TrainSettings(
        k=K, expansion=EXPANSION, steps=amounts.train_steps, batch_size=BATCH_SIZE
    )
    with _stage(demo.seconds, f"train the SAE '{name}'"):
        train(store, study.hook, name, settings)
    with _stage(demo.seconds, f"encode with '{name}'"):
        encode(store, name)
    with _stage(demo.seconds, f"score and select {study.family}={study.concept}"):
        score(store, name, study.family)
        selection = select(store, name, study.family, study.concept, top=study.top)
        path = demo.out / f"{study.concept}.json"
        selection.save(path)
    demo.results.append(Result(study, Selection.load(path), [], [], unlearning([], {})))
    demo.commands += _learn_commands(demo.out, study, amounts)


def _generate(demo: Demo, model: Model, run: RunSettings, amounts: Amounts) -> None:
    demo.prompts = read_prompts(demo.out / "prompts.jsonl", amounts.test_seeds)
    judge = load_judge(["minicanvas"])
    with _stage(demo.seconds, "generate as it is"):
        demo.before = list(generate_images(model, demo.prompts, run, batch_size=20))
        demo.before_answers = judge.answers(demo.prompts, demo.before)
    for result in demo.results:
        study = result.study
        with _stage(demo.seconds, f"generate without {study.concept}"):
            edits = [Intervention(result.selection, strength=study.strength)]
            result.images = list(generate_images(model, demo.prompts, run, edits, batch_size=20))
            result.answers = judge.answers(demo.prompts, result.images)
            result.score = unlearning(result.answers, {study.family: [study.concept]})


def _collect_command(out: Path, amounts: Amounts) -> str:
    hooks, to = " ".join(f"--hook {study.hook}" for study in STUDIES), shlex.quote(str(out))
    seeds = ",".join(map(str, amounts.collect_seeds))
    how = f"--model minicanvas --prompts {to}/prompts.jsonl --seeds {seeds} --images"
    return f"featurestore collect {how} {hooks} --store {to}/store"


def _learn_commands(out: Path, study: Study, amounts: Amounts) -> list[str]:
    train = (
        f"--k {K} --expansion {EXPANSION:g} --steps {amounts.train_steps} --batch-size {BATCH_SIZE}"
    )
    to = shlex.quote(str(out))
    concept = f"{study.family}={study.concept}"
    return [
        f"featurestore train --store {to}/store --hook {study.hook} {train} --name {study.sae}",
        f"featurestore encode --store {to}/store --sae {study.sae}",
        f"featurestore score {to}/store --sae {study.sae} --by {study.family}",
        f"featurestore export {to}/store --sae {study.sae} --concept {concept} --top {study.top} "
        f"-o {to}/{study.concept}.json",
        f"featurestore generate --model minicanvas --prompts {to}/prompts.jsonl "
        f"--seeds {','.join(map(str, amounts.test_seeds))} --ablate {to}/{study.concept}.json "
        f"--multiplier {study.strength:g} --out {to}/without-{study.concept}",
    ]


def _print_table(demo: Demo, total: float) -> None:
    rows = rows_of_table(demo)
    click.echo("\n" + text_table(rows[0], rows[1:]))
    asked = [
        f"{family} {accuracy(demo.before_answers, family):.0%}" for family in ("style", "object")
    ]
    click.echo(
        f"\nBefore → after, judged on {len(demo.prompts)} pictures each; untouched pictures: "
        f"{', '.join(asked)} recognised."
    )
    for name, seconds in demo.seconds.items():
        click.echo(f"  {seconds:6.1f} s  {name}")
    click.echo(f"  {total:6.1f} s  in all; the store holds {human_bytes(store_bytes(demo.store))}")
    click.echo(f"\nThe pictures: {demo.out / 'report.html'}\nThe same by hand:")
    for command in demo.commands:
        click.echo(f"  {command}")
