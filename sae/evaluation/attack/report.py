"""What came back under attack: rates with intervals, and a page of pictures."""

import html
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from featurestore.format import durable
from featurestore.vocabulary import ATTACKS
from sae.evaluation.measures.intervals import Interval, Share, interval, mean_of

PAGE, FIGURES, PROMPTS = "report.html", "attack.json", "came-back.jsonl"


@dataclass(kw_only=True)
class Attacked:
    """The outcome of one attacked picture."""

    prompt: str
    seed: int
    family: str
    concept: str
    method: str
    shown_without_defence: bool = True
    """whether the untouched model's picture shows the concept; if not there is nothing to bring
    back, and it does not count"""
    shown_before: bool = False
    """whether the defended model's picture shows it without an attack"""
    succeeded: bool = False
    """whether the attack brought it back"""
    rounds: int = 0
    found: dict[str, Any] = field(default_factory=dict)
    """what was found: tokens and their text, embeddings, or the size of latents"""
    losses: list[float] = field(default_factory=list)
    """of every iteration"""
    starts: dict[str, str] = field(default_factory=dict)
    """pictures of its own that it starts from: ``image``, ``mask`` or ``control`` → SHA-256"""

    @property
    def shown_under_attack(self) -> bool:
        """Whether the concept is shown, with or without the attack's help."""
        return self.shown_before or self.succeeded


class Rate(NamedTuple):
    """The share of pictures that show what was removed."""

    value: float
    low: float
    high: float


@dataclass
class AttackReport:
    """Attacked pictures of one method."""

    method: str
    pictures: list[Attacked]
    """those that the untouched model shows the concept in"""
    not_shown: int
    """pictures that are left out, because not even the untouched model shows the concept in them"""
    paths: list[Path]
    """of each picture's outcome; its pictures lie beside it"""
    starts: Mapping[str, Path] = field(default_factory=dict)
    """SHA-256 of the pictures that prompts start from → their files"""

    @classmethod
    def read(
        cls, out: Path, paths: Sequence[Path], method: str, starts: Mapping[str, Path] | None = None
    ) -> "AttackReport":
        """Read outcomes, and write the page, the figures and the prompts into ``out``."""
        every = [Attacked(**json.loads(path.read_text(encoding="utf-8"))) for path in paths]
        counted = [
            (one, path) for one, path in zip(every, paths, strict=True) if one.shown_without_defence
        ]
        report = cls(
            method,
            [one for one, _ in counted],
            len(every) - len(counted),
            [path for _, path in counted],
            starts or {},
        )
        _write(out / method / FIGURES, json.dumps(report.figures(), indent=1) + "\n")
        _write(out / method / PAGE, report.page())
        _write(out / method / PROMPTS, report.prompts(out / method))
        return report

    @property
    def before(self) -> Rate:
        """The share shown without an attack."""
        return self._rate([one.shown_before for one in self.pictures])

    @property
    def under_attack(self) -> Rate:
        """The share shown without or with an attack: the attack success rate (ASR)."""
        return self._rate([one.shown_under_attack for one in self.pictures])

    @property
    def came_back(self) -> list[Attacked]:
        """The pictures that the attack brought back."""
        return [one for one in self.pictures if one.succeeded]

    def prompts(self, folder: Path) -> str:
        """Return what brought concepts back as a file of prompts for ``folder``, each with the
        concept as its label and, where it starts from a picture, the column ``image`` with the
        picture's path from there; empty where no text was found."""
        paths = {sha: os.path.relpath(path, folder) for sha, path in self.starts.items()}
        rows = [
            {
                "prompt": one.found["text"],
                **{kind: paths[sha] for kind, sha in one.starts.items()},
                one.family: one.concept,
            }
            for one in self.came_back
            if "text" in one.found
        ]
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

    def figures(self) -> dict[str, Any]:
        """Return the rates with their intervals, as JSON."""
        return {
            "method": self.method,
            "pictures": len(self.pictures),
            "not_shown_without_defence": self.not_shown,
            "shown_before": self.before._asdict(),
            "shown_under_attack": self.under_attack._asdict(),
            "by_concept": self._by_concept(),
        }

    def page(self) -> str:
        """Return the page: a row per picture: target, defended, attacked."""
        before, under = (
            f"{100 * r.value:.0f} % [{100 * r.low:.0f}, {100 * r.high:.0f}]"
            for r in (self.before, self.under_attack)
        )
        rows = "\n".join(
            _row(one, path.stem) for one, path in zip(self.pictures, self.paths, strict=True)
        )
        return _PAGE.format(
            title=html.escape(f"Attacked by {ATTACKS[self.method]}"),
            n=len(self.pictures),
            before=before,
            under=under,
            rows=rows,
        )

    def _rate(self, hits: Sequence[bool]) -> Rate:
        """Return a share over concepts with its interval; seeds may fail together."""
        parts = []
        for key in sorted({(one.family, one.concept) for one in self.pictures}):
            own = [i for i, one in enumerate(self.pictures) if (one.family, one.concept) == key]
            n = len(own)
            seeds = np.array([self.pictures[i].seed for i in own], np.int64)
            parts.append(
                Share(
                    np.array([float(hits[i]) for i in own]),
                    np.full(n, 1 / n),
                    np.zeros(n, np.int64),
                    seeds,
                )
            )
        share = mean_of(parts)
        return Rate(share.value, *Interval(*interval(share)))

    def _by_concept(self) -> dict[str, dict[str, int]]:
        found: dict[str, dict[str, int]] = {}
        for one in self.pictures:
            counts = found.setdefault(
                f"{one.family}={one.concept}",
                {"pictures": 0, "shown_before": 0, "shown_under_attack": 0},
            )
            counts["pictures"] += 1
            counts["shown_before"] += one.shown_before
            counts["shown_under_attack"] += one.shown_under_attack
        return found


