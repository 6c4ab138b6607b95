"""Which steps and which positions of a map are kept (docs/format.md, section 1.2)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featurestore.errors import UsageError

_STEP = re.compile(r"(\d+)(?:-(\d+))?")
_EVERY = re.compile(r"every:([1-9]\d*)")
_RANDOM = re.compile(r"random:([1-9]\d*)")


def kept_steps(text: str, n_steps: int) -> list[int]:
    """Return the step indices that a ``--timesteps`` names: ``all``, ``every:5``, or indices and ranges like ``0,10-19``.

    Raises:
        UsageError: it is none of these, or names a step that the run does not have.
    """
    every = _EVERY.fullmatch(text)
    if text == "all" or every:
        return list(range(0, n_steps, int(every[1]) if every else 1))
    steps: set[int] = set()
    for part in text.split(","):
        match = _STEP.fullmatch(part.strip())
        if match is None:
            raise UsageError(f"--timesteps {text}: expected all, every:N, or step indices and ranges such as 0,10-19.")
        steps |= set(range(int(match[1]), int(match[2] or match[1]) + 1))
    if not steps or max(steps) >= n_steps:
        raise UsageError(f"--timesteps {text}: the run has steps 0 to {n_steps - 1}.")
    return sorted(steps)


@dataclass(frozen=True)
class Positions:
    """Which positions of a map are kept: all, their mean, or some chosen at random a map."""

    kind: str
    """``all``, ``mean`` or ``random``"""
    count: int = 0
    """of ``random``"""

    @classmethod
    def parse(cls, text: str) -> "Positions":
        """Read a ``--positions``: ``all``, ``mean`` or ``random:64``.

        Raises:
            UsageError: it is none of these.
        """
        match = _RANDOM.fullmatch(text)
        if match:
            return cls("random", int(match[1]))
        if text not in ("all", "mean"):
            raise UsageError(f"--positions {text}: expected all, mean or random:N.")
        return cls(text)


_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB), np.uint64(0x9E3779B97F4A7C15))


def _splitmix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    x = x + _MIX[2]
    x = (x ^ (x >> np.uint64(30))) * _MIX[0]
    x = (x ^ (x >> np.uint64(27))) * _MIX[1]
    return x ^ (x >> np.uint64(31))


def random_positions(sample_ids: Sequence[int], step: int, n_positions: int, count: int) -> npt.NDArray[np.int32]:
    """Return the positions kept of each sample's map at a step, int32 ``[samples, count]``, ascending.

    The ``count`` positions p with the smallest splitmix64(splitmix64(splitmix64(sample id) xor step) xor p): a function
    of these alone, the same for every hook, branch, machine and version of any library.
    """
    ids = np.array(sample_ids, np.uint64)
    maps = _splitmix(_splitmix(ids) ^ np.uint64(step))
    draws = _splitmix(maps[:, None] ^ np.arange(n_positions, dtype=np.uint64))
    return np.sort(np.argsort(draws, axis=1, kind="stable")[:, :count], axis=1).astype(np.int32)
