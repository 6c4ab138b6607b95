"""Make removals out of each concept's own edits: towards what is kept, and, of several concepts at
once, with multipliers that suit each other."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from featurestore.selection import Selection
from featurestore.vocabulary import DEFAULT_PULL, TOWARD_KINDS
from sae.evaluation.measures.accuracy import Targets
from sae.evaluation.outcomes import Outcome, per_target
from sae.evaluation.search import value
from sae.intervention.settings import Intervention

PULLS = (DEFAULT_PULL, DEFAULT_PULL / 2)
"""β that are searched where several concepts are removed together"""
Concept = tuple[str, str]
"""family and concept"""
Looked = Callable[[Sequence[Intervention]], Outcome]
"""makes and judges the pictures of a search"""


class Toward(NamedTuple):
    """What concepts that are removed may be edited towards."""

    kept: Sequence[Selection] = ()
    """of concepts that are kept; for an edit the first of its family and SAE counts that is no
    target"""
    pulls: Sequence[float] = PULLS
    """that are searched, beside none; the first without a search"""

    def best(
        self, edits: Mapping[Concept, Sequence[Intervention]], looked: Looked | None
    ) -> dict[Concept, Sequence[Intervention]]:
        """Return the edits as strongly towards what is kept as the search finds best."""
        if looked is None:
            return self.pulled(edits, self.pulls[0])
        tried = [self.pulled(edits, pull) for pull in (None, *self.pulls)]
        values = [value(looked(_all(one))) for one in tried]
        return tried[values.index(max(values))]

    def beside(
        self, concept: Concept, candidates: Sequence[Sequence[Intervention]], *, searched: bool
    ) -> list[Sequence[Intervention]]:
        """Return the settings of a concept that is removed by itself, each with each pull beside
        none, to be searched; or with the first pull. As they are where nothing is kept."""
        found: list[Sequence[Intervention]] = []
        for own in candidates:
            pulled = self.with_each_pull(concept, own)
            found += [own, *pulled] if searched or not pulled else pulled[:1]
        return found

    def with_each_pull(
        self, concept: Concept, own: Sequence[Intervention]
    ) -> list[Sequence[Intervention]]:
        """Return a setting of a concept that is removed by itself with each pull; none where
        nothing is kept."""
        pulled = [self.pulled({concept: own}, pull)[concept] for pull in self.pulls]
        return [one for one in pulled if any(edit.toward for edit in one)]

    def pulled(
        self, edits: Mapping[Concept, Sequence[Intervention]], pull: float | None
    ) -> dict[Concept, Sequence[Intervention]]:
        """Return edits towards what is kept, where there is something; None: towards nothing."""

        def one_pulled(one: Intervention) -> Intervention:
            of = one.selection
            fits = (
                kept
                for kept in self.kept
                if one.kind in TOWARD_KINDS
                and (kept.family, kept.sae_hash) == (of.family, of.sae_hash)
                and (kept.family, kept.concept) not in edits
            )
            kept = None if pull is None else next(fits, None)
            return replace(one, toward=kept, pull=DEFAULT_PULL if pull is None else pull)

        return {concept: [*map(one_pulled, own)] for concept, own in edits.items()}


NOTHING_KEPT = Toward()
"""edits go towards nothing"""


def together(
    removals: Iterable[Targets],
    edits: Mapping[Concept, Sequence[Intervention]],
    looked: Looked | None = None,
    toward: Toward = NOTHING_KEPT,
) -> Iterator[Sequence[Intervention]]:
    """Yield what makes each of several removals out of each concept's own edits.

    Those of several concepts go ``toward`` what is kept. With ``looked`` it is searched how
    strongly, and they are :func:`balanced`, starting from what was found for the removals before.
    """
    edits = dict(edits)
    for targets in removals:
        wanted = {
            (family, c): edits[family, c] for family, concepts in targets.items() for c in concepts
        }
        if len(wanted) > 1 and toward.kept:
            wanted = toward.best(wanted, looked)
        if looked is not None:
            wanted = balanced(wanted, looked)
            edits |= wanted
        yield _all(wanted)


def balanced(
    edits: Mapping[Concept, Sequence[Intervention]], looked: Looked, passes: int = 4
) -> dict[Concept, Sequence[Intervention]]:
    """Return removals of several concepts with multipliers that suit each other; of a single one,
    as it is.

    One concept after another gets twice its multiplier if the judge still recognises it in some
    picture, half of it if not; what raises :func:`value` is kept. So ``passes`` times, or until
    nothing is kept.
    """
    edits = dict(edits)
    if len(edits) < 2:
        return edits
    outcome = looked(_all(edits))
    for _ in range(passes):
        before = outcome
        for concept, own in edits.items():
            factor = 0.5 if per_target(outcome)["=".join(concept)] == 1 else 2.0
            tried = {
                **edits,
                concept: [replace(one, strength=factor * one.strength) for one in own],
            }
            then = looked(_all(tried))
            if value(then) > value(outcome):
                edits, outcome = tried, then
        if outcome is before:
            break
    return edits


def _all(edits: Mapping[Concept, Sequence[Intervention]]) -> list[Intervention]:
    return [one for own in edits.values() for one in own]
