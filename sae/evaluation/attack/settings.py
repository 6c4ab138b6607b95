"""How an attack is made, and what a defence is."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from featurestore.errors import UsageError
from featurestore.vocabulary import ATTACKS
from sae.diffusion.pipelines import Model, RunSettings

_DEFAULTS: dict[str, dict[str, float]] = {
    "tokens": {"rounds": 50, "iterations": 40, "learning_rate": 1e-2},
    "words": {"rounds": 50, "iterations": 40, "learning_rate": 1e-2},
    "embedding": {"rounds": 50, "iterations": 40, "learning_rate": 0.1},
    "latents": {"rounds": 10, "iterations": 20, "learning_rate": 0.05},
    "random": {"rounds": 50},
}


@dataclass(frozen=True, kw_only=True)
class AttackSettings:
    """How an attack is made; None: the method's own number.

    Raises:
        UsageError: there is no such method, or a number is not positive.
    """

    method: str = "tokens"
    """a key of :data:`featurestore.vocabulary.ATTACKS`"""
    n_tokens: int = 5
    """before the prompt; UnlearnDiffAtk takes 3 for styles"""
    rounds: int | None = None
    """after each the pictures are judged; of ``tokens`` and ``words`` each is a timestep, from the
    least noisy on"""
    iterations: int | None = None
    """gradient steps of a round"""
    learning_rate: float | None = None
    """of Adam; of ``embedding`` in standard deviations of the text encoder's embeddings"""
    weight_decay: float = 0.1
    """of ``tokens`` and ``words``"""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in ATTACKS:
            raise UsageError(f"attack {self.method!r}: expected one of {', '.join(ATTACKS)}.")
        for name, number in _DEFAULTS[self.method].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, type(number)(number))
        for name in ("iterations", "learning_rate"):
            if name not in _DEFAULTS[self.method] and getattr(self, name) is not None:
                raise UsageError(
                    f"attack {self.method}: {name} = {getattr(self, name)}, but it follows no "
                    f"gradient: leave it out."
                )
        for name in ("n_tokens", *_DEFAULTS[self.method]):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(
                    f"attack {self.method}: {name} = {getattr(self, name)}, expected more than 0."
                )

    @property
    def n_rounds(self) -> int:
        """``rounds``, known."""
        assert self.rounds is not None
        return self.rounds

    @property
    def n_iterations(self) -> int:
        """``iterations``, known."""
        assert self.iterations is not None
        return self.iterations

    @property
    def rate(self) -> float:
        """``learning_rate``, known."""
        assert self.learning_rate is not None
        return self.learning_rate


@dataclass(frozen=True, kw_only=True)
class Defended:
    """A model with what keeps it from showing a concept."""

    model: Model
    run: RunSettings
    attached: Callable[[], AbstractContextManager[Any]]
    """attaches the defence to the model while the block runs"""
    setting: dict[str, Any]
    """what tells the defence from others, as JSON"""
    plain: RunSettings | None = None
    """the run without the defence, where that is in ``run`` itself: a negative prompt"""
    guided: bool = False
    """whether the defence is in the unconditional half or in a negative prompt: then guidance is in
    the gradient's path"""
