"""UnlearnCanvas's protocols: each concept by itself, a sequence of requests, all at once; settings
found on another judge."""

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from featurestore.errors import UsageError
from featurestore.prompts import Prompt
from featurestore.selection import Selection
from featurestore.vocabulary import DEFAULT_STRENGTH, PROTOCOLS
from sae.diffusion.pipelines import Model, RunSettings, describe_run
from sae.evaluation.judge import Judge
from sae.evaluation.measures.accuracy import accuracy, grouped, targets_text
from sae.evaluation.outcomes import (
    Outcome,
    Reference,
    ablation_removal,
    judged,
    per_target,
    sequence,
    summary,
    untouched,
)
from sae.evaluation.search import (
    NOTHING_KEPT,
    Look,
    Toward,
    first_that_holds,
    in_order,
    looks,
    together,
    value,
)
from sae.intervention.settings import Intervention

Say = Callable[[str], object]


class Request(NamedTuple):
    """A concept to be removed, and the settings among which one is searched."""

    family: str
    concept: str
    candidates: Sequence[Sequence[Intervention]]


def requests(
    selections: Iterable[Sequence[Selection]],
    *,
    kind: str = "paper",
    strengths: Sequence[float] = (DEFAULT_STRENGTH,),
    thresholds: Sequence[float] = (1.0,),
) -> list[Request]:
    """Return a request for each concept: its selections, each with each strength and threshold.

    Each element of ``selections`` belongs to one concept and is one removal, of one or several
    hooks or SAEs; several of one concept are alternatives. In a removal of several each has each
    strength beside each of the others', as scales differ between hooks; thresholds are common.
    """
    found: dict[tuple[str, str], list[Sequence[Selection]]] = {}
    for group in selections:
        found.setdefault((group[0].family, group[0].concept), []).append(group)
    return [
        Request(
            *key,
            [
                [
                    Intervention(one, kind, strength, threshold=threshold)
                    for one, strength in zip(group, own, strict=True)
                ]
                for group in groups
                for own in itertools.product(strengths, repeat=len(group))
                for threshold in thresholds
            ],
        )
        for key, groups in found.items()
    ]


@dataclass(frozen=True)
class Search:
    """What settings are chosen by: never what they are reported on."""

    judge: Judge
    prompts: Sequence[Prompt]
    n_others: int
    """pictures that do not ask for the target, at most"""
    comes_back: Callable[[Sequence[Intervention]], float] | None = None
    """says which share of attacked pictures of the search shows what a setting removes; None:
    nothing is attacked"""
    tries: int = 4
    """of the best settings so many are attacked; the first wins of which nothing comes back"""

    @property
    def looks(self) -> tuple[Look, Look]:
        """A first look, and one with all pictures."""
        return looks(sorted({p.seed for p in self.prompts}), self.n_others)


@dataclass(frozen=True)
class Evaluation:
    """How pictures are made and judged."""

    folder: Path
    """where outcomes are kept; the same again are read from there"""
    model: Model
    run: RunSettings
    prompts: Sequence[Prompt]
    judge: Judge
    batch_size: int = 8
    mode: str = "paper"
    saes: Sequence[Path] = ()

    def outcome(
        self,
        targets: dict[str, list[str]],
        interventions: Sequence[Intervention],
        reference: Reference | None,
        prompts: Sequence[Prompt],
        judge: Judge,
    ) -> Outcome:
        """Return the outcome of one removal."""
        removal = ablation_removal(
            self.model,
            self.run,
            targets,
            interventions,
            saes=self.saes,
            mode=self.mode,
            batch_size=self.batch_size,
        )
        identity = {"run": describe_run(self.model, self.run)}
        return judged(self.folder, removal, prompts, judge, identity, reference)


