"""What is removed, and how: concepts with the settings among which one is searched, and a removal
that draws."""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from featurestore.prompts import Prompt
from featurestore.selection import Selection
from featurestore.vocabulary import DEFAULT_STRENGTH
from sae.diffusion.pipelines import Model, RunSettings
from sae.intervention.ablate import Saes
from sae.intervention.generate import generate_images
from sae.intervention.settings import Intervention

MOST_APART = 2
"""selections of a removal whose strengths are searched each for itself: the settings of more would
be too many"""


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
    hooks or SAEs; several of one concept are alternatives. In a removal of two each has each
    strength beside each of the other's, as scales differ between hooks; of more than
    ``MOST_APART`` strengths are common, as thresholds are.
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
                for own in _strengths(len(group), strengths)
                for threshold in thresholds
            ],
        )
        for key, groups in found.items()
    ]


def _strengths(n: int, strengths: Sequence[float]) -> Iterable[tuple[float, ...]]:
    """Return the strengths that n selections of a removal are tried with."""
    if n > MOST_APART:
        return [(strength,) * n for strength in strengths]
    return itertools.product(strengths, repeat=n)


def sequence(removals: Sequence[dict[str, list[str]]]) -> Iterator[dict[str, list[str]]]:
    """Yield the targets after each request of a sequence: the first, the first two, …"""
    so_far: dict[str, list[str]] = {}
    for targets in removals:
        for family, concepts in targets.items():
            so_far = {**so_far, family: [*so_far.get(family, []), *concepts]}
        yield so_far


@dataclass(frozen=True)
class Removal:
    """Concepts, and how they are taken out."""

    targets: dict[str, list[str]]
    """family → concepts; empty: nothing is removed"""
    setting: dict[str, Any]
    """what else tells it from others: method, features per step, multiplier, hook, …"""
    images: Callable[[Sequence[Prompt]], Iterable[Any]]
    """prompts → their pictures, in order"""
    stored_bytes: int = 0
    """what has to be kept beside the model"""


def ablation_removal(
    model: Model,
    run: RunSettings,
    targets: dict[str, list[str]],
    interventions: Sequence[Intervention],
    *,
    saes: Saes = None,
    mode: str = "paper",
    batch_size: int = 8,
) -> Removal:
    """Return the removal that interventions make; ``saes`` and ``mode`` as
    :func:`sae.intervention.ablate.attach`."""
    selections = [i.selection for i in interventions]
    sizes = {s.sae_hash: 4 * (s.n_latents * (2 * s.d_in + 1) + s.d_in) for s in selections}
    setting = {
        "method": "sae",
        "mode": mode,
        "edits": [one.identified() for one in interventions],
    }
    images = functools.partial(
        generate_images,
        model,
        run=run,
        interventions=interventions,
        saes=saes,
        mode=mode,
        batch_size=batch_size,
        progress=None,
    )
    return Removal(targets, setting, images, sum(sizes.values()))
