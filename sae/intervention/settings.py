"""Say what is done with a selection's features: by which rule, how strongly, in which half, when
and where."""

import hashlib
import math
import re
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from featurestore.errors import UsageError
from featurestore.format.canonical import canonical_json, sha256_text
from featurestore.selection import Selection
from featurestore.vocabulary import (
    BRANCH_CHOICES,
    DEFAULT_PULL,
    DEFAULT_STRENGTH,
    INTERVENTIONS,
    TOWARD_KINDS,
    Branch,
)
from sae.diffusion.hooks import Layout
from sae.diffusion.reading.calls import DenoiserCall

_WINDOW = re.compile(r"(\d+(?:\.\d+)?)(%?):(\d+(?:\.\d+)?)(%?)")


class Window(NamedTuple):
    """The timesteps at which an intervention acts, both ends included."""

    first: float = math.inf
    """the noisiest timestep; with ``parts``, 0 is the schedule's beginning"""
    last: float = -math.inf
    """the least noisy one; with ``parts``, 1 is the schedule's end"""
    parts: bool = False
    """whether the ends are parts of the run's schedule: its first step is at 0, its last at 1,
    whatever the timesteps"""

    @classmethod
    def parse(cls, text: str) -> "Window":
        """Return the window of ``800:200`` (timesteps) or ``0%:50%`` (parts of the schedule).

        Raises:
            UsageError: the text is neither.
        """
        match = _WINDOW.fullmatch(text.strip())
        if not match or match[2] != match[4]:
            raise UsageError(
                f"window {text!r}: expected timesteps such as 800:200, or parts such as 0%:50%."
            )
        scale = 100 if match[2] else 1
        window = cls(float(match[1]) / scale, float(match[3]) / scale, bool(match[2]))
        window.check()
        return window

    def check(self) -> None:
        """Refuse a window without a timestep.

        Raises:
            UsageError: it ends before it begins, or a part is not in [0, 1].
        """
        if self.parts and not 0 <= self.first <= self.last <= 1:
            raise UsageError(
                f"window {self.first:.0%}:{self.last:.0%}: expected two parts, 0% to 100%, in "
                f"this order."
            )
        if not self.parts and self.first < self.last:
            raise UsageError(
                f"window {self.first:g}:{self.last:g}: expected the noisier, larger timestep first."
            )

    def covers(self, call: DenoiserCall, n_train_timesteps: int) -> bool:
        """Say whether the intervention acts at a denoiser call.

        A call that no pipeline makes, as in training, has no schedule: there a timestep's part is
        ``1 − timestep / num_train_timesteps``.
        """
        if not self.parts:
            return self.last <= call.timestep <= self.first
        part = 1 - call.timestep / n_train_timesteps if call.part is None else call.part
        return self.first <= part <= self.last

    def check_schedule(self, schedule: tuple[float, ...]) -> None:
        """Refuse a schedule of which no step is covered.

        Raises:
            UsageError: the intervention would do nothing, without a word.
        """
        steps = (
            DenoiserCall(timestep, (), step, schedule) for step, timestep in enumerate(schedule)
        )
        if schedule and not any(self.covers(call, 0) for call in steps):
            raise UsageError(
                f"window {self}: none of the {len(schedule)} steps is in it, their timesteps are "
                f"{schedule[0]:g} to {schedule[-1]:g}."
            )

    def __str__(self) -> str:
        return (
            f"{self.first:.0%}:{self.last:.0%}" if self.parts else f"{self.first:g}:{self.last:g}"
        )


ALWAYS = Window()


