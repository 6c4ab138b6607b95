"""A defence is what is attached to the model; the settings that are tried, and what all defences
are made from."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.unlearning.adv_unlearn import AdvUnlearnSettings
from benchmarks.unlearning.esd import ESDSettings
from benchmarks.unlearning.ledger import Ledger
from benchmarks.unlearning.pace import Pace
from benchmarks.unlearning.salun import SalUnSettings
from featurestore.prompts import Prompt
from featurestore.selection import Selection
from featurestore.store import Store
from minicanvas import Canvas
from sae.diffusion.pipelines import Model, RunSettings, generate
from sae.evaluation.removals import Removal
from sae.intervention.settings import Intervention


class Defence(NamedTuple):
    """A method with one setting, for one or several concepts."""

    targets: dict[str, list[str]]
    setting: dict[str, Any]
    attached: Callable[[], AbstractContextManager[Any]]
    """attaches it to the model while the block runs"""
    run: RunSettings
    stored_bytes: int = 0
    interventions: Sequence[Intervention] = ()
    """what it is made of, if of SAE features"""
    prepare: Callable[[], object] = lambda: None
    """what has to be done once before it is attached: training"""
    training: Path | None = None
    """where ``prepare`` keeps the longest training; None: nothing is trained"""


_ADV_UNLEARN: dict[str, Any] = {"n_steps": 20, "warm_up": 20, "attack_every": 10}


@dataclass(frozen=True)
class Grid:
    """The settings that are tried, as fairly for each method as for ours."""

    tops: Sequence[int] = (2, 8, 32)
    multipliers: Sequence[float] = (-0.2, -0.5, -1.0, -2.0, -5.0, -10.0, -20.0)
    screened: tuple[int, float] = (8, -5.0)
    """features per step and multiplier at which SAEs are compared, before the best are searched"""
    thresholds: Sequence[float] = (1.0, 0.0)
    """in multiples of the features' means: searched where an attack is part of the search"""
    pulled_tops: Sequence[int] = (8, 32)
    """of ``tops``, those that are tried towards a concept that is kept"""
    pulls: Sequence[float] = (0.5, 1.0)
    """β of these"""
    crossing_tops: Sequence[int] = (2, 4)
    """features per step of each, where every cross-attention is edited, wherever they fire"""
    crossing_multipliers: Mapping[str, Sequence[float]] = field(
        default_factory=lambda: {"style": (0.0, -0.2, -0.5), "object": (-0.5, -1.0, -2.0)}
    )
    """family → what is tried there: with -0.5 styles take objects along"""
    crossing_partners: int = 2
    """how many kept concepts are tried there, for which features are exchanged"""
    strengths: Sequence[float] = (1.0, 2.0)
    """of mean directions"""
    esd: Sequence[tuple[str, ESDSettings]] = (
        ("prompts", ESDSettings(iterations=(40, 60, 90), learning_rate=3e-4, n_steps=20)),
        ("prompts", ESDSettings(iterations=(160, 240, 320), learning_rate=1e-4, n_steps=20)),
        ("name", ESDSettings(iterations=(60, 120, 200), learning_rate=5e-4, n_steps=20)),
    )
    """what is erased, the concept's name alone or all prompts with it, and how; the next only if
    none before is perfect"""
    adv_unlearn: Sequence[tuple[str, AdvUnlearnSettings]] = (
        ("prompts", AdvUnlearnSettings((80, 160, 240), 1e-3, **_ADV_UNLEARN)),
        ("prompts", AdvUnlearnSettings((120, 240, 360), 3e-4, **_ADV_UNLEARN)),
    )
    """as ESD's"""
    salun: Sequence[SalUnSettings] = (
        SalUnSettings(iterations=(30, 60, 90), learning_rate=1e-4),
        SalUnSettings(iterations=(60, 120, 180), learning_rate=5e-5),
    )
    """the next only if none before is perfect"""
    examples_per_prompt: int = 8
    """SalUn's pictures to forget"""
    retained: int = 90
    """SalUn's pictures to retain, of one prompt each"""


@dataclass(frozen=True)
class Bench:
    """What all methods are made from."""

    root: Path
    """where trained weights are kept"""
    canvas: Canvas
    """whose styles and objects are removed"""
    model: Model
    run: RunSettings
    store: Store
    hooks: Sequence[str]
    saes: Sequence[str]
    """names of SAEs of these hooks"""
    grid: Grid
    ledger: Ledger
    pace: Pace = field(default_factory=Pace)
    basis: Mapping[str, Any] = field(default_factory=dict)
    """what every outcome depends on beside its own setting: weights, libraries"""
    collected: str = ""
    """a hash of what the store was collected for"""
    batch_size: int = 20
    selected: dict[tuple[str, str, str, int], Selection] = field(default_factory=dict)
    """SAE, family, concept, features per step → what was selected before"""


def removal(bench: Bench, defence: Defence) -> Removal:
    """Return a defence as what is evaluated; it is attached anew for every batch."""

    def images(prompts: Sequence[Prompt]) -> Iterator[Any]:
        for start in range(0, len(prompts), bench.batch_size):
            batch = prompts[start : start + bench.batch_size]
            with bench.pace.checked(defence.attached)():
                pictures = generate(
                    bench.model, defence.run, [p.prompt for p in batch], [p.seed for p in batch]
                )
            yield from pictures

    return Removal(defence.targets, defence.setting, images, defence.stored_bytes)
