"""The library of questions: ``sql/*.sql``, their parameters and the columns of their answers
(``sql/questions.toml``)."""

import functools
import math
import re
import tomllib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from featurestore.errors import QueryError, UsageError, nearest
from featurestore.vocabulary import BRANCHES
from queries.connection.text import SQL, sql_text

Value = str | int | float | None
_NUMBERS: dict[str, Callable[[str], int | float]] = {"integer": int, "number": float}


@dataclass(frozen=True)
class Parameter:
    """A parameter of a question; without a default it must be given."""

    name: str
    type: str
    help: str
    example: str
    """a value to show, of a parameter that must be given"""
    default: Value
    minimum: float
    maximum: float
    required: bool

    def parse(self, given: Value) -> Value:
        """Return a value of the parameter's type.

        Raises:
            UsageError: the value has another type, or is out of range.
        """
        wrong = UsageError(f"parameter {self.name} = {given!r}: expected {self.type}.")
        if self.type == "text":
            if not isinstance(given, str):
                raise wrong
            return given
        try:
            value = _NUMBERS[self.type](str(given))
        except ValueError:
            raise wrong from None
        if not (math.isfinite(value) and self.minimum <= value <= self.maximum):
            limits = (
                f"at least {self.minimum:g}"
                if self.maximum == math.inf
                else f"{self.minimum:g} to {self.maximum:g}"
            )
            raise UsageError(f"parameter {self.name} = {given!r}: expected {limits}.")
        return value


@dataclass(frozen=True)
class Question:
    """One SQL file and its schema entry."""

    name: str
    summary: str
    """first line of its comment"""
    documentation: str
    """its whole comment"""
    sql: str
    parameters: Mapping[str, Parameter]
    relations: tuple[str, ...]
    only_fired: bool
    """whether it needs of importance only the features that fired in a concept's own samples"""
    all_features: bool
    """whether it needs the tables by feature of other features than the one it is about"""
    chosen: str
    """the question whose answer is its relation chosen_sums, of which its importance is computed;
    empty: importance is of all pairs"""
    within: tuple[str, ...]
    """those of :data:`MADE` that stand in its statement all the same"""
    columns: Mapping[str, str]
    """name → Arrow type"""
    nullable: tuple[str, ...]
    key: tuple[str, ...]
    tests: tuple[str, ...]

    @property
    def example(self) -> str:
        """A command that asks it, with what must be given."""
        given = [f"-p {p.name}={p.example}" for p in self.parameters.values() if p.required]
        other = ["--other ./before"] if "other_stats" in self.relations else []
        return " ".join(["featurestore query ./store", self.name, *given, *other])

    def bind(self, given: Mapping[str, Value]) -> dict[str, Value]:
        """Return a value for every parameter, defaults for those not given.

        Raises:
            UsageError: one is unknown, missing or of the wrong type.
        """
        for name in given:
            if name not in self.parameters:
                raise UsageError(
                    f"question {self.name!r} has no parameter "
                    f"{name!r}.{nearest(name, self.parameters)}"
                )
        missing = [p.name for p in self.parameters.values() if p.required and p.name not in given]
        if missing:
            wanted = " ".join(f"-p {name}=…" for name in missing)
            raise UsageError(
                f"question {self.name!r} needs {wanted}; 'featurestore query --list' explains them."
            )
        values = {
            name: p.parse(given[name]) if name in given else p.default
            for name, p in self.parameters.items()
        }
        if values.get("branch", BRANCHES[0]) not in BRANCHES:
            raise UsageError(
                f"parameter branch = {values['branch']!r}: it is one of {', '.join(BRANCHES)}."
            )
        return values


SCOPE = ("concept_sums", "feature_totals", "chosen_pairs")
"""parts that are read for the filters of those that read them, which DuckDB puts into the scan of
the files unless it makes a table of the part"""
PARTS = (*SCOPE, "best_scores", "sample_totals")
"""questions whose answers others read as relations, and which then stand in one statement with
them; pairs, importance and chosen_features are such, too"""
MADE = ("members", "mean_bounds", "candidates", "largest_sums", "step_candidates")
"""questions whose answers others read as relations, each made once, as a table, before them: they
are read more than once, and Spark would compute them each time; those before are read by those
after"""
_LAST_ORDER = re.compile(r"\n    order by [^\n]*(?=\n\)\n\nselect \* from final\s*$)")


