"""Every method's defence under every attack of the product."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.unlearning.methods import Defence
from benchmarks.unlearning.run import Run
from featurestore.format.canonical import canonical_json, sha256_text
from featurestore.prompts import Prompt
from sae.evaluation.attack.attacking import attack_defence, spread
from sae.evaluation.attack.report import AttackReport, together
from sae.evaluation.attack.settings import AttackSettings, Defended
from sae.evaluation.attack.victims import Case
from sae.evaluation.judge import Judge

SKIPPED = {
    "released arithmetic": "it counts calls: no timestep can be attacked",
    "random features": "a control",
}
N_TOKENS = {"style": 3, "object": 5}
Attacks = dict[str, dict[str, AttackReport]]
"""attack → method → its pictures, of all attacked concepts"""


def attack_all(run: Run, family: str, defences: Mapping[str, Mapping[str, Defence]]) -> Attacks:
    """Attack every method's defence of every concept, or read what was found before.

    ``defences``: concept → method → defence.
    """
    found: Attacks = {}
    for attack in run.amounts.attacks:
        reports: dict[str, list[AttackReport]] = {}
        for concept in defences:
            for method, defence in defences[concept].items():
                if method not in SKIPPED and run.amounts.attacked:
                    folder = Path("attacks") / concept / method.replace(" ", "-").replace(",", "")
                    cases = spread(_styled(run.prompts), family, concept, run.amounts.attacked)
                    report = _attacked(
                        run, defence, attack, cases=cases, judge=run.judge, folder=folder
                    )
                    reports.setdefault(method, []).append(report)
        found[attack] = {method: together(of_concepts) for method, of_concepts in reports.items()}
    return found


def comes_back(run: Run, family: str, concept: str, defence: Defence) -> float:
    """Return which share of attacked pictures of the search, by its judge, shows the concept; with
    another attack seed."""
    cases = spread(_styled(run.search_prompts), family, concept, run.amounts.search_attacked)
    of_setting = sha256_text(canonical_json(defence.setting))[:12]  # each has figures of its own
    folder = Path("attacks") / "search" / concept / of_setting
    report = _attacked(
        run, defence, "tokens", cases=cases, judge=run.chooser, folder=folder, seed=1
    )
    return report.under_attack.value


def _styled(prompts: Sequence[Prompt]) -> list[Prompt]:
    return [p for p in prompts if p.labels["style"] is not None]


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
    defence.prepare()
    defended = Defended(
        model=run.bench.model,
        run=defence.run,
        attached=defence.attached,
        setting=defence.setting,
        guided=bool(defence.run.negative_prompt),
    )
    settings = AttackSettings(
        method=attack,
        n_tokens=N_TOKENS[cases[0].family],
        rounds=run.amounts.attack_rounds.get(attack),
        iterations=run.amounts.attack_iterations.get(attack),
        seed=seed,
    )
    return attack_defence(
        defended,
        cases,
        judge=judge,
        out=run.bench.root / folder,
        settings=settings,
        batch_size=len(cases),
        progress=False,
    )


def victims(concepts: Sequence[str], run: Run) -> list[str]:
    """Return the concepts of a family that are attacked: the first ones."""
    return list(concepts[: run.amounts.attacked_concepts])
