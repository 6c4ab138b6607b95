"""What a round of hardening found: its figures, as a report keeps them and as a line says them."""

from typing import Any

from sae.evaluation.attack.report import AttackReport
from sae.evaluation.outcomes import Outcome
from sae.intervention.settings import Intervention


def kept(outcome: Outcome) -> float:
    """Return the mean of IRA and CRA, or the one that is known; 1 where neither is."""
    known = [x for x in (outcome.scores.ira, outcome.scores.cra) if x == x]
    return sum(known) / len(known) if known else 1.0


def told(report: AttackReport, outcome: Outcome) -> dict[str, Any]:
    """Return how many pictures an attack brought back, and UA, IRA and CRA.

    A score that no picture tells of is None.
    """
    scores = {name: None if x != x else x for name, x in outcome.scores._asdict().items()}
    rates = {
        "shown_before": report.before._asdict(),
        "shown_under_attack": report.under_attack._asdict(),
    }
    return {**rates, "came_back": len(report.came_back), "pictures": len(report.pictures), **scores}


def line(told: dict[str, Any]) -> str:
    """Return these figures as one line."""
    scores = ", ".join(
        f"{name.upper()} {100 * told[name]:.1f}"
        for name in ("ua", "ira", "cra")
        if told[name] is not None
    )
    return f"{told['came_back']} of {told['pictures']} came back; {scores}"


def described(one: Intervention) -> dict[str, Any]:
    """Return an intervention's setting with how many features it takes."""
    return {**one.described(), "features": len(set(one.selection.rows["feature"].to_pylist()))}
