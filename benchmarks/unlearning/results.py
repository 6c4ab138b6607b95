"""The whole table: every method, searched on one classifier and judged by another;
``docs/results.md``.

python -m benchmarks.unlearning.results
"""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.unlearning.attacks import Attacks, attack_all, comes_back, victims
from benchmarks.unlearning.ledger import Ledger
from benchmarks.unlearning.methods import (
    COMPETITORS,
    CONTROLS,
    FAMILIES,
    Defence,
    Grid,
    features,
    ours,
)
from benchmarks.unlearning.pace import OutOfTimeError, Pace
from benchmarks.unlearning.run import Amounts, Run, cell, prepare
from featurestore.format.canonical import sha256_text
from featurestore.saes import sae_hash, sae_record
from queries.selections import select_all, split_concept
from sae.diffusion.pipelines import RunSettings, load_model
from sae.evaluation.measures.accuracy import grouped
from sae.evaluation.outcomes import Outcome, sequence
from sae.evaluation.search import (
    Toward,
    best,
    first_that_holds,
    in_order,
    together,
    value,
)
from sae.intervention.settings import Intervention

HELD = "ours, held"
"""our rule, with an attack in the search"""
SAE_MARGIN = 0.1
"""how much worse than the best an SAE may be when all are screened, for it to be searched
further"""


def perfect(outcome: Outcome) -> bool:
    """Return whether every target was unlearned and everything else kept, in every picture."""
    return value(outcome).mean == 1


def searched(run: Run, groups: Sequence[Sequence[Defence]]) -> Defence:
    """Return the best setting of the first group; with those of the next group beside it as long as
    it is not perfect."""
    tried: list[Defence] = []
    for group in groups:
        tried += group
        chosen = best(tried, run.amounts.looks, partial(cell, run))
        if group is groups[-1] or perfect(cell(run, chosen, run.amounts.looks[-1])):
            break
    return chosen


def one_concept(run: Run, family: str, concept: str, methods: Sequence[str]) -> dict[str, Defence]:
    """Return each method's best defence against a concept; the controls take our own setting."""
    mine = searched(run, [_ours(run, family, concept)])
    chosen = {"ours": mine}
    if HELD in methods:
        chosen[HELD] = held(run, family, concept)
    (intervention,) = mine.interventions
    chosen |= {
        name: make(run.bench, intervention) for name, make in CONTROLS.items() if name in methods
    }
    return chosen | {
        m: searched(run, COMPETITORS[m](run.bench, family, concept))
        for m in COMPETITORS
        if m in methods
    }


def _ours(
    run: Run, family: str, concept: str, thresholds: Sequence[float] = (1.0,)
) -> list[Defence]:
    """Return the settings of the SAEs that are, at the first look and one setting, not far behind
    the best."""
    bench, grid = run.bench, run.bench.grid
    top, multiplier = grid.screened
    found = {}
    for sae in bench.saes:
        (one,) = ours(bench, sae, family, concept, [top], multipliers=[multiplier])
        found[sae] = value(cell(run, one, run.amounts.looks[0])).mean
    near = [sae for sae, mean in found.items() if mean >= max(found.values()) - SAE_MARGIN]
    how = {"multipliers": grid.multipliers, "thresholds": thresholds}
    return [one for sae in near for one in ours(bench, sae, family, concept, grid.tops, **how)]


def held(run: Run, family: str, concept: str) -> Defence:
    """Return our best setting that withstands an attack on the search's pictures, or the one that
    withstands it best."""
    candidates = _ours(run, family, concept, run.bench.grid.thresholds)
    order = in_order(candidates, run.amounts.looks, partial(cell, run))
    tried = order[: run.amounts.search_tries]
    chosen = first_that_holds(tried, partial(comes_back, run, family, concept))
    return features(run.bench, chosen.interventions, method=HELD)


METHODS = ("ours", HELD, *CONTROLS, *COMPETITORS)
COMPARED = ("ours", "ESD-x", "AdvUnlearn", "SalUn")
"""on all concepts"""


