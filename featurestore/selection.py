"""Selections: the features of a concept, timestep by timestep, with all that an ablation needs
(docs/selection.md)."""

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from featurestore import selection_files
from featurestore.errors import SelectionError
from featurestore.format.gate import (
    OBJECT,
    Field,
    MalformedError,
    closed,
    one_of,
    real,
    text,
    whole,
)
from featurestore.vocabulary import BRANCHES, IO

FORMAT = "featurestore-selection"
FORMAT_VERSION = 1
_TEXTS = (
    "family",
    "concept",
    "branch",
    "model",
    "model_hash",
    "hook",
    "io",
    "sae",
    "sae_hash",
    "store",
)
_KEYS = {"format", "format_version", "rule", "d_in", "n_latents", "k", "run", "timesteps", *_TEXTS}


class FeaturesAt(NamedTuple):
    """A selection's features at one recorded timestep."""

    features: npt.NDArray[np.int64]
    mean_concept: npt.NDArray[np.float64]
    """μ(i, t, D_c)"""
    mean_all: npt.NDArray[np.float64]
    """μ(i, t, D)"""
    timestep: float
    """the recorded one"""
    distance: float
    """from the timestep asked for"""


def _is_rule(rule: Any) -> bool:
    """Say whether a value is ``{"top": n}`` or ``{"percentile": p}``, possibly with more that makes
    it reproducible."""
    return (
        isinstance(rule, dict)
        and bool(rule)
        and all(type(value) in (int, float, str) for value in rule.values())
    )


_COUNT = whole(1, 2**31 - 1)
_FIELDS = {
    **{name: text() for name in _TEXTS},
    "store": text(r"[^\0]*", "a path"),
    "format": text(),
    "format_version": _COUNT,
    "branch": one_of(BRANCHES),
    "io": one_of(IO),
    "rule": Field(_is_rule, 'an object such as {"top": 2}'),
    "d_in": _COUNT,
    "n_latents": _COUNT,
    "k": Field(
        lambda k: k is None or (type(k) is int and 0 <= k < 2**31), "a whole number or null"
    ),
    "run": OBJECT,
    "timesteps": Field(
        lambda times: (
            isinstance(times, list) and bool(times) and all(real(1e38).fits(t) for t in times)
        ),
        "a list of numbers",
    ),
    "n_rows": whole(0, optional=True),
}


