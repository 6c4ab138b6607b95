"""Removals made together, against what has to be found, by hand."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from sae.evaluation import together as making
from sae.evaluation.search import Value
from sae.evaluation.together import balanced, together


@dataclass(frozen=True)
class Edit:
    """What is needed of an intervention."""

    selection: SimpleNamespace
    strength: float


NEON, SKETCH = ("style", "neon"), ("style", "sketch")


def edits(neon, sketch):
    return {c: [Edit(SimpleNamespace(), m)] for c, m in ((NEON, neon), (SKETCH, sketch))}


def multipliers(several):
    return tuple(one.strength for one in several)


@pytest.fixture
def looked(monkeypatch):
    """A search where neon, the first, is still recognised below a multiplier of -4 and sketch
    never."""
    values = {
        (-1, -4): 0.7, (-2, -4): 0.8, (-2, -2): 0.85, (-4, -2): 0.9, (-4, -1): 0.88, (-2, -1): 0.7, (-8, -2): 0.95,
    }  # fmt: skip
    asked = []

    def look(several):
        asked.append(multipliers(several))
        return asked[-1]

    monkeypatch.setattr(making, "value", lambda found: Value(values[found], 0))
    monkeypatch.setattr(
        making,
        "per_target",
        lambda found: {"style=neon": 0.5 + (found[0] <= -4) / 2, "style=sketch": 1.0},
    )
    look.asked = asked  # type: ignore[attr-defined]
    return look


def test_removals_made_together_are_strengthened_or_weakened_one_by_one_while_it_helps(looked):
    found = balanced(edits(-1.0, -4.0), looked)
    assert looked.asked[:5] == [
        (-1, -4),
        (-2, -4),
        (-2, -2),
        (-4, -2),
        (-4, -1),
    ]  # All rose but the last.
    assert looked.asked[5:] == [(-2, -2), (-4, -1)]  # Once more through both: nothing is kept.
    assert {concept: multipliers(own) for concept, own in found.items()} == {
        NEON: (-4.0,),
        SKETCH: (-2.0,),
    }


def test_a_pass_in_which_nothing_rises_is_the_last(looked, monkeypatch):
    monkeypatch.setattr(making, "value", lambda found: Value(0.5, 0))
    assert balanced(edits(-1.0, -4.0), looked, 5) == edits(-1.0, -4.0)
    assert looked.asked == [(-1, -4), (-2, -4), (-1, -2)]


def test_a_sequence_goes_on_from_the_multipliers_found_for_the_requests_before(looked):
    alone, both = {"style": ["neon"]}, {"style": ["neon", "sketch"]}
    found = [
        multipliers(several) for several in together([alone, both, both], edits(-1.0, -4.0), looked)
    ]
    assert found == [(-1.0,), (-4.0, -2.0), (-4.0, -2.0)]  # A single one was chosen alone.
    assert looked.asked[7:] == [(-4, -2), (-2, -2), (-4, -1)]
    assert [multipliers(s) for s in together([alone, both], edits(-1.0, -4.0))] == [
        (-1.0,),
        (-1.0, -4.0),
    ]
