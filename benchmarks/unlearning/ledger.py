"""What a run has found, as JSON lines that are only ever appended and are committed: a later run,
on whatever machine, goes on from them."""

import fcntl
import functools
import importlib.metadata
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks.record import machine
from featurestore.format.canonical import sealed, unsealed
from featurestore.format.gate import MalformedError
from featurestore.prompts import Prompt
from sae.evaluation.judge import named
from sae.evaluation.measures.accuracy import Answer, asks
from sae.evaluation.outcomes import Outcome

LIBRARIES = ("torch", "diffusers", "transformers")
Row = dict[str, Any]


class Ledger:
    """Rows by their keys, of which each carries its own checksum."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, Row] = {}
        self.read()

    def read(self) -> None:
        """Read what is there, also what other processes have added meanwhile.

        Raises:
            ClickException: a line is not what was written.
        """
        data = self.path.read_bytes() if self.path.is_file() else b""
        for number, line in enumerate(data.splitlines(keepends=True), 1):
            if not line.endswith(b"\n"):
                break  # A process was ended while it wrote; the next to write drops it.
            row = _unsealed(line)
            if row is None:
                raise click.ClickException(
                    f"{self.path}, line {number} is not what was written: restore the file from "
                    f"git, or delete the line, and what it held is made anew."
                )
            self.rows[row["key"]] = row

    def add(self, key: str, **fields: Any) -> None:
        """Append a row with the machine and the libraries that it comes from, unless its key is
        there."""
        if key in self.rows:
            return
        row = {"key": key, **fields, "on": origin()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
            file.write(sealed(row))
            file.flush()
            os.fsync(file.fileno())
        self.rows[key] = row

    def of_kind(self, kind: str) -> list[Row]:
        """Return all rows of a kind: ``cell``, ``attack``, ``training``, ``hardening`` …"""
        return [row for row in self.rows.values() if row["kind"] == kind]


def _unsealed(line: bytes) -> Row | None:
    try:
        return unsealed(line)
    except MalformedError:
        return None


@functools.cache
def origin() -> str:
    """Return the processor and the versions of what pictures are drawn with."""
    versions = (f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES)
    return ", ".join([str(machine().get("gpu", machine()["cpu"])), *versions])


def outcome_row(outcome: Outcome, prompts: Sequence[Prompt]) -> Row:
    """Return an outcome without what follows from its prompts.

    ``seen``: family → what the judge saw that was not asked for → places of its pictures among
    the prompts. ``p``: of the pictures that ask for a target, in their order, the probability of
    each target, to three digits.
    """
    seen: dict[str, dict[str, list[int]]] = {}
    for place, answer in enumerate(outcome.answers):
        for family, concept in answer.seen.items():
            if answer.asked.get(family) != concept:
                seen.setdefault(family, {}).setdefault(concept, []).append(place)
    p = [
        float(f"{(answer.p or {})[family]:.3g}")
        for answer in outcome.answers
        for family in _asked_targets(answer.asked, outcome.targets)
    ]
    frechet = outcome.frechet if outcome.frechet == outcome.frechet else None
    return {
        "n": len(prompts),
        "seen": seen,
        "p": p,
        "frechet": frechet,
        "seconds_per_picture": outcome.seconds_per_picture,
        "peak_bytes": outcome.peak_bytes,
        "stored_bytes": outcome.stored_bytes,
    }


def outcome_of(
    row: Mapping[str, Any],
    prompts: Sequence[Prompt],
    *,
    targets: dict[str, list[str]],
    setting: dict[str, Any],
    judge: str,
) -> Outcome:
    """Return the outcome that :func:`outcome_row` kept."""
    wrong = {
        (family, place): concept
        for family, concepts in row["seen"].items()
        for concept, places in concepts.items()
        for place in places
    }
    p, answers = iter(row["p"]), []
    for place, prompt in enumerate(prompts):
        asked = named(prompt.labels)
        families = [*asked, *(f for f in row["seen"] if f not in asked)]
        seen = {f: wrong.get((f, place), asked.get(f)) for f in families}
        known = {family: next(p) for family in _asked_targets(asked, targets)}
        kept = {family: concept for family, concept in seen.items() if concept is not None}
        answers.append(Answer(asked, kept, prompt.seed, known))
    names = ("seconds_per_picture", "peak_bytes", "stored_bytes")
    distance = float("nan") if row["frechet"] is None else row["frechet"]
    kept_figures = {name: row[name] for name in names}
    return Outcome(targets, setting, judge, answers, distance, **kept_figures)


def _asked_targets(asked: Mapping[str, str], targets: Mapping[str, Sequence[str]]) -> list[str]:
    return [family for family in targets if asks({family: asked.get(family)}, targets)]
