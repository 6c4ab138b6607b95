"""How long a run may take, and how long what is missing of it will take."""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from benchmarks.unlearning.ledger import Ledger

SECONDS = {
    "picture": 0.15,
    "tokens": 1.2,
    "words": 1.2,
    "embedding": 1.2,
    "latents": 15.0,
    "random": 0.2,
    "ESD-x": 60.0,
    "SalUn": 95.0,
    "AdvUnlearn": 300.0,
    "ours, hardened": 400.0,
}
"""of a picture, a round of an attack on one, a training of the small benchmark, on one idle core,
where nothing is known yet; those of latents, random, AdvUnlearn and hardening are reckoned, not
measured"""


class OutOfTimeError(Exception):
    """The minutes that a run may take are over; everything that was found is kept."""


@dataclass
class Pace:
    """When to stop; or, ``counting``, what would have to be made; or, ``so_far``, that nothing is
    made, and what is not known is left out."""

    minutes: float | None = None
    counting: bool = False
    so_far: bool = False
    cost: float = 1.0
    """of a picture, in the small benchmark's; of a round and a training alike"""
    missing: Counter[str] = field(default_factory=Counter)
    """pictures, rounds of attacks on a picture, trainings → how many"""
    counted: set[str] = field(default_factory=set)
    """keys of what is counted"""
    began: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float | None:
        """Minutes that are left; None: as long as it takes."""
        if self.minutes is None:
            return None
        return self.minutes - (time.monotonic() - self.began) / 60

    def check(self) -> None:
        """Stop where no time is left.

        Raises:
            OutOfTimeError: none is, or nothing may be made.
        """
        if self.so_far or (self.left is not None and self.left <= 0):
            raise OutOfTimeError

    def skipped(self) -> AbstractContextManager[Any]:
        """Return what ends a block quietly where it needs something that may not be made."""
        return contextlib.suppress(*[OutOfTimeError] if self.so_far else [])

    def checked(
        self, attached: Callable[[], AbstractContextManager[Any]]
    ) -> Callable[[], AbstractContextManager[Any]]:
        """Return what attaches a defence, and looks at the time whenever it does: before every
        batch of pictures, and every round of an attack."""

        @contextlib.contextmanager
        def attach() -> Iterator[None]:
            self.check()
            with attached():
                yield

        return attach

    def count(self, key: str, what: str, n: int = 1) -> None:
        """Count what is missing, each key once."""
        if key not in self.counted:
            self.counted.add(key)
            self.missing[what] += n

    def hours(self, ledger: Ledger, processes: int) -> float:
        """Return how long what is missing takes, by what the rows of the ledger took."""
        known: dict[str, list[float]] = {}
        for row in ledger.of_kind("cell"):
            known.setdefault("picture", []).append(row["seconds_per_picture"])
        for row in (*ledger.of_kind("training"), *ledger.of_kind("hardening")):
            known.setdefault(row["method"], []).append(row["seconds"])
        for row in ledger.of_kind("attack"):
            if row["seconds_per_round"] is not None:
                known.setdefault(row["attack"], []).append(row["seconds_per_round"])
        each = {what: self.cost * seconds for what, seconds in SECONDS.items()}
        each |= {what: median(seconds) for what, seconds in known.items()}
        return sum(n * each[what] for what, n in self.missing.items()) / 3600 / processes

    def told(self, ledger: Ledger, processes: int) -> str:
        """Return what is missing, and for how long, in a few lines."""
        if not self.missing:
            return "Nothing is missing."
        lines = [
            f"{n:7d} {UNITS.get(what, f'trainings of {what}')}" for what, n in self.missing.items()
        ]
        return "\n".join(
            [
                "Missing, at most:",
                *lines,
                f"At most {self.hours(ledger, processes):.1f} hours in {processes} processes, by "
                f"what these took before. An attack ends earlier where it succeeds, a search where "
                f"a setting is perfect; where several concepts are balanced, one pass is counted.",
            ]
        )


UNITS = {
    "picture": "pictures",
    "tokens": "rounds of tokens on a picture",
    "words": "rounds of words on a picture",
    "embedding": "rounds of embeddings on a picture",
    "latents": "rounds of latents on a picture",
    "random": "rounds of random tokens on a picture",
    "ours, hardened": "concepts hardened",
}
