"""Every method's defence under every attack of the product."""

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.unlearning.methods.defence import Defence
from benchmarks.unlearning.table.looking_again import confirmed, typed
from benchmarks.unlearning.table.run import Run, count_training
from featurestore.format import durable
from featurestore.format.canonical import canonical_json, sha256_text
from featurestore.prompts import Prompt
from sae.evaluation.attack.attacking import attack_defence, spread
from sae.evaluation.attack.loop import places
from sae.evaluation.attack.report import Attacked, AttackReport, together
from sae.evaluation.attack.settings import AttackSettings, Defended
from sae.evaluation.attack.victims import Case
from sae.evaluation.judge import Judge

SKIPPED = {
    "released arithmetic": "it counts calls: no timestep can be attacked",
    "random features": "a control",
}
N_TOKENS = {"style": 3, "object": 5}


class UnderAttack(NamedTuple):
    """A method's pictures of all attacked concepts under one attack."""

    report: AttackReport
    typed: AttackReport | None
    """the same, of which only those came back that do so when what was found is typed as text; None
    where no text was found, or nothing is known yet"""
    confirmed: AttackReport | None
    """the same, of which only those are shown that the other classifier sees, too; None where it is
    not known yet"""


Attacks = dict[str, dict[str, UnderAttack]]
"""attack → method → what it did"""


def attack_all(run: Run, family: str, defences: Mapping[str, Mapping[str, Defence]]) -> Attacks:
    """Attack every method's defence of every concept, or read what was found before.

    ``defences``: concept → method → defence.
    """
    found: Attacks = {}
    for attack in run.amounts.attacks:
        reports: dict[str, list[UnderAttack]] = {}
        for concept in defences:
            for method, defence in defences[concept].items():
                if method not in SKIPPED and run.amounts.attacked:
                    folder = Path("attacks") / concept / method.replace(" ", "-").replace(",", "")
                    cases = spread(styled(run.prompts), family, concept, run.amounts.attacked)
                    with run.bench.pace.skipped():
                        report = _attacked(
                            run, defence, attack, cases=cases, judge=run.judge, folder=folder
                        )
                        as_text, seen = (
                            _looked_again(run, partial(look, run, defence, report))
                            for look in (typed, confirmed)
                        )
                        reports.setdefault(method, []).append(UnderAttack(report, as_text, seen))
        found[attack] = {method: _together(of_concepts) for method, of_concepts in reports.items()}
    return found


def _together(concepts: Sequence[UnderAttack]) -> UnderAttack:
    """Return a method's attacked concepts as one."""

    def known(reports: Sequence[AttackReport | None]) -> AttackReport | None:
        there = [one for one in reports if one is not None]
        return together(there) if len(there) == len(reports) else None

    return UnderAttack(
        together([one.report for one in concepts]),
        known([one.typed for one in concepts]),
        known([one.confirmed for one in concepts]),
    )


def _looked_again(run: Run, look: Callable[[], AttackReport | None]) -> AttackReport | None:
    """Return what a second look finds; None where nothing may be made and it is not known."""
    with run.bench.pace.skipped():
        return look()
    return None


def comes_back(run: Run, family: str, concept: str, defence: Defence) -> float:
    """Return which share of attacked pictures of the search, by its judge, shows the concept; with
    another attack seed."""
    cases = spread(styled(run.search_prompts), family, concept, run.amounts.search_attacked)
    of_setting = sha256_text(canonical_json(defence.setting))[:12]  # each has figures of its own
    folder = Path("attacks") / "search" / concept / of_setting
    report = _attacked(
        run, defence, "tokens", cases=cases, judge=run.chooser, folder=folder, seed=1
    )
    unknown = run.bench.pace.counting and not report.pictures
    return 1.0 if unknown else report.under_attack.value


