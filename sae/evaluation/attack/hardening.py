"""Make selections hold: attack, learn the features that what came back uses, take them too, until
attacks fail."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from featurestore.errors import UsageError
from featurestore.format import durable
from featurestore.prompts import Prompt
from featurestore.selection import Selection
from sae.diffusion.pipelines import Model, RunSettings, generate
from sae.diffusion.starts import Starts
from sae.evaluation.attack.attacking import Say, attack
from sae.evaluation.attack.report import Attacked, AttackReport
from sae.evaluation.attack.rounds import described, kept, line, told
from sae.evaluation.attack.settings import AttackSettings
from sae.evaluation.judge import Judge, check_labels
from sae.evaluation.measures.accuracy import grouped
from sae.evaluation.outcomes import Outcome
from sae.evaluation.protocols import Evaluation
from sae.evaluation.search import thinned
from sae.intervention.ablate import ablate
from sae.intervention.settings import Intervention

FILE = "hardened.json"
Learn = Callable[[str, str, Sequence[Prompt], Sequence[Intervention]], Selection]
"""family, concept, prompts that bring it back, what is removed already → features of what came
back"""
HOLDS = "no attack brought anything back"
SPENT = "taking more features costs more than the budget"
KNOWN = "what came back fires no features that are not taken out already"
UNTYPED = "what came back does not come back when its tokens are typed as text"
ENDED = "the last round is over"


@dataclass(frozen=True, kw_only=True)
class HardenSettings:
    """How far hardening goes.

    Raises:
        UsageError: the attack finds no text, or a number is out of range.
    """

    attack: AttackSettings = field(default_factory=lambda: AttackSettings(method="words"))
    """each round attacks with another seed; of tokens, which need not be what a text is read as,
    little may be learnt"""
    rounds: int = 4
    budget: float = 0.02
    """by how much the mean of IRA and CRA may fall on the search's pictures, all rounds together"""
    weakenings: int = 3
    """how often the new features' strength is halved to stay within the budget"""
    pictures: int = 4
    """attacked of each concept"""
    n_others: int = 40
    """pictures that ask for no target, on which IRA and CRA are taken"""

    def __post_init__(self) -> None:
        if self.attack.method not in ("words", "tokens"):
            raise UsageError(
                f"hardening learns from prompts that an attack finds: attack "
                f"{self.attack.method!r}, expected words or tokens."
            )
        if self.rounds < 1 or self.budget < 0:
            raise UsageError(
                f"{self.rounds} rounds, budget {self.budget}: expected at least 1 round, and no "
                f"less than 0."
            )


@dataclass
class Hardened:
    """What hardening ended with."""

    interventions: list[Intervention]
    """the given ones, and those that were added"""
    rounds: list[dict[str, Any]]
    """of each: rates before and under attack, UA, IRA and CRA, what was added"""
    reason: str
    """why it ended"""


def harden(
    model: Model,
    interventions: Sequence[Intervention],
    *,
    prompts: Sequence[Prompt],
    judge: Judge,
    learn: Learn,
    out: Path,
    settings: HardenSettings | None = None,
    run: RunSettings | None = None,
    saes: Sequence[Path] = (),
    mode: str = "paper",
    batch_size: int = 8,
    progress: bool = True,
    say: Say = lambda line: None,
) -> Hardened:
    """Attack what ``interventions`` remove, and add interventions until attacks fail; nothing is
    trained.

    Each round attacks with words, or tokens. Prompts that bring a concept back, typed as text, go
    to ``learn``, which selects the features of what came back (``featurestore harden`` collects
    them into the store with a label of their own, under the defence, and scores them by SQL). They
    are taken at the strength of the concept's own intervention, or as weakly as the budget of IRA
    and CRA demands. ``prompts`` and ``judge`` are a search's: report on others.

    Everything is kept in ``out``; the same call goes on there. Raises as
    :func:`sae.evaluation.attack.attack`.
    """
    settings = settings or HardenSettings()
    check_labels(judge, [p.labels for p in prompts])
    evaluation = Evaluation.in_folder(
        out,
        model=model,
        run=run,
        prompts=prompts,
        judge=judge,
        batch_size=batch_size,
        mode=mode,
        saes=saes,
    )
    work = _Hardening(evaluation, out, settings)
    edits, rounds, reason = list(interventions), [], ENDED
    first: float | None = None
    for number in range(1, settings.rounds + 1):
        report = work.attack(edits, number, progress, say)
        outcome = work.outcome(edits)
        first = kept(outcome) if first is None else first
        body: dict[str, Any] = {"round": number, **told(report, outcome), "added": []}
        rounds.append(body)
        say(f"round {number}: {line(body)}")
        if not report.came_back:
            reason = HOLDS
            break
        more, why = work.learnt(edits, report, learn)
        if not more:
            reason = why
            break
        chosen = work.within_budget(edits, more, first - settings.budget)
        if chosen is None:
            reason = SPENT
            break
        edits += chosen
        body["added"] = [described(one) for one in chosen]
        added = ", ".join(
            f"{a['concept']}: {a['features']} features at {a['strength']:g}" for a in body["added"]
        )
        say(f"round {number}: {added} taken, too")
    text = json.dumps({"reason": reason, "rounds": rounds}, indent=1, ensure_ascii=False)
    durable.write_bytes(out / FILE, (text + "\n").encode())
    return Hardened(edits, rounds, reason)