@functools.cache
def questions() -> dict[str, Question]:
    """Return all questions by name, in the order of ``questions.toml``."""
    entries = tomllib.loads((SQL / "questions.toml").read_text(encoding="utf-8"))
    parameters = entries.pop("parameters")
    return {name: _question(name, entry, parameters) for name, entry in entries.items()}


def find_question(name: str) -> Question:
    """Return a question.

    Raises:
        QueryError: no question has that name; similar names are offered.
    """
    if name not in questions():
        raise QueryError(
            f"no question {name!r}.{nearest(name, questions())} 'featurestore query --list' shows "
            f"all."
        )
    return questions()[name]


def whole_sql(asked: Question) -> str:
    """Return a question's whole statement, which needs no relation but :func:`tables`.

    The questions whose answers it reads stand in it as its first subqueries, so an engine computes
    of them only what it needs.
    """
    heads = []
    for relation in asked.relations:
        part = _answering(asked, relation)
        if part is not None and not _is_table(asked, part):
            how = "as not materialized" if part.name in SCOPE else "as"
            heads.append(f"{relation} {how} (\n{without_order(whole_sql(part))}\n),\n\n")
        elif part is not None and part.name != relation:
            heads.append(f"{relation} as (select * from {part.name}),\n\n")
    return f"with\n{''.join(heads)}{code(asked.sql).strip().removeprefix('with')}"


def tables(asked: Question, kept: Collection[str] = ()) -> set[str]:
    """Return the relations that are there before a question's statement, and before those of
    :data:`MADE` that are among them, but for what only makes those of ``kept``."""
    found = set()
    for relation in asked.relations:
        part = _answering(asked, relation)
        if part is None or _is_table(asked, part):
            found.add(relation if part is None else part.name)
        found |= set() if part is None or part.name in kept else tables(part, kept)
    return found


def _is_table(asked: Question, part: Question) -> bool:
    return part.name in MADE and part.name not in asked.within


def _answering(asked: Question, relation: str) -> Question | None:
    """Return the question whose answer a relation is; None if it is a table."""
    if relation == "chosen_sums":
        return find_question(asked.chosen or "concept_sums")
    if relation == "pairs":
        relation = "chosen_pairs" if asked.chosen else "pairs"
        return replace(find_question(relation), chosen=asked.chosen)
    if relation in ("importance", "chosen_features"):
        return replace(find_question(relation), chosen=asked.chosen)
    return find_question(relation) if relation in (*PARTS, *MADE) else None


def without_order(text: str) -> str:
    """Return a statement without the order of its answer, which means nothing inside of another one
    and would be sorted for."""
    return _LAST_ORDER.sub("", code(text))


def code(text: str) -> str:
    """Return a statement without its comments."""
    return "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("--"))


def _question(
    name: str, entry: Mapping[str, Any], parameters: Mapping[str, Mapping[str, Any]]
) -> Question:
    sql = sql_text(name)
    comment = [line.removeprefix("--").strip() for line in _leading_comment(sql)]
    return Question(
        name,
        comment[0].removeprefix(f"{name}: "),
        "\n".join(comment),
        sql,
        {p: _parameter(p, parameters[p], entry.get("defaults", {})) for p in entry["parameters"]},
        tuple(entry["relations"]),
        entry.get("only_fired", False),
        entry.get("all_features", False),
        entry.get("chosen", ""),
        tuple(entry.get("within", ())),
        entry["columns"],
        tuple(entry.get("nullable", ())),
        tuple(entry["key"]),
        tuple(entry["tests"]),
    )


def _parameter(name: str, entry: Mapping[str, Any], defaults: Mapping[str, Value]) -> Parameter:
    default = defaults.get(name, entry.get("default"))
    inferred = name in ("sae", "family")
    return Parameter(
        name,
        entry["type"],
        entry["help"],
        entry.get("example", ""),
        None if default == "none" else default,
        entry.get("minimum", -math.inf),
        entry.get("maximum", math.inf),
        required=default is None and not inferred,
    )


def _leading_comment(sql: str) -> list[str]:
    lines = sql.splitlines()
    end = next(i for i, line in enumerate(lines) if not line.startswith("--"))
    return lines[:end]


def whole(values: Mapping[str, Value], name: str) -> int:
    """Return the value of a parameter that is a whole number."""
    value = values[name]
    assert isinstance(value, int)
    return value