def run_protocol(
    evaluation: Evaluation,
    requests: Sequence[Request],
    protocol: str,
    search: Search | None,
    reference: Reference | None = None,
    say: Say = lambda line: None,
    toward: Toward = NOTHING_KEPT,
) -> tuple[Outcome, list[Outcome]]:
    """Return the untouched model's outcome and those of a protocol; ``reference`` is by default the
    untouched pictures.

    ``each``: one outcome per request. ``sequential``: one after each request, of all so far.
    ``joint``: one, of all. With a search the settings are its best ones, and those of several
    requests at once are balanced on it, and go ``toward`` what is kept as strongly as it finds
    best.

    Raises:
        UsageError: there is no such protocol, there is nothing to remove, settings have to be
            searched without a search's judge, or on what is reported.
    """
    if protocol not in PROTOCOLS:
        raise UsageError(f"protocol {protocol!r}: expected one of {', '.join(PROTOCOLS)}.")
    if not requests:
        raise UsageError("nothing to evaluate: no concept is named.")
    _check_search(evaluation, requests, search)
    say("the untouched model")
    before, own = untouched(
        evaluation.folder,
        evaluation.model,
        evaluation.run,
        evaluation.prompts,
        evaluation.judge,
        evaluation.batch_size,
    )
    chosen = {(r.family, r.concept): _chosen(evaluation, r, search, say) for r in requests}
    asked = [{r.family: [r.concept]} for r in requests]
    wanted = (
        asked if protocol == "each" else list(sequence(asked))[-1 if protocol == "joint" else 0 :]
    )
    looked = (
        None if search is None else functools.partial(_looked_together, evaluation, search, say)
    )
    outcomes = []
    for targets, edits in zip(wanted, together(wanted, chosen, looked, toward), strict=True):
        say(f"without {targets_text(targets)}")
        outcomes.append(
            evaluation.outcome(
                targets, edits, reference or own, evaluation.prompts, evaluation.judge
            )
        )
    return before, outcomes


def _check_search(
    evaluation: Evaluation, requests: Sequence[Request], search: Search | None
) -> None:
    several = max(len(r.candidates) for r in requests)
    if min(len(r.candidates) for r in requests) < 1:
        raise UsageError("a concept has no setting to try.")
    if search is None:
        if several > 1:
            raise UsageError(
                f"{several} settings per concept: say what to choose them by, --search-judge and "
                f"--search-seeds."
            )
        return
    same = {p.seed for p in search.prompts} & {p.seed for p in evaluation.prompts}
    if search.judge.name == evaluation.judge.name or same:
        found = f"seeds {sorted(same)} are" if same else f"the judge {search.judge.name} is"
        raise UsageError(f"{found} both searched and reported on: what is tuned on is no evidence.")


def _chosen(
    evaluation: Evaluation, request: Request, search: Search | None, say: Say
) -> Sequence[Intervention]:
    if search is None:
        return request.candidates[0]
    targets = {request.family: [request.concept]}

    def looked(numbered: tuple[int, Sequence[Intervention]], look: Look) -> Outcome:
        number, candidate = numbered
        outcome = _looked(evaluation, search, targets, look, candidate)
        place = (
            f"setting {number} of {len(request.candidates)}, seeds "
            f"{', '.join(map(str, look.seeds))}"
        )
        say(f"search {request.family}={request.concept}: {place}: {value(outcome).mean:.3f}")
        return outcome

    order = in_order(list(enumerate(request.candidates, 1)), search.looks, looked)
    if search.comes_back is None:
        return order[0][1]
    comes_back = search.comes_back

    def attacked(numbered: tuple[int, Sequence[Intervention]]) -> float:
        rate = comes_back(numbered[1])
        say(
            f"attack on {request.family}={request.concept}: setting {numbered[0]}: {rate:.0%} shown"
        )
        return rate

    return first_that_holds(order[: search.tries], attacked)[1]


def _looked_together(
    evaluation: Evaluation, search: Search, say: Say, interventions: Sequence[Intervention]
) -> Outcome:
    targets = grouped((one.selection.family, one.selection.concept) for one in interventions)
    outcome = _looked(evaluation, search, targets, search.looks[-1].one_seed, interventions)
    multipliers = ", ".join(f"{one.strength:g}" for one in interventions)
    kept = {
        f"{one.pull:g} towards {one.toward.family}={one.toward.concept}"
        for one in interventions
        if one.toward is not None
    }
    how = ", ".join([multipliers, *sorted(kept)])
    say(f"search together {targets_text(targets)}: {how}: {value(outcome).mean:.3f}")
    return outcome


def _looked(
    evaluation: Evaluation,
    search: Search,
    targets: dict[str, list[str]],
    look: Look,
    interventions: Sequence[Intervention],
) -> Outcome:
    return evaluation.outcome(
        targets, interventions, None, look.taken(search.prompts, targets), search.judge
    )


def report(
    evaluation: Evaluation,
    before: Outcome,
    outcomes: Sequence[Outcome],
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
