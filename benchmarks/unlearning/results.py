"""The whole table: every method, searched on one classifier and judged by another;
``docs/results.md``.

python -m benchmarks.unlearning.results
"""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.unlearning.ledger import Ledger
from benchmarks.unlearning.pace import OutOfTimeError, Pace
from benchmarks.unlearning.table.amounts import AMOUNTS, GRIDS, suffix
from benchmarks.unlearning.table.run import Run, prepare
from benchmarks.unlearning.table.searching import METHODS, results
from benchmarks.unlearning.table.several import TOGETHER_BY, several
from featurestore.errors import FeatureStoreError
from featurestore.format.canonical import sha256_text
from featurestore.saes import sae_hash, sae_record
from featurestore.vocabulary import ATTACKS
from minicanvas import CANVASES, SMALL, Canvas
from minicanvas.option import canvas_option
from queries.selections import split_concept
from sae.diffusion.pipelines import Model, RunSettings, load_model
from sae.evaluation.measures.accuracy import grouped


def _in_processes(n: int, pace: Pace, arguments: Sequence[str]) -> None:
    """Run the shares of n processes, of one thread each: batches of one picture gain nothing from
    more.

    Raises:
        OutOfTimeError: they stopped as their minutes were over.
    """
    command = [sys.executable, "-m", "benchmarks.unlearning.results", *arguments]
    if pace.left is not None:
        command.append(f"--minutes={pace.left}")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([*command, "--share", f"{i}/{n}"], env=environment) for i in range(n)
    ]
    statuses = [process.wait() for process in processes]
    if any(statuses):
        raise click.ClickException("a process failed; the same command goes on where they stopped.")
    pace.check()


def fast_bfloat16(processor: Mapping[str, Any]) -> bool:
    """Return whether a processor multiplies in bfloat16; one that does not is more than twice as
    slow with it."""
    return bool(processor.get("avx512_bf16") or processor.get("amx_bf16"))


def model_of(canvas: Canvas, autocast: bool) -> Model:
    """Load a benchmark's model.

    Raises:
        ClickException: its weights or its classifiers are not there.
    """
    try:
        canvas.directory("classifiers")
        model = load_model(canvas.name, dtype="float32")
    except (FileNotFoundError, FeatureStoreError) as error:
        raise click.ClickException(str(error)) from error
    return replace(model, autocast=torch.bfloat16 if autocast else None)


def removed(
    canvas: Canvas, families: Sequence[str], concepts: Sequence[str]
) -> Mapping[str, Sequence[str]]:
    """Return what is removed: the concepts that are asked for, or the table's own of these
    families.

    Raises:
        ClickException: what is asked for is no concept of the benchmark.
    """
    try:
        asked = [*map(split_concept, concepts)]
    except FeatureStoreError as error:
        raise click.ClickException(str(error)) from error
    for family, concept in asked:
        if concept not in canvas.concepts.get(family, ()):
            known = "; ".join(f"{name}: {', '.join(own)}" for name, own in canvas.concepts.items())
            raise click.ClickException(
                f"--concept {family}={concept}: not in {canvas.name}, which has {known}."
            )
    every = AMOUNTS[canvas.name].concepts
    return grouped(asked) or {family: every[family] for family in families or every}