@dataclass(frozen=True)
class Selection:
    """The features that carry a concept, and everything that identifies model, hook, SAE and
    store."""

    family: str
    concept: str
    branch: str
    rule: Mapping[str, float]
    """``{"top": n}`` or ``{"percentile": p}``"""
    model: str
    model_hash: str
    hook: str
    io: str
    sae: str
    sae_hash: str
    d_in: int
    n_latents: int
    k: int | None
    run: Mapping[str, Any]
    """run settings of the store"""
    store: str
    """absolute path of the store that holds the SAE; in a file, relative to the file's directory"""
    timesteps: tuple[float, ...]
    """every recorded timestep, by step from 0, also those at which nothing is selected; some
    schedulers repeat one"""
    rows: pa.Table
    """columns as ``ROWS``, ordered by step, then falling score, then feature"""

    def save(self, path: str | Path) -> None:
        """Write the selection as JSON, CSV, Parquet, jsonl.zst or Markdown, by the file's suffix.

        Raises:
            SelectionError: the suffix is not one of these, or a row could not be read back.
            DiskError: the operating system refused.
        """
        path = Path(path)
        _check_rows(self, path)
        selection_files.write(path, self.header(path.parent.resolve()), self.rows)

    @classmethod
    def load(cls, path: str | Path) -> "Selection":
        """Read a selection in any of its formats.

        Raises:
            SelectionError: the file is missing, malformed or of another version.
        """
        header, rows = selection_files.read(Path(path))
        return cls.from_header(header, rows, Path(path))

    def at(self, timestep: float, occurrence: int = 0) -> FeaturesAt:
        """Return the features at the nearest recorded timestep, of two the noisier.

        Of a timestep that the schedule repeats (PNDM, Heun), ``occurrence`` says which step: 0 the
        first, and so on.
        """
        recorded = min(self.timesteps, key=lambda t: (abs(t - timestep), -t))
        steps = [step for step, t in enumerate(self.timesteps) if t == recorded]
        step = steps[min(occurrence, len(steps) - 1)]
        rows = self.rows.filter(pc.equal(self.rows["step"], pa.scalar(step, pa.int32())))
        features = rows["feature"].to_numpy().astype(np.int64)
        means = rows["mean_concept"].to_numpy(), rows["mean_all"].to_numpy()
        return FeaturesAt(features, *means, recorded, abs(recorded - timestep))

    def features(self) -> list[int]:
        """Return all selected latents, ascending."""
        return sorted(set(self.rows["feature"].to_pylist()))

    def header(self, directory: Path | None = None) -> dict[str, Any]:
        """Return everything but the rows, as a file in ``directory`` has it (None: with the
        absolute path of the store)."""
        fields = {name: getattr(self, name) for name in (*_TEXTS, "d_in", "n_latents", "k")}
        fields |= {
            "rule": dict(self.rule),
            "run": dict(self.run),
            "timesteps": list(self.timesteps),
        }
        if directory is not None:
            fields["store"] = Path(os.path.relpath(self.store, directory)).as_posix()
        return {"format": FORMAT, "format_version": FORMAT_VERSION, **fields}

    @classmethod
    def from_header(cls, header: Any, rows: pa.Table, path: Path) -> "Selection":
        """Return the selection that a file's header and rows describe.

        Raises:
            SelectionError: they do not describe one.
        """
        _check_header(header, path)
        fields = {key: header[key] for key in _KEYS - {"format", "format_version"}}
        fields["timesteps"] = tuple(float(np.float32(t)) for t in fields["timesteps"])
        selection = cls(rows=rows, **fields)
        _check_rows(selection, path)
        return replace(selection, store=str((path.parent / selection.store).resolve()))


def _check_header(header: Any, path: Path) -> None:
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise SelectionError(f'{path} is no selection: expected "format": "{FORMAT}".')
    if header.get("format_version") != FORMAT_VERSION:
        found = header.get("format_version")
        raise SelectionError(
            f"{path} is a selection of format version {found!r}, this program reads version "
            f"{FORMAT_VERSION}."
        )
    missing = sorted(_KEYS - set(header))
    if missing:
        raise SelectionError(f"{path}: the selection's header lacks {', '.join(missing)}.")
    try:
        closed(header, _FIELDS)
    except MalformedError as error:
        raise SelectionError(
            f"{path}: a value of the selection's header has the wrong type: {error}."
        ) from error


def _check_rows(selection: Selection, path: Path) -> None:
    features = selection.rows["feature"].to_numpy()
    if len(features) and not (features.min() >= 0 and features.max() < selection.n_latents):
        raise SelectionError(
            f"{path}: a feature lies outside 0…{selection.n_latents - 1}, the latents of SAE "
            f"{selection.sae!r}."
        )
    listed = dict(enumerate(selection.timesteps))
    steps, timesteps = (selection.rows[name].to_pylist() for name in ("step", "timestep"))
    for step, timestep in zip(steps, timesteps, strict=True):
        if listed.get(step) != timestep:
            raise SelectionError(
                f"{path}: a row has step {step} at timestep {timestep:g}, which the header does "
                f"not list."
            )
    if steps != sorted(steps):
        raise SelectionError(f"{path}: the rows are not in the order of their steps.")
    pairs = Counter(zip(steps, features.tolist(), strict=True))
    twice = next((pair for pair, n in pairs.items() if n > 1), None)
    if twice:
        raise SelectionError(f"{path}: feature {twice[1]} stands twice at step {twice[0]}.")
    for name in ("score", "mean_concept", "mean_other", "mean_all"):
        values = selection.rows[name].to_numpy()
        if not (np.abs(values) <= selection_files.LIMIT).all():  # nor NaN
            raise SelectionError(
                f"{path}: a value of {name} is not finite, or exceeds {selection_files.LIMIT:g} "
                f"in magnitude."
            )
