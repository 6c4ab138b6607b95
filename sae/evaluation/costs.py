"""Which features of a removal cost what is kept: pictures that lost a concept, drawn again with one
feature spared."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import pyarrow.compute as pc

from featurestore.errors import UsageError
from featurestore.prompts import Prompt
from featurestore.selection import Selection
from sae.diffusion.pipelines import Model, RunSettings
from sae.evaluation.judge import Judge, check_labels, named
from sae.evaluation.measures.accuracy import Answer, grouped
from sae.intervention.ablate import Saes
from sae.intervention.generate import generate_images
from sae.intervention.settings import Intervention

Suspects = Callable[[str, str, Sequence[Selection]], Sequence[tuple[str, int]]]
"""family, concept, selections → (SAE's hash, feature) of what may cost it, the likeliest first"""


class Cost(NamedTuple):
    """What a feature's removal does to pictures that lost a concept."""

    family: str
    concept: str
    sae: str
    feature: int
    lost: int
    """pictures that show the concept untouched, and not with everything removed"""
    back: int
    """of them, those that show it again if this feature is spared"""
    p_removed: float
    """mean probability of the concept in the lost pictures"""
    p_spared: float
    """the same, this feature spared"""


def costs(
    model: Model,
    interventions: Sequence[Intervention],
    *,
    prompts: Sequence[Prompt],
    judge: Judge,
    suspects: Suspects,
    run: RunSettings | None = None,
    saes: Saes = None,
    mode: str = "paper",
    most: int = 4,
    batch_size: int = 8,
    say: Callable[[str], object] = lambda line: None,
) -> list[Cost]:
    """Find the concepts of other families that pictures lose to a removal, and which of its
    features cost them; what costs most comes first.

    Of each lost concept the ``most`` likeliest features are spared one at a time, at every step,
    and its lost pictures drawn again. Pictures that lack the concept without the removal too do not
    count.

    Raises:
        UsageError: nothing is removed, no prompt names a concept of another family, or the judge
            does not know a label.
    """
    if not interventions:
        raise UsageError("nothing is removed: no selection is ablated.")
    removed = grouped((one.selection.family, one.selection.concept) for one in interventions)
    kept = sorted({family for p in prompts for family in named(p.labels)} - set(removed))
    if not kept:
        raise UsageError(
            f"the prompts name concepts of {', '.join(removed)} only, which are removed: give "
            f"prompts with labels of another family."
        )

    check_labels(judge, [p.labels for p in prompts])

    def judged(asked: Sequence[Prompt], edits: Sequence[Intervention]) -> list[Answer]:
        settings = run or RunSettings(model.steps, model.guidance)
        how = {"saes": saes, "mode": mode, "batch_size": batch_size, "progress": None}
        images = list(generate_images(model, asked, settings, edits, **how))  # type: ignore[arg-type]
        return judge.answers(asked, images)

    say(f"{len(prompts)} pictures without {', '.join(c for cs in removed.values() for c in cs)}")
    after = judged(prompts, interventions)
    places = [
        i
        for i, a in enumerate(after)
        if any(f in a.asked and a.asked[f] != a.seen[f] for f in kept)
    ]
    say(f"{len(places)} of them lost something: drawn untouched")
    before = dict(zip(places, judged([prompts[i] for i in places], []), strict=True))
    lost: dict[tuple[str, str], list[int]] = {}
    for i in places:
        for family in kept:
            concept = after[i].asked.get(family)
            if concept is not None and after[i].seen[family] != concept == before[i].seen[family]:
                lost.setdefault((family, concept), []).append(i)
    found = []
    selections = [one.selection for one in interventions]
    for (family, concept), rows in lost.items():
        asked = [prompts[i] for i in rows]
        for sae_hash, feature in suspects(family, concept, selections)[:most]:
            spared = judged(asked, [_without(one, sae_hash, feature) for one in interventions])
            name = next(s.sae for s in selections if s.sae_hash == sae_hash)
            back = sum(a.seen[family] == concept for a in spared)
            p = [_mean_p(answers, family) for answers in ([after[i] for i in rows], spared)]
            found.append(Cost(family, concept, name, feature, len(rows), back, *p))
            say(f"{family}={concept}, without taking {name}/{feature}: {back} of {len(rows)} back")
    return sorted(found, key=lambda c: (-c.back, c.p_removed - c.p_spared))


def _without(one: Intervention, sae_hash: str, feature: int) -> Intervention:
    """Return an intervention that leaves a feature alone."""
    rows = one.selection.rows
    if one.selection.sae_hash != sae_hash:
        return one
    spared = rows.filter(pc.not_equal(rows["feature"], feature))
    return replace(one, selection=replace(one.selection, rows=spared))


def _mean_p(answers: Sequence[Answer], family: str) -> float:
    return sum((a.p or {})[family] for a in answers) / len(answers)
