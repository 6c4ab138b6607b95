"""Removals of several concepts at once and in a row."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from benchmarks.unlearning.methods.competitors import TOGETHER
from benchmarks.unlearning.methods.defence import Defence
from benchmarks.unlearning.methods.ours import features
from benchmarks.unlearning.table.partners import kept, partner
from benchmarks.unlearning.table.run import Run, cell
from benchmarks.unlearning.table.searching import EXCHANGED, METHODS, exchanged, searched
from sae.evaluation.measures.accuracy import grouped
from sae.evaluation.outcomes import Outcome
from sae.evaluation.removals import sequence
from sae.evaluation.together import together
from sae.intervention.settings import Intervention

TOGETHER_BY = ("ours", EXCHANGED)
"""by which features several concepts are removed at once"""


def several(
    run: Run,
    defences: Mapping[str, Mapping[str, Mapping[str, Defence]]],
    methods: Sequence[str] = METHODS,
    share: tuple[int, int] = (0, 1),
) -> dict[str, list[Outcome]]:
    """Remove styles and then objects in a row, all styles but one, and a style with an object, by
    each of :data:`TOGETHER_BY`, beginning with its own setting of each concept; all styles but one
    by other methods, too.

    ``share``: of so many processes this one does every n-th of these.
    """
    concepts = [(f, c) for f, of_concepts in defences.items() for c in of_concepts]
    styles, objects = (
        [key for key in concepts if key[0] == family] for family in ("style", "object")
    )
    n_requests = run.amounts.sequence
    requests = [{family: [c]} for family, c in (*styles[:n_requests], *objects[:n_requests])]
    all_but_one = [grouped(styles[1:])] if len(styles) > 1 else []
    pairs = [grouped(pair) for pair in zip(styles[:2], objects, strict=False)]
    look = run.amounts.looks[-1].one_seed

    def by_features(
        method: str, removals: Sequence[Mapping[str, Sequence[str]]]
    ) -> Iterator[Outcome]:
        if method == EXCHANGED:
            defended, toward = partial(exchanged, run), partner(run, removals)
        else:
            defended, toward = partial(features, run.bench), kept(run.bench, removals)
        mine = {(f, c): defences[f][c][method].interventions for f, c in concepts}

        def looked(interventions: Sequence[Intervention]) -> Outcome:
            return cell(run, defended(interventions), look)

        for edits in together(removals, mine, looked, toward):
            yield cell(run, defended(edits))

    def by_training(method: str) -> Iterator[Outcome]:
        for targets in all_but_one:
            for family, concepts in targets.items():
                tried = TOGETHER[method](run.bench, family, *concepts)
                yield cell(run, searched(run, tried, [look]))

    removals = {"sequential": [*sequence(requests)], "all but one": all_but_one, "joint": pairs}
    jobs: list[tuple[str, Iterator[Outcome]]] = [
        (name, by_features(method, of))
        for method in TOGETHER_BY
        if all(method in defences[f][c] for f, c in concepts)
        for name, of in removals.items()
    ]
    jobs += [("all but one", by_training(one)) for one in TOGETHER if one in methods]
    first, n = share
    found: dict[str, list[Outcome]] = {}
    for name, outcomes in jobs[first::n]:
        with run.bench.pace.skipped():
            for outcome in outcomes:
                found.setdefault(name, []).append(outcome)
    return found