def styled(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Return the prompts with a style, of which pictures are attacked."""
    return [p for p in prompts if p.labels["style"] is not None]


def attack_settings(run: Run, attack: str, family: str, seed: int) -> AttackSettings:
    """Return how a family's concepts are attacked."""
    return AttackSettings(
        method=attack,
        n_tokens=N_TOKENS[family],
        rounds=run.amounts.attack_rounds.get(attack),
        iterations=run.amounts.attack_iterations.get(attack),
        seed=seed,
    )


def _attacked(
    run: Run,
    defence: Defence,
    attack: str,
    *,
    cases: Sequence[Case],
    judge: Judge,
    folder: Path,
    seed: int = 0,
) -> AttackReport:
    bench = run.bench
    defended = Defended(
        model=bench.model,
        run=defence.run,
        attached=bench.pace.checked(defence.attached),
        setting={**defence.setting, "basis": dict(bench.basis)},
        plain=bench.run if defence.run != bench.run else None,
        guided=bool(defence.run.negative_prompt),
    )
    settings = attack_settings(run, attack, cases[0].family, seed)
    out = bench.root / folder
    paths, *twins = (
        list(map(places(out, one, judge, settings), cases)) for one in _with_twins(run, defended)
    )
    missing = [
        path
        for i, path in enumerate(paths)
        if not _recalled(run, path, [others[i].stem for others in twins])
    ]
    if missing and bench.pace.counting:
        count_training(run, defence)
        for path in missing:
            bench.pace.count(path.stem, attack, settings.n_rounds)
        return AttackReport(attack, [], 0, [])
    if missing:
        bench.pace.check()
        defence.prepare()
    began = time.perf_counter()
    report = attack_defence(
        defended, cases, judge=judge, out=out, settings=settings, batch_size=len(cases),
        progress=False,
    )  # fmt: skip
    _remember(run, missing, time.perf_counter() - began, defence.setting)
    return report


def _with_twins(run: Run, defended: Defended) -> list[Defended]:
    """Return a defence, and if it is of features the same under the other names that attacked
    defences have: where two searches choose the same, it is attacked once."""
    attacked = {row["method"] for row in run.bench.ledger.of_kind("attack")}
    names = attacked - {defended.setting["method"]} if "edits" in defended.setting else ()
    named = [{**defended.setting, "method": name} for name in sorted(names)]
    return [defended, *(dataclasses.replace(defended, setting=setting) for setting in named)]


def _recalled(run: Run, path: Path, twins: Sequence[str]) -> bool:
    """Say whether an attack's outcome is known, and write it where attacks look for theirs;
    ``twins``: keys of the same attack on the same defence under other names."""
    rows = run.bench.ledger.rows
    row = next((rows[key] for key in (path.stem, *twins) if key in rows), None)
    if row is None or path.is_file():
        return row is not None
    fields = {one.name for one in dataclasses.fields(Attacked)}
    body = {name: value for name, value in row.items() if name in fields}
    body["method"] = row["attack"]
    durable.write_bytes(path, (json.dumps(body, ensure_ascii=False) + "\n").encode())
    return True


def _remember(run: Run, paths: Sequence[Path], seconds: float, setting: Mapping[str, Any]) -> None:
    """Add outcomes to the ledger, without losses and embeddings."""
    found = {path: json.loads(path.read_text(encoding="utf-8")) for path in paths}
    rounds = sum(body["rounds"] for body in found.values())
    for path, body in found.items():
        kept = {name: value for name, value in body.items() if name not in ("losses", "method")}
        kept["found"] = {k: v for k, v in body["found"].items() if k != "embeddings"}
        of = {"attack": body["method"], "method": setting["method"], "setting": dict(setting)}
        each = seconds / rounds if rounds else None
        run.bench.ledger.add(path.stem, kind="attack", seconds_per_round=each, **of, **kept)


def victims(concepts: Sequence[str], run: Run) -> list[str]:
    """Return the concepts of a family that are attacked: the first ones."""
    return list(concepts[: run.amounts.attacked_concepts])
