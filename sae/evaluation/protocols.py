"""UnlearnCanvas's protocols: each concept by itself, a sequence of requests, all at once; their
settings found on another judge and other seeds."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from featurestore.errors import UsageError
from featurestore.prompts import Prompt
from featurestore.vocabulary import PROTOCOLS
from sae.diffusion.pipelines import Model, RunSettings, describe_run, with_starts
from sae.evaluation.judge import Judge
from sae.evaluation.measures.accuracy import asks, grouped, targets_text
from sae.evaluation.outcomes import Outcome, Reference, judged, untouched
from sae.evaluation.removals import Request, ablation_removal, sequence
from sae.evaluation.search import Look, best, first_that_holds, looks, strength_of, value
from sae.evaluation.together import NOTHING_KEPT, Toward, together
from sae.intervention.settings import Intervention

Say = Callable[[str], object]


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
    """so many settings are attacked at most, the best of each strength; the first wins of which
    nothing comes back"""

    @property
    def looks(self) -> tuple[Look, Look]:
        """A first look, and one with all pictures."""
        return looks(sorted({p.seed for p in self.prompts}), self.n_others)


@dataclass(frozen=True, kw_only=True)
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

    @classmethod
    def in_folder(
        cls, out: Path, *, model: Model, run: RunSettings | None, prompts: Sequence[Prompt],
        judge: Judge, batch_size: int, mode: str, saes: Sequence[Path],
    ) -> "Evaluation":  # fmt: skip
        """Return an evaluation whose outcomes are kept below ``out``; ``run``, by default the
        model's own, starts from the pictures that the prompts say."""
        started = with_starts(model.pipe, run or RunSettings(model.steps, model.guidance), prompts)
        return cls(
            folder=out / "outcomes",
            model=model,
            run=started,
            prompts=prompts,
            judge=judge,
            batch_size=batch_size,
            mode=mode,
            saes=saes,
        )

    def outcome(
        self,
        targets: dict[str, list[str]],
        interventions: Sequence[Intervention],
        *,
        prompts: Sequence[Prompt],
        judge: Judge,
        reference: Reference | None = None,
    ) -> Outcome:
        """Return the outcome of one removal on some prompts, by some judge."""
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
        return judged(self.folder, removal, prompts, judge, identity=identity, reference=reference)


def run_protocol(
    evaluation: Evaluation,
    requests: Sequence[Request],
    protocol: str,
    *,
    search: Search | None = None,
    reference: Reference | None = None,
    say: Say = lambda line: None,
    toward: Toward = NOTHING_KEPT,
) -> tuple[Outcome, list[Outcome]]:
    """Return the untouched model's outcome and those of a protocol; ``reference`` is by default the
    untouched pictures.

    ``each``: one outcome per request. ``sequential``: one after each request, of all so far.
    ``joint``: one, of all. With a search the settings are its best ones, and those of several
    requests at once are balanced on it. What is removed goes ``toward`` what is kept as strongly as
    the search finds best.

    Raises:
        UsageError: there is no such protocol, there is nothing to remove, settings have to be
            searched without a search's judge, or on what is reported.
    """
    if protocol not in PROTOCOLS:
        raise UsageError(f"protocol {protocol!r}: expected one of {', '.join(PROTOCOLS)}.")
    if not requests:
        raise UsageError("nothing to evaluate: no concept is named.")
    if protocol == "each":
        requests = [_towards(one, toward, searched=search is not None) for one in requests]
    _check_search(evaluation, requests, search)
    say("the untouched model")
    before, own = untouched(
        evaluation.folder,
        evaluation.model,
        evaluation.run,
        prompts=evaluation.prompts,
        judge=evaluation.judge,
        batch_size=evaluation.batch_size,
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
        outcome = evaluation.outcome(
            targets,
            edits,
            prompts=evaluation.prompts,
            judge=evaluation.judge,
            reference=own if reference is None else reference,
        )
        outcomes.append(outcome)
    return before, outcomes


def _towards(request: Request, toward: Toward, *, searched: bool) -> Request:
    key = request.family, request.concept
    return request._replace(candidates=toward.beside(key, request.candidates, searched=searched))


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
    for one in requests:
        if not any(asks(p.labels, {one.family: [one.concept]}) for p in search.prompts):
            raise UsageError(
                f"no prompt of the search asks for {one.family}={one.concept}: nothing would say "
                f"whether a setting removes it. Give prompts with this label."
            )


def _chosen(
    evaluation: Evaluation, request: Request, search: Search | None, say: Say
) -> Sequence[Intervention]:
    if search is None:
        return request.candidates[0]
    targets = {request.family: [request.concept]}

    def looked(numbered: tuple[int, Sequence[Intervention]], look: Look) -> Outcome:
        number, candidate = numbered
        outcome = _looked(evaluation, search, candidate, targets=targets, look=look)
        place = (
            f"setting {number} of {len(request.candidates)}, seeds "
            f"{', '.join(map(str, look.seeds))}"
        )
        say(f"search {request.family}={request.concept}: {place}: {value(outcome).mean:.3f}")
        return outcome

    numbered = list(enumerate(request.candidates, 1))
    if search.comes_back is None:
        return best(numbered, search.looks, looked)[1]
    comes_back = search.comes_back

    def attacked(numbered: tuple[int, Sequence[Intervention]]) -> float:
        rate = comes_back(numbered[1])
        say(
            f"attack on {request.family}={request.concept}: setting {numbered[0]}: {rate:.0%} shown"
        )
        return rate

    return first_that_holds(
        numbered, search.looks, looked, strength=lambda one: strength_of(one[1]),
        comes_back=attacked, tries=search.tries,
    )[1]  # fmt: skip


def _looked_together(
    evaluation: Evaluation, search: Search, say: Say, interventions: Sequence[Intervention]
) -> Outcome:
    targets = grouped((one.selection.family, one.selection.concept) for one in interventions)
    look = search.looks[-1].one_seed
    outcome = _looked(evaluation, search, interventions, targets=targets, look=look)
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
    interventions: Sequence[Intervention],
    *,
    targets: dict[str, list[str]],
    look: Look,
) -> Outcome:
    prompts = look.taken(search.prompts, targets)
    return evaluation.outcome(targets, interventions, prompts=prompts, judge=search.judge)