def together(reports: Sequence[AttackReport]) -> AttackReport:
    """Return reports of one attack on several concepts as one."""
    pictures = [one for report in reports for one in report.pictures]
    paths = [path for report in reports for path in report.paths]
    return AttackReport(
        reports[0].method,
        pictures,
        sum(report.not_shown for report in reports),
        paths,
        {sha: path for report in reports for sha, path in report.starts.items()},
    )


def _write(path: Path, text: str) -> None:
    """Let a file hold a text, and an empty one not be there."""
    if not text:
        durable.remove(path)
    elif not path.is_file() or path.read_text(encoding="utf-8") != text:
        durable.write_bytes(path, text.encode())


def _row(one: Attacked, stem: str) -> str:
    names = ["target", "defended", *(["attacked"] if one.rounds else [])]
    images = "".join(
        f'<td><img src="{html.escape(f"{stem}-{name}.png")}" alt="{name}"></td>' for name in names
    )
    told = (
        "shown without an attack"
        if one.shown_before
        else f"back after {one.rounds} rounds"
        if one.succeeded
        else "held"
    )
    text = html.escape(str(one.found.get("text", "")))
    return (
        f"<tr><td>{html.escape(one.prompt)}<br>seed "
        f"{one.seed}<br><b>{html.escape(one.concept)}</b>: "
        f"{told}<br><code>{text}</code></td>{images}</tr>"
    )


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>body{{font-family:sans-serif;margin:2em}}
td{{padding:4px;vertical-align:top;max-width:26em;overflow-wrap:anywhere}}
img{{width:128px;image-rendering:pixelated}}</style>
<h1>{title}</h1>
<p>{n} pictures. The concept is shown without an attack in {before}, under attack in {under}
(95 % intervals).</p>
<table><tr><th>asked for</th><th>without a defence</th><th>defended</th><th>attacked</th></tr>
{rows}
</table></html>
"""
