"""Every method's defence under every attack of the product."""

from collections.abc import Mapping, Sequence

from benchmarks.unlearning.methods import Defence
from benchmarks.unlearning.run import Run
from sae.evaluation.attack.attacking import attack_defence, spread
from sae.evaluation.attack.report import AttackReport, together
from sae.evaluation.attack.settings import AttackSettings, Defended

SKIPPED = {"released arithmetic": "it counts calls: no timestep can be attacked", "random features": "a control"}
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
                    reports.setdefault(method, []).append(_attacked(run, family, concept, method, defence, attack))
        found[attack] = {method: together(of_concepts) for method, of_concepts in reports.items()}
    return found


def _attacked(run: Run, family: str, concept: str, method: str, defence: Defence, attack: str) -> AttackReport:
    amounts, bench = run.amounts, run.bench
    defence.prepare()
    defended = Defended(
        model=bench.model,
        run=defence.run,
        attached=defence.attached,
        setting=defence.setting,
        guided=bool(defence.run.negative_prompt),
    )
    styled = [p for p in run.prompts if p.labels["style"] is not None]
    return attack_defence(
        defended,
        spread(styled, family, concept, amounts.attacked),
        judge=run.judge,
        out=bench.root / "attacks" / concept / method.replace(" ", "-").replace(",", ""),
        settings=AttackSettings(
            method=attack,
            n_tokens=N_TOKENS[family],
            rounds=amounts.attack_rounds.get(attack),
            iterations=amounts.attack_iterations.get(attack),
        ),
        batch_size=amounts.attacked,
        progress=False,
    )


def victims(concepts: Sequence[str], run: Run) -> list[str]:
    """Return the concepts of a family that are attacked: the first ones."""
    return list(concepts[: run.amounts.attacked_concepts])
