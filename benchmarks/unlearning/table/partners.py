"""What comes in the place of what is removed: concepts that are kept."""

from collections.abc import Mapping, Sequence

from benchmarks.unlearning.methods.defence import Bench
from benchmarks.unlearning.methods.ours import selected
from benchmarks.unlearning.table.run import Run
from sae.evaluation.together import Toward


def partner(run: Run, removals: Sequence[Mapping[str, Sequence[str]]], place: int = 0) -> Toward:
    """Return what removals exchange their concepts for, as strong as where it is asked for."""
    return kept(run.crossing, removals, place)._replace(pulls=(1.0,))


def kept(bench: Bench, removals: Sequence[Mapping[str, Sequence[str]]], place: int = 0) -> Toward:
    """Return what removals of several concepts go towards: of each family and SAE the first concept
    that none of them removes, or the one at another ``place`` among these."""
    found = []
    for family in dict.fromkeys(family for targets in removals for family in targets):
        removed = {concept for targets in removals for concept in targets.get(family, ())}
        left = [c for c in bench.canvas.concepts[family] if c not in removed][place : place + 1]
        found += [
            selected(bench, sae, family, concept, top=max(bench.grid.tops))
            for concept in left
            for sae in bench.saes
        ]
    return Toward(found)
