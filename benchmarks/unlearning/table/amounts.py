"""How much of everything the table has, for each benchmark."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.unlearning.methods.defence import Grid
from featurestore.vocabulary import ATTACKS
from minicanvas import LARGE, SMALL, Canvas
from sae.evaluation.search import Look, looks


@dataclass(frozen=True)
class Amounts:
    """How much of everything."""

    concepts: Mapping[str, Sequence[str]]
    """family → what is removed"""
    collect_seeds: Sequence[int] = range(8)
    looks: Sequence[Look] = looks((50, 51, 52), 50)
    """of the search"""
    report_seeds: Sequence[int] = (100, 101, 102, 103, 104)
    other_seeds: int = 1
    """of the seeds reported on, how many each prompt gets that does not ask for the target"""
    seeds_beside_several: int = 2
    """the same where several concepts are removed, and few pictures left to be retained"""
    train_steps: int = 4000
    crossing_steps: int = 1500
    """training steps of the SAEs of cross-attentions, which pass on little more than the prompt"""
    train_batch: int = 1024
    expansion: float = 8.0
    sequence: int = 6
    """requests in a row, of each family"""
    few_concepts: dict[str, int] = field(default_factory=lambda: {"style": 2, "object": 2})
    """of a family, on which methods run that are not ``COMPARED``: our own choices made otherwise,
    the simplest baselines"""
    attacks: Sequence[str] = tuple(ATTACKS)
    attacked: int = 5
    """pictures of a concept that are attacked, at once; some may not show it even untouched"""
    attacked_concepts: int = 5
    """of each family"""
    search_attacked: int = 2
    """pictures of a concept that are attacked in the search of ``ours, held``"""
    search_tries: int = 4
    """how many settings are attacked there at most, the best of each multiplier"""
    attack_rounds: Mapping[str, int] = field(default_factory=lambda: {"latents": 3})
    """attack → rounds; without: as published"""
    attack_iterations: Mapping[str, int] = field(default_factory=dict)
    """attack → iterations of each round"""
    cost: float = 1.0
    """of a picture, in the small benchmark's: where nothing was measured yet"""


def one_of_each(canvas: Canvas) -> dict[str, list[str]]:
    """Return of each group of look-alikes the first, by its family."""
    firsts = [group[0] for group in canvas.look_alikes]
    return {family: [c for c in firsts if c in own] for family, own in canvas.concepts.items()}


AMOUNTS: dict[str, Amounts] = {
    SMALL.name: Amounts(SMALL.concepts),
    LARGE.name: Amounts(
        one_of_each(LARGE),
        collect_seeds=range(4),
        looks=looks((50, 51), 50),
        report_seeds=(100, 101),
        seeds_beside_several=1,
        cost=1.2,
    ),
}
"""benchmark → how much its table has.

The large one has four times as many prompts. With the small one's amounts its table would take
301,000 pictures beside 94,000, and 21 hours beside 11 (``--estimate``, two processes). What makes
it hard is what has to stay, so that stays whole: every method is judged on every prompt. Instead
one concept of each group of look-alikes is removed, 8 styles and 10 objects, on fewer seeds of
twice as many prompts: of a concept 80 pictures to learn from, as there; 40 to choose settings by,
beside 30; 40 that are reported on, beside 50. So it takes 146,000 pictures and 14 hours, of which
8 are attacks on as many pictures as there, each a fifth dearer; and besides, objects in a row, and
hardening.
"""
GRIDS: dict[str, Grid] = {SMALL.name: Grid(), LARGE.name: Grid(retained=126)}
"""benchmark → the settings that are tried: the same, but for the pictures that SalUn retains, of
which 90 of 380 would show five of the twenty objects only"""


def suffix(canvas: Canvas) -> str:
    """Return what the names of a benchmark's files end with: nothing for the small one, ``_large``
    for the other."""
    return canvas.name.removeprefix(SMALL.name).replace(":", "_")