@dataclass(frozen=True, eq=False)
class Intervention:
    """A selection, and what is done with its features (docs/ablation.md).

    Raises:
        UsageError: a value is not one of those that are allowed.
    """

    selection: Selection
    kind: str = "paper"
    """a key of :data:`featurestore.vocabulary.INTERVENTIONS`"""
    strength: float = DEFAULT_STRENGTH
    """γ of ``paper``, c of ``clamp``, α of ``add``; ``zero`` and ``replace`` do not use it"""
    branch: str = ""
    """``cond``, ``uncond`` or ``both`` halves of guidance; empty: the half that the selection's
    statistics are of"""
    window: Window = ALWAYS
    threshold: float = 1.0
    """of ``paper`` and ``replace``: how many times μ(i,t,D) an activation has to exceed; 1 as
    published, 0: fire at all"""
    mask: Tensor | None = None
    """where the intervention acts: bool, of the hooked map's size, a multiple of it, or one value
    per token; None: everywhere"""
    mask_from: str = ""
    """a word: the intervention acts where the hook's attention to it is at least
    :data:`sae.diffusion.attention.WORD_SHARE` of its largest value in the map; nowhere if the
    prompt lacks the word"""

    toward: Selection | None = None
    """features of a concept that is kept, of the same SAE: wherever the rule changes something they
    are raised to ``pull`` times their mean in that concept, so that what is removed becomes it and
    not another that is removed, too; None: nothing is put in"""
    pull: float = DEFAULT_PULL
    """β: how many times μ(i,t,D_kept)"""

    def __post_init__(self) -> None:
        if self.kind not in INTERVENTIONS:
            raise UsageError(
                f"intervention {self.kind!r}: expected one of {', '.join(INTERVENTIONS)}."
            )
        if not math.isfinite(self.strength):
            raise UsageError(f"strength {self.strength}: expected a finite number.")
        if not (math.isfinite(self.threshold) and self.threshold >= 0):
            raise UsageError(
                f"threshold {self.threshold}: expected 0 or more, in multiples of the features' "
                f"means."
            )
        self._check_toward()
        if self.branch not in ("", *BRANCH_CHOICES):
            raise UsageError(
                f"branch {self.branch!r}: expected one of {', '.join(BRANCH_CHOICES)}."
            )
        if self.mask is not None and (
            self.mask.dtype != torch.bool or self.mask.dim() not in (1, 2)
        ):
            kind = str(self.mask.dtype).removeprefix("torch.")
            raise UsageError(
                f"a mask is {kind} {list(self.mask.shape)}: expected bool [height, width] or "
                f"[tokens]."
            )
        if self.mask is not None and self.mask_from:
            raise UsageError("a mask and a word to take one from: give one of them.")
        self.window.check()

    def _check_toward(self) -> None:
        if self.toward is None:
            return
        if self.kind not in TOWARD_KINDS:
            raise UsageError(
                f"intervention {self.kind!r} changes no activation in whose place one that is kept "
                f"could come: --toward goes with {', '.join(TOWARD_KINDS)}."
            )
        if not (math.isfinite(self.pull) and self.pull >= 0):
            raise UsageError(
                f"pull {self.pull}: expected 0 or more, in multiples of the kept features' means."
            )
        kept, removed = self.toward, self.selection
        if kept.sae_hash != removed.sae_hash:
            raise UsageError(
                f"towards {kept.family}={kept.concept}: its features are of SAE {kept.sae!r} "
                f"({kept.sae_hash[:12]}…), those of {removed.family}={removed.concept} of "
                f"{removed.sae!r} ({removed.sae_hash[:12]}…): select both with one SAE."
            )

    @property
    def branches(self) -> tuple[Branch, ...]:
        """The halves of guidance that are edited."""
        return BRANCH_CHOICES[self.branch or self.selection.branch]

    def described(self) -> dict[str, Any]:
        """Return what is done, as JSON: the selection's names, and all settings; of the mask, a
        hash."""
        selection, window = self.selection, self.window
        named = {
            "family": selection.family,
            "concept": selection.concept,
            "sae": selection.sae,
            "hook": selection.hook,
        }
        ends = (
            None
            if window == ALWAYS
            else {"first": window.first, "last": window.last, "parts": window.parts}
        )
        rule = {"intervention": self.kind, "strength": self.strength, "threshold": self.threshold}
        mask = (
            None
            if self.mask is None
            else hashlib.sha256(bytes(self.mask.flatten().tolist())).hexdigest()[:16]
        )
        word = {"mask_from": self.mask_from} if self.mask_from else {}
        where = {"branches": list(self.branches), "window": ends, "mask": mask}
        return {**named, **rule, **where, **word, **self._described_toward()}

    def _described_toward(self) -> dict[str, Any]:
        if self.toward is None:
            return {}
        kept = self.toward
        rows = _digits([kept.timesteps, kept.rows.to_pylist()])
        named = {"family": kept.family, "concept": kept.concept, "rows": rows}
        return {"toward": named, "pull": self.pull}

    def identified(self) -> dict[str, Any]:
        """Return what tells the edit from every other, as JSON: what is done, and a hash of the SAE
        and of the selected features."""
        one = self.selection
        return self.described() | {
            "rows": _digits([one.sae_hash, one.timesteps, one.rows.to_pylist()])
        }

    def where(self, layout: Layout) -> Tensor | None:
        """Return the mask as one bool per position of the hooked tensor, ``[positions]``.

        A mask larger than the map is reduced by whole numbers: a position is inside when any of its
        pixels is.

        Raises:
            UsageError: the mask's size is not a multiple of the map's.
        """
        if self.mask is None:
            return None
        mask = self.mask if self.mask.dim() == 2 else self.mask[None]
        if layout.frames > 1:  # The same in every frame.
            one = layout._replace(height=layout.height // layout.frames, frames=1)
            of_one = self.where(one)
            return None if of_one is None else of_one.repeat(layout.frames)
        height, width = mask.shape
        n = layout.height * layout.width
        scale = math.isqrt(max(1, height * width // n))
        fits = scale * scale * n == height * width and height % scale == 0 and width % scale == 0
        if not fits or (
            layout.is_map and (height // scale, width // scale) != (layout.height, layout.width)
        ):
            size = f"a map of {layout.height} × {layout.width}" if layout.is_map else f"{n} tokens"
            hook = self.selection.hook
            raise UsageError(
                f"the mask is {height} × {width}, {hook!r} has {size}: expected that size or a "
                f"multiple."
            )
        pooled = F.max_pool2d(mask[None, None].float(), scale) if scale > 1 else mask.float()
        return pooled.flatten().bool().cpu()


def _digits(content: Any) -> str:
    """Return 16 digits that are the same for the same JSON."""
    return sha256_text(canonical_json(content))[:16]