def results(
    run: Run,
    methods: Sequence[str] = METHODS,
    attacks: bool = True,
    share: tuple[int, int] = (0, 1),
) -> dict[str, Any]:
    """Run every cell that is not there yet; return outcomes and attacks, per family and method, and
    the chosen defences.

    ``share``: of so many processes this one does every n-th concept.
    """
    first, n = share
    tables: dict[str, dict[str, list[Outcome]]] = {}
    attacked: dict[str, Attacks] = {}
    chosen: dict[str, dict[str, dict[str, Defence]]] = {}
    for family, concepts in run.amounts.concepts.items():
        defences = chosen.setdefault(family, {})
        few = concepts[: run.amounts.few_concepts[family]]
        for concept in concepts[first::n]:
            click.echo(f"— {family}={concept}", err=True)
            tried = [HELD, *COMPARED] if concept in victims(concepts, run) else COMPARED
            wanted = [method for method in methods if method in tried or concept in few]
            defences[concept] = one_concept(run, family, concept, wanted)
            for method, defence in defences[concept].items():
                tables.setdefault(family, {}).setdefault(method, []).append(cell(run, defence))
        chosen_victims = [c for c in victims(concepts, run) if attacks and c in defences]
        attacked[family] = (
            attack_all(run, family, {c: defences[c] for c in chosen_victims})
            if chosen_victims
            else {}
        )
    return {"tables": tables, "attacks": attacked, "defences": chosen}


def several(
    run: Run,
    defences: Mapping[str, Mapping[str, Mapping[str, Defence]]],
    share: tuple[int, int] = (0, 1),
) -> dict[str, list[Outcome]]:
    """Remove concepts in a row, all styles but one, and a style with an object, beginning with each
    concept's own setting.

    ``share``: of so many processes this one does every n-th of the three.
    """
    mine = {
        (f, c): methods["ours"].interventions
        for f, of_concepts in defences.items()
        for c, methods in of_concepts.items()
    }
    styles, objects = ([key for key in mine if key[0] == family] for family in ("style", "object"))
    requests = [{family: [concept]} for family, concept in styles[: run.amounts.sequence]]
    wanted: dict[str, list[dict[str, list[str]]]] = {
        "sequential": list(sequence(requests)),
        "all but one": [grouped(styles[1:])] if len(styles) > 1 else [],
        "joint": [grouped(pair) for pair in [*zip(styles, objects, strict=False)][:2]],
    }
    first, n = share
    look = run.amounts.looks[-1].one_seed

    def looked(interventions: Sequence[Intervention]) -> Outcome:
        return cell(run, features(run.bench, interventions), look)

    return {
        name: [
            cell(run, features(run.bench, edits))
            for edits in together(wanted[name], mine, looked, _kept(run, wanted[name]))
        ]
        for name in [*wanted][first::n]
    }


def _kept(run: Run, removals: Sequence[Mapping[str, Sequence[str]]]) -> Toward:
    """Return what removals of several concepts go towards: of each family and SAE the first concept
    that none of them removes."""
    found = []
    for family in dict.fromkeys(family for targets in removals for family in targets):
        removed = {concept for targets in removals for concept in targets.get(family, ())}
        kept = [c for c in run.amounts.concepts[family] if c not in removed][:1]
        for sae in run.bench.saes if kept else ():
            found += select_all(run.bench.store, sae, family, kept, top=max(run.bench.grid.tops))
    return Toward(found)


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


