"""What is told of outcomes: figures with their intervals, as JSON."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sae.diffusion.pipelines import describe_run
from sae.evaluation.measures.accuracy import Unlearning, accuracy, average, intervals
from sae.evaluation.measures.intervals import Interval
from sae.evaluation.outcomes import Outcome, per_target
from sae.evaluation.protocols import Evaluation, Search


def report(
    evaluation: Evaluation,
    before: Outcome,
    outcomes: Sequence[Outcome],
    *,
    protocol: str,
    search: Search | None,
) -> dict[str, Any]:
    """Return everything as JSON: each outcome with intervals, their average, and what was used."""
    rows = [
        {"targets": o.targets, "setting": o.setting, **summary([o]), "ua_by_target": per_target(o)}
        for o in outcomes
    ]
    return {
        "protocol": protocol,
        "judge": evaluation.judge.name,
        "search_judge": search.judge.name if search else None,
        "seeds": sorted({p.seed for p in evaluation.prompts}),
        "run": describe_run(evaluation.model, evaluation.run),
        "untouched": _untouched(before),
        "removals": rows,
        "average": summary(outcomes) if protocol == "each" else None,
    }


def _untouched(before: Outcome) -> Mapping[str, Any]:
    families = sorted({family for answer in before.answers for family in answer.asked})
    found = {family: accuracy(before.answers, family) for family in families}
    return {
        "accuracy": found,
        "seconds_per_picture": before.seconds_per_picture,
        "peak_bytes": before.peak_bytes,
    }


def summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return the average over removals with its intervals, as JSON; what is not known of any
    removal is null."""
    scores = average([o.scores for o in outcomes])
    ends = intervals([(o.answers, o.targets) for o in outcomes])
    figures = {
        name: _figure(x, i) for name, x, i in zip(Unlearning._fields, scores, ends, strict=True)
    }
    distances = [o.frechet for o in outcomes if math.isfinite(o.frechet)]
    seconds = [o.seconds_per_picture for o in outcomes if o.seconds_per_picture is not None]
    return {
        **figures,
        "frechet": sum(distances) / len(distances) if distances else None,
        "seconds_per_picture": sum(seconds) / len(seconds) if seconds else None,
        "peak_bytes": max(
            (o.peak_bytes for o in outcomes if o.peak_bytes is not None), default=None
        ),
        "stored_bytes": max(
            (o.stored_bytes for o in outcomes if o.stored_bytes is not None), default=None
        ),
        "pictures": sum(len(o.answers) for o in outcomes),
    }


def _figure(value: float, interval: Interval) -> dict[str, float] | None:
    return (
        {"value": value, "low": interval.low, "high": interval.high}
        if math.isfinite(value)
        else None
    )
