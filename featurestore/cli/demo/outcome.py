"""What the demo has made so far: what its table and its report show."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from featurestore.cli.demo.settings import Study
from featurestore.prompts import Prompt
from featurestore.selection import Selection
from featurestore.store import Store
from sae.evaluation.measures.accuracy import Answer, Unlearning, unlearning


@dataclass
class Result:
    """A study's outcome."""

    study: Study
    selection: Selection
    images: list[Any]
    answers: list[Answer]
    score: Unlearning


@dataclass
class Demo:
    """Everything that the table and the report show."""

    out: Path
    store: Store
    prompts: list[Prompt]
    before: list[Any] = field(default_factory=list)
    before_answers: list[Answer] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    commands: list[str] = field(default_factory=list)


def store_bytes(store: Store) -> int:
    """Return the size of a store's committed files."""
    tables = [*store.tables(), "saes"]
    return sum(record.n_bytes for table in tables for record in store.records(table))


def rows_of_table(demo: Demo) -> list[list[str]]:
    """Return the result table: a header and a row per study."""
    rows = [
        [
            "taken out",
            "pictures of it still recognised",
            "unlearned (UA)",
            "same family kept (IRA)",
            "other family kept (CRA)",
        ]
    ]
    for result in demo.results:
        family, concept = result.study.family, result.study.concept
        before = unlearning(demo.before_answers, {family: [concept]})
        score = result.score
        cells = [
            (1 - before.ua, 1 - score.ua),
            (before.ua, score.ua),
            (before.ira, score.ira),
            (before.cra, score.cra),
        ]
        rows.append([f"{family} {concept}", *(f"{a:.0%} → {b:.0%}" for a, b in cells)])
    return rows