@dataclass
class _Hardening:
    evaluation: Evaluation
    """on the search's prompts, by its judge"""
    out: Path
    settings: HardenSettings

    def attack(
        self, edits: Sequence[Intervention], number: int, progress: bool, say: Say
    ) -> AttackReport:
        """Attack all that is removed, with a seed of the round's own."""
        how = self.evaluation
        return attack(
            how.model,
            edits,
            prompts=how.prompts,
            judge=how.judge,
            out=self.out / f"round{number}",
            settings=replace(self.settings.attack, seed=self.settings.attack.seed + number),
            run=how.run,
            saes=how.saes,
            mode=how.mode,
            pictures=self.settings.pictures,
            batch_size=how.batch_size,
            progress=progress,
            say=say,
        )

    def outcome(self, edits: Sequence[Intervention]) -> Outcome:
        """Judge what is kept, on the pictures of the targets and some others."""
        targets = grouped((e.selection.family, e.selection.concept) for e in edits)
        prompts = thinned(self.evaluation.prompts, targets, self.settings.n_others)
        return self.evaluation.outcome(targets, edits, prompts=prompts, judge=self.evaluation.judge)

    def learnt(
        self, edits: Sequence[Intervention], report: AttackReport, learn: Learn
    ) -> tuple[list[Intervention], str]:
        """Return an intervention for each concept that came back by a text; or none, and why."""
        typed = self._typed(edits, report.came_back)
        if not typed:
            return [], UNTYPED
        found = []
        for family, concept in dict.fromkeys((one.family, one.concept) for one in typed):
            own = next(
                e for e in edits if (e.selection.family, e.selection.concept) == (family, concept)
            )
            texts = [one for one in typed if (one.family, one.concept) == (family, concept)]
            prompts = [
                Prompt(
                    str(one.found["text"]),
                    one.seed,
                    {family: concept},
                    0,
                    starts=self._asked(one).starts,
                )
                for one in texts
            ]
            selection = learn(family, concept, prompts, edits)
            taken = {
                row
                for e in edits
                if e.selection.sae_hash == selection.sae_hash
                for row in _features(e.selection)
            }
            fresh = [row not in taken for row in _features(selection)]
            if any(fresh):
                # By the concept's own name, so that all its selections are taken together.
                rows = selection.rows.filter(fresh)
                found.append(
                    replace(
                        own, selection=replace(selection, family=family, concept=concept, rows=rows)
                    )
                )
        return found, KNOWN

    def within_budget(
        self, edits: Sequence[Intervention], more: Sequence[Intervention], least: float
    ) -> list[Intervention] | None:
        """Return the new interventions as strong as IRA and CRA allow; None: not even weakened."""
        for halvings in range(self.settings.weakenings + 1):
            tried = [replace(one, strength=one.strength / 2**halvings) for one in more]
            if kept(self.outcome([*edits, *tried])) >= least:
                return tried
        return None

    def _asked(self, one: Attacked) -> Prompt:
        """Return the prompt that was attacked, with the pictures that it starts from."""
        wanted = (one.prompt, one.seed, one.starts)
        return next(
            p for p in self.evaluation.prompts if (p.prompt, p.seed, p.start_hashes) == wanted
        )

    def _typed(
        self, edits: Sequence[Intervention], came_back: Sequence[Attacked]
    ) -> list[Attacked]:
        """Return those that come back when their tokens are read as text, as anybody could type
        it."""
        how, back = self.evaluation, []
        with ablate(how.model.pipe, list(edits), saes=how.saes, mode=how.mode):
            for start in range(0, len(came_back), how.batch_size):
                part = came_back[start : start + how.batch_size]
                starts = [self._asked(one).starts for one in part]
                shown = shown_typed(how.model, how.run, how.judge, part, starts=starts)
                back += [one for one, is_shown in zip(part, shown, strict=True) if is_shown]
        return back


def shown_typed(
    model: Model,
    run: RunSettings,
    judge: Judge,
    came_back: Sequence[Attacked],
    *,
    starts: Sequence[Starts] = (),
) -> list[bool]:
    """Say of each picture whether its concept is shown when what an attack found is typed as text;
    the defence is attached by the caller."""
    texts, seeds = [str(one.found["text"]) for one in came_back], [one.seed for one in came_back]
    images = generate(model, run, texts, seeds, starts=starts)
    return judge.sees(images, [(one.family, one.concept) for one in came_back])


def _features(selection: Selection) -> list[tuple[int, int]]:
    columns = selection.rows.select(["step", "feature"]).to_pydict()
    return list(zip(columns["step"], columns["feature"], strict=True))