@click.command()
@canvas_option
@click.option(
    "--root",
    type=click.Path(path_type=Path),
    help="Where the store, SAEs, trained weights and attacks under way are.  "
    "[default: build/results, of the large benchmark build/results_large]",
)
@click.option(
    "--ledger",
    type=click.Path(path_type=Path),
    help="Where outcomes are added; commit it, and another machine goes on.  "
    "[default: benchmarks/results/unlearning.jsonl, of the large unlearning_large.jsonl]",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="The page.  [default: docs/results.md, of the large docs/results_large.md, if everything "
    "is asked for]",
)
@click.option(
    "--method",
    "methods",
    multiple=True,
    type=click.Choice(METHODS),
    help="Beside ours.  [default: all]",
)
@click.option(
    "--family",
    "families",
    multiple=True,
    type=click.Choice(list(SMALL.concepts)),
    help="[default: all]",
)
@click.option("--concept", "concepts", multiple=True, help="FAMILY=CONCEPT.  [default: all]")
@click.option("--attacks/--no-attacks", default=True, show_default=True)
@click.option(
    "--attack",
    "kinds",
    multiple=True,
    type=click.Choice(list(ATTACKS)),
    help="One of the attacks; several times for several.  [default: all]",
)
@click.option(
    "--autocast/--no-autocast",
    default=lambda: torch.cuda.is_available() or fast_bfloat16(torch.cpu.get_capabilities()),
    help="Generate with bfloat16 products.  [default: on a GPU, or where the processor has them]",
)
@click.option("--processes", type=click.IntRange(1), default=2, show_default=True)
@click.option("--minutes", type=float, help="Stop after so many; everything found is kept.")
@click.option("--estimate", is_flag=True, help="Say what is missing and how long it will take.")
@click.option(
    "--so-far", is_flag=True, help="Make nothing; write the page of what the ledger has, no more."
)
@click.option("--share", help="Of the processes this is one, such as 0/2; it writes no page.")
@click.option(
    "--several",
    "of_several",
    is_flag=True,
    help="With --share: of the removals of several concepts.",
)
def main(
    *,
    name: str,
    root: Path | None,
    ledger: Path | None,
    out: Path | None,
    methods: tuple[str, ...],
    families: tuple[str, ...],
    concepts: tuple[str, ...],
    attacks: bool,
    kinds: tuple[str, ...],
    autocast: bool,
    processes: int,
    minutes: float | None,
    estimate: bool,
    so_far: bool,
    share: str | None,
    of_several: bool,
) -> None:
    """Run what is missing of the table and write it; interrupted, it goes on where it stopped."""
    torch.set_num_threads(1)  # An SAE depends on the number of threads that train it.
    canvas = CANVASES[name]
    root = root or Path(f"build/results{suffix(canvas)}")
    ledger = ledger or Path(f"benchmarks/results/unlearning{suffix(canvas)}.jsonl")
    amounts = replace(AMOUNTS[name], concepts=removed(canvas, families, concepts))
    amounts = replace(amounts, attacks=kinds or amounts.attacks)
    model = model_of(canvas, autocast)
    pace = Pace(minutes, counting=estimate, so_far=so_far, cost=amounts.cost)
    kept = Ledger(ledger)
    settings, wanted = RunSettings(model.steps, model.guidance), methods or METHODS
    passed = [
        f"--canvas={name}",
        f"--root={root}",
        f"--ledger={ledger}",
        *(f"--method={m}" for m in methods),
        *(f"--family={f}" for f in families),
        *(f"--concept={c}" for c in concepts),
        "--attacks" if attacks else "--no-attacks",
        *(f"--attack={kind}" for kind in kinds),
        "--autocast" if autocast else "--no-autocast",
    ]
    try:
        run = prepare(
            root,
            model,
            settings,
            canvas=canvas,
            amounts=amounts,
            grid=GRIDS[name],
            ledger=kept,
            pace=pace,
        )
        _say_strangers(run)
        if share:
            _one_share(run, wanted, share, attacks=attacks, of_several=of_several)
            return
        if processes > 1 and not (estimate or so_far):
            for switch in ([], ["--several"]):
                _in_processes(processes, pace, [*passed, *switch])
                kept.read()
        found = results(run, wanted, attacks)
        together = several(run, found["defences"], wanted)
    except OutOfTimeError:
        click.echo(f"Stopped after {minutes:g} minutes: {_held(kept)}. The same command goes on.")
        return
    if estimate:
        click.echo(pace.told(kept, processes))
        return
    everything = attacks and not (methods or families or concepts or kinds)
    page = out or (Path(f"docs/results{suffix(canvas)}.md") if everything else None)
    if page is None:
        click.echo(f"{_held(kept)}. No page is written of a part: say where with --out.")
        return
    from benchmarks.unlearning.table.page import write_page

    write_page(page, run, found, together)


def _one_share(
    run: Run, methods: Sequence[str], share: str, *, attacks: bool, of_several: bool
) -> None:
    index, _, n = share.partition("/")
    part = int(index), int(n)
    if of_several:
        by = [method for method in TOGETHER_BY if method in methods]
        several(run, results(run, by, False)["defences"], methods, part)
    else:
        results(run, methods, attacks, part)


def _held(ledger: Ledger) -> str:
    cells, attacks = (len(ledger.of_kind(kind)) for kind in ("cell", "attack"))
    return f"{cells} outcomes and {attacks} attacked pictures in {ledger.path}"


def _say_strangers(run: Run) -> None:
    """Say where outcomes are of SAEs that were trained elsewhere; add which are used here."""
    store, ledger = run.bench.store, run.bench.ledger
    hashes = [
        sae_hash(sae_record(bench.store, name))
        for bench in (run.bench, run.crossing)
        for name in bench.saes
    ]
    others = [row["on"] for row in ledger.of_kind("saes") if not {*row["hashes"]} <= {*hashes}]
    if len(others) == len(ledger.of_kind("saes")) > 0:
        click.echo(
            f"{ledger.path} has outcomes of other SAEs, trained on {others[-1]}: training depends "
            f"on the processor's rounding. What is made of features is made anew here; to go on "
            f"with theirs, bring the folder {store.root} over.",
            err=True,
        )
    if not run.bench.pace.counting:
        ledger.add(f"saes-{sha256_text(''.join(hashes))[:16]}", kind="saes", hashes=hashes)


if __name__ == "__main__":
    main()