@click.command()
@click.option(
    "--root",
    type=click.Path(path_type=Path),
    default=Path("build/results"),
    show_default=True,
    help="Where the store, SAEs, trained weights and attacks under way are.",
)
@click.option(
    "--ledger",
    type=click.Path(path_type=Path),
    default=Path("benchmarks/results/unlearning.jsonl"),
    show_default=True,
    help="Where outcomes are added; commit it, and another machine goes on.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="The page.  [default: docs/results.md, if everything is asked for]",
)
@click.option(
    "--method",
    "methods",
    multiple=True,
    type=click.Choice(METHODS),
    help="Beside ours.  [default: all]",
)
@click.option(
    "--family", "families", multiple=True, type=click.Choice(list(FAMILIES)), help="[default: all]"
)
@click.option("--concept", "concepts", multiple=True, help="FAMILY=CONCEPT.  [default: all]")
@click.option("--attacks/--no-attacks", default=True, show_default=True)
@click.option(
    "--autocast/--no-autocast",
    default=lambda: torch.cuda.is_available() or fast_bfloat16(torch.cpu.get_capabilities()),
    help="Generate with bfloat16 products.  [default: on a GPU, or where the processor has them]",
)
@click.option("--processes", type=click.IntRange(1), default=2, show_default=True)
@click.option("--minutes", type=float, help="Stop after so many; everything found is kept.")
@click.option("--estimate", is_flag=True, help="Say what is missing and how long it will take.")
@click.option("--share", help="Of the processes this is one, such as 0/2; it writes no page.")
@click.option(
    "--several",
    "of_several",
    is_flag=True,
    help="With --share: of the removals of several concepts.",
)
def main(
    root: Path,
    ledger: Path,
    out: Path | None,
    methods: tuple[str, ...],
    families: tuple[str, ...],
    concepts: tuple[str, ...],
    attacks: bool,
    autocast: bool,
    processes: int,
    minutes: float | None,
    estimate: bool,
    share: str | None,
    of_several: bool,
) -> None:
    """Run what is missing of the table and write it; interrupted, it goes on where it stopped."""
    torch.set_num_threads(1)  # An SAE depends on the number of threads that train it.
    pace, kept = Pace(minutes, counting=estimate), Ledger(ledger)
    named = {name: FAMILIES[name] for name in families or FAMILIES}
    amounts = Amounts(concepts=grouped(map(split_concept, concepts)) or named)
    model = replace(
        load_model("minicanvas", dtype="float32"), autocast=torch.bfloat16 if autocast else None
    )
    settings, wanted = RunSettings(model.steps, model.guidance), methods or METHODS
    passed = [
        f"--root={root}",
        f"--ledger={ledger}",
        *(f"--method={m}" for m in methods),
        *(f"--family={f}" for f in families),
        *(f"--concept={c}" for c in concepts),
        "--attacks" if attacks else "--no-attacks",
        "--autocast" if autocast else "--no-autocast",
    ]
    try:
        run = prepare(root, model, settings, amounts, Grid(), ledger=kept, pace=pace)
        _say_strangers(run)
        if share:
            _one_share(run, wanted, attacks, share, of_several)
            return
        if processes > 1 and not estimate:
            for switch in ([], ["--several"]):
                _in_processes(processes, pace, [*passed, *switch])
                kept.read()
        found = results(run, wanted, attacks)
        together = several(run, found["defences"])
    except OutOfTimeError:
        click.echo(f"Stopped after {minutes:g} minutes: {_held(kept)}. The same command goes on.")
        return
    if estimate:
        click.echo(pace.told(kept, processes))
        return
    everything = attacks and not (methods or families or concepts)
    page = out or (Path("docs/results.md") if everything else None)
    if page is None:
        click.echo(f"{_held(kept)}. No page is written of a part: say where with --out.")
        return
    from benchmarks.unlearning.tables import write_page

    write_page(page, run, found, together)


def _one_share(
    run: Run, methods: Sequence[str], attacks: bool, share: str, of_several: bool
) -> None:
    index, _, n = share.partition("/")
    part = int(index), int(n)
    if of_several:
        several(run, results(run, ["ours"], False)["defences"], part)
    else:
        results(run, methods, attacks, part)


def _held(ledger: Ledger) -> str:
    cells, attacks = (len(ledger.of_kind(kind)) for kind in ("cell", "attack"))
    return f"{cells} outcomes and {attacks} attacked pictures in {ledger.path}"


def _say_strangers(run: Run) -> None:
    """Say where outcomes are of SAEs that were trained elsewhere; add which are used here."""
    store, ledger = run.bench.store, run.bench.ledger
    hashes = [sae_hash(sae_record(store, name)) for name in run.bench.saes]
    others = [row["on"] for row in ledger.of_kind("saes") if row["hashes"] != hashes]
    if others and not any(row["hashes"] == hashes for row in ledger.of_kind("saes")):
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
