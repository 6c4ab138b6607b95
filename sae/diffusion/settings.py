"""How pictures are generated, as a user says it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from featurestore.errors import UsageError
from featurestore.prompts import StartPicture


@dataclass(frozen=True)
class RunSettings:
    """How pictures are generated.

    Raises:
        UsageError: a number is not finite.
    """

    n_steps: int
    guidance: float
    negative_prompt: str = ""
    height: int | None = None
    width: int | None = None
    true_cfg: float = 1.0
    """scale of guidance by a second denoiser call, for a pipeline whose ``guidance`` its denoiser
    is told (FLUX)"""
    frames: int | None = None
    """of a video"""
    starts: Mapping[str, StartPicture] = field(default_factory=dict)
    """``image``, ``mask`` or ``control`` → the picture that every sample starts from which has none
    of its own"""
    strength: float | None = None
    """how much of the picture is noised away, above 0 and up to 1; None: the pipeline's own"""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """further arguments of the pipeline's call, such as ``pag_scale``, as JSON has them"""

    def __post_init__(self) -> None:
        for name in ("guidance", "true_cfg", "strength"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise UsageError(f"{name} {value}: expected a finite number.")


def with_guidance(run: RunSettings, scale: float | None) -> RunSettings:
    """Return the settings with a guidance scale that some prompts have of their own, or as they
    are."""
    return run if scale is None else replace(run, guidance=scale)
