"""What is done with the features of which selections."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featurestore.cli.options.gathering import gathered
from featurestore.cli.options.single import ablate_option
from featurestore.vocabulary import (
    BRANCH_CHOICES,
    DEFAULT_PULL,
    DEFAULT_STRENGTH,
    INTERVENTIONS,
)

if TYPE_CHECKING:
    from sae.intervention.settings import Intervention


@dataclass(frozen=True, kw_only=True)
class InterventionOptions:
    """What the options of :func:`intervention_options` say: selections, and lists of one value for
    all or one for each."""

    selections: tuple[Path, ...]
    multipliers: tuple[float, ...]
    kinds: tuple[str, ...]
    branches: tuple[str, ...]
    windows: tuple[str, ...]
    masks: tuple[Path, ...]
    mask_words: tuple[str, ...]
    thresholds: tuple[float, ...]
    towards: tuple[Path, ...]
    pulls: tuple[float, ...]

    def interventions(self) -> "list[Intervention]":
        """Read the selections and return what is done with each, in their order."""
        from featurestore.errors import UsageError
        from featurestore.selection import Selection
        from sae.intervention.settings import ALWAYS, Intervention, Window

        if self.pulls and not self.towards:
            raise UsageError("--pull is how strongly to edit towards what is kept: give --toward.")
        options = {
            "kind": self._for_each("--intervention", self.kinds, "paper"),
            "strength": self._for_each("--multiplier", self.multipliers, DEFAULT_STRENGTH),
            "threshold": self._for_each("--threshold", self.thresholds, 1.0),
            "branch": self._for_each("--branch", self.branches, ""),
            "toward": [
                None if path is None else Selection.load(path)
                for path in self._for_each("--toward", self.towards, None)
            ],
            "pull": self._for_each("--pull", self.pulls, DEFAULT_PULL),
            "window": [
                Window.parse(w) if w else ALWAYS
                for w in self._for_each("--window", self.windows, "")
            ],
            "mask_from": self._for_each("--mask-from", self.mask_words, ""),
            "mask": [
                None if m is None else _read_mask(m)
                for m in self._for_each("--mask", self.masks, None)
            ],
        }
        return [
            Intervention(
                Selection.load(path), **{name: values[i] for name, values in options.items()}
            )
            for i, path in enumerate(self.selections)
        ]

    def _for_each(self, option: str, values: Sequence[Any], default: Any) -> list[Any]:
        """Return one value per selection: that of all, each one's own, or the default."""
        from featurestore.errors import UsageError

        n = len(self.selections)
        if values and not n:
            raise UsageError(f"{option} is about selections: give --ablate too.")
        if len(values) not in (0, 1, n):
            raise UsageError(
                f"{option} is given {len(values)} times for {n} selections: once, or once for each."
            )
        return list(values) if len(values) == n else [*values, default][:1] * n


def intervention_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say what is done with which selections; they arrive as ``edits``."""
    options = [
        ablate_option,
        click.option(
            "--multiplier",
            "multipliers",
            type=float,
            multiple=True,
            help="Strength: γ (selected features are scaled by γ · their mean), c of clamp, α of "
            f"add.  [default: {DEFAULT_STRENGTH:g}]",
        ),
        click.option(
            "--intervention",
            "kinds",
            multiple=True,
            type=click.Choice(list(INTERVENTIONS)),
            help="What is done with the features.  [default: paper]",
        ),
        click.option(
            "--branch",
            "branches",
            multiple=True,
            type=click.Choice(list(BRANCH_CHOICES)),
            help="Half of guidance that is edited.  [default: the selection's]",
        ),
        click.option(
            "--window",
            "windows",
            multiple=True,
            help="Timesteps, such as 800:200, or parts of the schedule, such as 0%:50%.",
        ),
        click.option(
            "--mask",
            "masks",
            multiple=True,
            type=click.Path(path_type=Path),
            help="A picture, white where the edit acts; of the pictures' size or the map's.",
        ),
        click.option(
            "--mask-from",
            "mask_words",
            multiple=True,
            metavar="WORD",
            help="The edit acts where this word of the prompt looks: its attention at the hook.",
        ),
        click.option(
            "--threshold",
            "thresholds",
            type=float,
            multiple=True,
            help="Activations above this many times their feature's mean are edited; 0: all.  "
            "[default: 1, as published]",
        ),
        click.option(
            "--toward",
            "towards",
            multiple=True,
            type=click.Path(path_type=Path),
            help="Selection of a concept that is kept, by the same SAE: its features come where "
            "the others are taken out.",
        ),
        click.option(
            "--pull",
            "pulls",
            type=float,
            multiple=True,
            help=f"How many times their mean in that concept.  [default: {DEFAULT_PULL:g}]",
        ),
    ]
    return gathered(command, "edits", InterventionOptions, options)


def _read_mask(path: Path) -> Any:
    """Return a picture's mask, bool ``[height, width]``: true where it is lighter than middle
    grey."""
    import numpy as np
    import torch
    from PIL import Image

    from featurestore.errors import UsageError

    try:
        with Image.open(path) as image:
            return torch.from_numpy(np.array(image.convert("L")) > 127)
    except OSError as error:
        reason = error.strerror or "no known format of pictures"
        raise UsageError(f"--mask {path} cannot be read as a picture: {reason}.") from error
