"""Selections: the features of a concept, timestep by timestep, with all that an ablation needs (docs/selection.md)."""

import os
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
from featurestore.vocabulary import BRANCHES, IO

FORMAT = "featurestore-selection"
FORMAT_VERSION = 1
_TEXTS = ("family", "concept", "branch", "model", "model_hash", "hook", "io", "sae", "sae_hash", "store")
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


@dataclass(frozen=True)
class Selection:
    """The features that carry a concept, and everything that identifies model, hook, SAE and store."""

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
    """every recorded timestep, by step from 0, also those at which nothing is selected; some schedulers repeat one"""
    rows: pa.Table
    """columns as ``ROWS``, ordered by step, then falling score, then feature"""

    def save(self, path: str | Path) -> None:
        """Write the selection as JSON, CSV, Parquet, jsonl.zst or Markdown, by the file's suffix.

        Raises:
            SelectionError: the suffix is none of these.
            DiskError: the operating system refused.
        """
        path = Path(path)
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

        Of a timestep that the schedule repeats (PNDM, Heun), ``occurrence`` says which step: 0 the first, and so on.
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
        """Return everything but the rows, as a file in ``directory`` has it (None: with the absolute path of the store)."""
        fields = {name: getattr(self, name) for name in (*_TEXTS, "d_in", "n_latents", "k")}
        fields |= {"rule": dict(self.rule), "run": dict(self.run), "timesteps": list(self.timesteps)}
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
            f"{path} is a selection of format version {found!r}, this program reads version {FORMAT_VERSION}."
        )
    missing = sorted(_KEYS - set(header))
    if missing:
        raise SelectionError(f"{path}: the selection's header lacks {', '.join(missing)}.")
    texts = all(isinstance(header[key], str) for key in _TEXTS)
    times = header["timesteps"]
    numbers = isinstance(times, list) and times and all(isinstance(t, (int, float)) and abs(t) < 1e38 for t in times)
    sizes = all(isinstance(header[key], int) for key in ("d_in", "n_latents")) and isinstance(header["k"], int | None)
    if not (texts and numbers and sizes and isinstance(header["run"], dict) and isinstance(header["rule"], dict)):
        raise SelectionError(f"{path}: a value of the selection's header has the wrong type.")
    for key, known in (("branch", BRANCHES), ("io", IO)):
        if header[key] not in known:
            raise SelectionError(f"{path}: {key} is {header[key]!r}, expected one of {', '.join(known)}.")


def _check_rows(selection: Selection, path: Path) -> None:
    features = selection.rows["feature"].to_numpy()
    if len(features) and not (features.min() >= 0 and features.max() < selection.n_latents):
        raise SelectionError(
            f"{path}: a feature lies outside 0…{selection.n_latents - 1}, the latents of SAE {selection.sae!r}."
        )
    listed = dict(enumerate(selection.timesteps))
    for step, timestep in zip(*(selection.rows[name].to_pylist() for name in ("step", "timestep")), strict=True):
        if listed.get(step) != timestep:
            raise SelectionError(
                f"{path}: a row has step {step} at timestep {timestep:g}, which the header does not list."
            )
    for name in ("score", "mean_concept", "mean_other", "mean_all"):
        if not np.isfinite(selection.rows[name].to_numpy()).all():
            raise SelectionError(f"{path}: a value of {name} is not finite.")
