"""What a collection keeps: which hooks, steps and positions, and how (docs/format.md, section
1.2)."""

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from featurestore.errors import UsageError
from featurestore.vocabulary import ACTIVATION_DTYPES, BRANCH_CHOICES, IO, PADDING, Branch
from sae.adding import Candidate

_STEP = re.compile(r"(\d+)(?:-(\d+))?")
_EVERY = re.compile(r"every:([1-9]\d*)")
_MOST_STEPS = 100_000
_RANDOM = re.compile(r"random:([1-9]\d*)")


def kept_steps(text: str, n_steps: int) -> list[int]:
    """Return the step indices that a ``--timesteps`` names: ``all``, ``every:5``, or indices and
    ranges like ``0,10-19``.

    Raises:
        UsageError: the text has another form, or names a step that the run does not have.
    """
    named = named_steps(text)
    if isinstance(named, int):
        return list(range(0, n_steps, named))
    if max(named) >= n_steps:
        raise UsageError(f"--timesteps {text}: the run has steps 0 to {n_steps - 1}.")
    return sorted(named)


def named_steps(text: str) -> int | set[int]:
    """Return what a ``--timesteps`` names, whatever the run: every how many steps, or which.

    How many steps a run has is known at its first denoiser call: some schedulers (Heun, PNDM) call
    more often than ``--steps`` says, and a picture to start from leaves steps out.

    Raises:
        UsageError: the text has another form.
    """
    every = _EVERY.fullmatch(text)
    if text == "all" or every:
        return int(every[1]) if every else 1
    steps: set[int] = set()
    for part in text.split(","):
        match = _STEP.fullmatch(part.strip())
        if match is None:
            raise UsageError(
                f"--timesteps {text}: expected all, every:N, or step indices and ranges such as "
                f"0,10-19."
            )
        first, last = int(match[1]), int(match[2] or match[1])
        if first > last or last >= _MOST_STEPS:
            raise UsageError(
                f"--timesteps {text}: {part.strip()} is no range of steps below {_MOST_STEPS}."
            )
        steps |= set(range(first, last + 1))
    return steps


@dataclass(frozen=True)
class Positions:
    """Which positions of a map are kept: all, their mean, or some chosen at random in each map."""

    kind: str
    """``all``, ``mean`` or ``random``"""
    count: int = 0
    """of ``random``"""

    @classmethod
    def parse(cls, text: str) -> "Positions":
        """Read a ``--positions``: ``all``, ``mean`` or ``random:64``.

        Raises:
            UsageError: the text has another form.
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


def random_positions(
    sample_ids: Sequence[int],
    step: int,
    n_positions: int,
    count: int,
    *,
    among: npt.NDArray[np.bool_] | None = None,
) -> npt.NDArray[np.int32]:
    """Return the positions kept of each sample's map at a step, int32 ``[samples, count]``,
    ascending.

    The ``count`` positions p with the smallest splitmix64(splitmix64(splitmix64(sample id) xor
    step) xor p): a function of these alone, the same for every hook, branch, machine and version of
    any library. ``among``, bool ``[samples, n_positions]``: of those positions only.
    """
    ids = np.array(sample_ids, np.uint64)
    maps = _splitmix(_splitmix(ids) ^ np.uint64(step))
    draws = _splitmix(maps[:, None] ^ np.arange(n_positions, dtype=np.uint64))
    if among is not None:
        draws = np.where(among, draws, np.iinfo(np.uint64).max)
    return np.sort(np.argsort(draws, axis=1, kind="stable")[:, :count], axis=1).astype(np.int32)


@dataclass(frozen=True, kw_only=True)
class CollectSettings:
    """What is kept, and in what portions.

    Raises:
        UsageError: a value is not one of those that are allowed.
    """

    hooks: Sequence[str] = ()
    """whose activations are kept: module paths or patterns such as
    ``unet.up_blocks.*.attentions.*``"""
    io: str = "output"
    """``output``, ``input`` or ``difference`` (output − input) of the module"""
    branch: str = "cond"
    """``cond``, ``uncond`` or ``both`` halves of classifier-free guidance"""
    dtype: str = "float16"
    """of the stored activations: ``float16`` or ``float32``"""
    timesteps: str = "all"
    """``all``, ``every:N`` or step indices and ranges (``0,10-19``)"""
    positions: str = "all"
    """``all``, ``mean`` over the map, or ``random:N`` of each map"""
    padding: str = "keep"
    """whether tokens that only fill a text up are among the positions of a text encoder's hook:
    ``keep`` or ``drop``"""
    words: Sequence[str] = ()
    """whose attention is kept beside each hook, where the prompt has them"""
    saes: Sequence[str] = ()
    """SAEs that encode while collecting: names in the store, or directories"""
    activations: bool = True
    """also keep the activations that the SAEs encode"""
    images: bool = False
    """also keep the pictures, in ``samples``"""
    batch_size: int = 8
    """pictures generated at once; changes nothing that is stored but rounding"""
    shard_samples: int | None = None
    """pictures per shard; None: as the store was cut before, or as many as make files of 512 MB"""
    exact: bool = False
    """one picture at a time on one CPU thread: the same bytes whatever the batch size, the threads
    and the processes"""

    def __post_init__(self) -> None:
        closed = {
            "io": IO,
            "branch": BRANCH_CHOICES,
            "dtype": ACTIVATION_DTYPES,
            "padding": PADDING,
        }
        for name, known in closed.items():
            if getattr(self, name) not in known:
                raise UsageError(
                    f"{name} {getattr(self, name)!r}: expected one of {', '.join(known)}."
                )
        for name in ("hooks", "saes", "words"):
            if isinstance(getattr(self, name), str):
                raise UsageError(
                    f"{name} is the text {getattr(self, name)!r}: expected a list, also of one."
                )

    def choices(self) -> dict[str, str]:
        """Return those that decide what an activation row is."""
        names = ("io", "branch", "dtype", "timesteps", "positions")
        dropped = {"padding": self.padding} if self.padding != "keep" else {}
        return {name: getattr(self, name) for name in names} | dropped


@dataclass(frozen=True)
class Kept:
    """What is kept of a hook, and not yet in its tables."""

    settings: CollectSettings
    activations: bool
    saes: Mapping[str, Candidate]
    """those that encode it, by name"""

    @property
    def branches(self) -> tuple[Branch, ...]:
        """The branches that are kept, in the order of the rows."""
        return BRANCH_CHOICES[self.settings.branch]

    @property
    def torch_dtype(self) -> torch.dtype:
        """Of the stored activations."""
        return torch.float16 if self.settings.dtype == "float16" else torch.float32

    @functools.cached_property
    def positions(self) -> Positions:
        """Which positions of a map are kept."""
        return Positions.parse(self.settings.positions)
