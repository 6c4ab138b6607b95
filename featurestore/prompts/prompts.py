"""Read a file of prompts: what is generated, and what it is labelled."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from featurestore.errors import PromptsError
from featurestore.format.canonical import start_keys
from featurestore.prompts.columns import (
    IGNORED,
    PromptColumns,
    check_family,
    guidance_of,
    label_of,
    prompt_of,
    seed_of,
    split_family,
    split_of,
)
from featurestore.prompts.files import read_rows
from featurestore.prompts.rows import Row
from featurestore.prompts.starts import StartPicture, start_of


@dataclass(frozen=True)
class Prompt:
    """A picture to generate."""

    prompt: str
    seed: int
    labels: dict[str, str | None]
    """concept family → concept"""
    line: int
    """where it stands in its file, from 1"""
    guidance: float | None = None
    """its own guidance scale; None: that of the run"""
    starts: Mapping[str, StartPicture] = field(default_factory=dict)
    """``image``, ``mask`` or ``control`` → its own picture to start from"""

    @property
    def identity(self) -> tuple[str | int | float, ...]:
        """What makes it another picture within a run: prompt, seed, a guidance scale of its own,
        and pictures of its own to start from."""
        own = () if self.guidance is None else (self.guidance,)
        return (self.prompt, self.seed, *own, *start_keys(self.start_hashes))

    def own_starts(self, run: Mapping[str, Any]) -> dict[str, str]:
        """Return the hashes of its own pictures that are others than those of all samples of a
        run."""
        shared = run.get("start", {})
        return {k: sha256 for k, sha256 in self.start_hashes.items() if shared.get(k) != sha256}

    @property
    def start_hashes(self) -> dict[str, str]:
        """The hashes of its own pictures to start from."""
        return {kind: picture.sha256 for kind, picture in self.starts.items()}


@dataclass(frozen=True)
class PromptFile:
    """What a file of prompts was understood as."""

    prompts: list[Prompt]
    n_rows: int
    n_repeats: int
    """rows that were left out because an earlier one says the same"""
    columns: dict[str, str]
    """column → what it was taken as"""


def read_prompts(
    source: str | Path, seeds: Sequence[int] = (0,), columns: PromptColumns | None = None
) -> list[Prompt]:
    """Read prompts: every row once per seed; a row with a seed of its own only with that one.

    ``source``: a JSONL, JSON, CSV, TSV, text or Parquet file by its suffix (others are JSONL), or a
    data set of ``datasets``: a directory, or ``owner/name`` on the hub. Every prompt has the same
    families; a missing label is None.

    Raises:
        PromptsError: it cannot be read, or a row is malformed or stands there twice; it names file,
            place and column.
    """
    return read_prompt_file(source, seeds, columns).prompts


def read_prompt_file(
    source: str | Path,
    seeds: Sequence[int] = (0,),
    columns: PromptColumns | None = None,
    *,
    split: str | None = None,
    skip_repeats: bool = False,
) -> PromptFile:
    """Read prompts as :func:`read_prompts` does, and say what each column was taken as.

    ``split`` is one of a data set. ``skip_repeats`` leaves out rows that say the same as an earlier
    one.
    """
    columns, source = columns or PromptColumns(), str(source)
    rows = read_rows(source, split, columns.prompt, columns.needed)
    if not rows:
        raise PromptsError(
            f"prompts file {source} is empty: expected one JSON object with a 'prompt' per line, "
            f"or a table of prompts."
        )
    prompt_of(
        rows[0], columns.prompt
    )  # before its other columns: a missing prompt says most about a file
    found = list(dict.fromkeys(name for row in rows for name in row.values))
    columns.check(source, found)
    beside = Path(source).parent if Path(source).is_file() else Path()
    made = _prompts(rows, columns, found, seeds=seeds, beside=beside)
    prompts, n_repeats = _distinct(made, skip_repeats)
    return PromptFile(prompts, len(rows), n_repeats, _roles(columns, found))


def prompt_batches(prompts: Sequence[Prompt], size: int) -> Iterator[Sequence[Prompt]]:
    """Cut prompts, in their order, into batches of at most ``size`` that have one guidance
    scale."""
    start = 0
    while start < len(prompts):
        end = start + 1
        while (
            end < min(start + size, len(prompts))
            and prompts[end].guidance == prompts[start].guidance
        ):
            end += 1
        yield prompts[start:end]
        start = end


def _prompts(
    rows: Sequence[Row],
    columns: PromptColumns,
    found: Sequence[str],
    *,
    seeds: Sequence[int],
    beside: Path,
) -> list[tuple[Row, Prompt]]:
    seed_column, guidance_column = columns.seed or "seed", columns.guidance or "guidance"
    families = columns.families(found)
    splits = {family: _split_labels(rows, columns, family) for family in columns.split_labels}
    pictures: dict[Path, StartPicture] = {}
    names = sorted({*families, *(name for _, one in splits.values() for name in one)})
    prompts = []
    for index, row in enumerate(rows):
        labels = {
            family: label_of(row, _named(row, family, column), column)
            for family, column in families.items()
        }
        for cells, known in splits.values():
            cell = cells[index]
            labels |= {
                name: None if cell is None else "yes" if name in cell else "no" for name in known
            }
        own, guidance = seed_of(row, seed_column), guidance_of(row, guidance_column)
        kept, prompt = {name: labels[name] for name in names}, prompt_of(row, columns.prompt)
        starts = {k: start_of(row, name, beside, pictures) for k, name in columns.starts.items()}
        for seed in seeds if own is None else [own]:
            prompts.append((row, Prompt(prompt, seed, kept, row.number, guidance, starts)))
    return prompts


def _named(row: Row, family: str, column: str) -> str:
    """Return the family, checked at the first row that has its column."""
    return check_family(row.where, family) if column in row.values else family


def _split_labels(
    rows: Sequence[Row], columns: PromptColumns, family: str
) -> tuple[list[set[str] | None], list[str]]:
    """Return the families that each row's cell names, and all of them."""
    column, first, cells = columns.split_labels[family], dict[str, str](), []
    for row in rows:
        labels = split_of(row, family, column, columns.separator)
        cell = (
            None
            if labels is None
            else {split_family(row, family, label): label for label in labels}
        )
        for name, label in (cell or {}).items():
            if first.setdefault(name, label).casefold() != label.casefold():
                raise PromptsError(
                    f"{row.where}: the labels {first[name]!r} and {label!r} of {column!r} would "
                    f"both be {name!r}: write one of them otherwise."
                )
        cells.append(None if cell is None else set(cell))
    return cells, sorted(first)


def _distinct(found: Sequence[tuple[Row, Prompt]], skip_repeats: bool) -> tuple[list[Prompt], int]:
    """Return the prompts, and how many repeat an earlier one; refuse those unless they are to be
    skipped."""
    first: dict[tuple[str | int | float, ...], Prompt] = {}
    for row, prompt in found:
        other = first.setdefault(prompt.identity, prompt)
        if other is prompt or (skip_repeats and other.labels == prompt.labels):
            continue
        differ = other.labels != prompt.labels
        way = (
            "make them alike"
            if differ
            else "Remove one, or give it another 'seed'; --skip-repeats leaves it out"
        )
        raise PromptsError(
            f"{row.where}: the same prompt and seed {prompt.seed} as line {other.line}"
            f"{', with other labels' if differ else ''}: they would be the same sample. "
            f"{way[0].upper()}{way[1:]}."
        )
    return list(first.values()), len(found) - len(first)


def _roles(columns: PromptColumns, found: Sequence[str]) -> dict[str, str]:
    roles = {name: "not used (an index)" for name in found if name in IGNORED}
    roles |= {column: f"label {family}" for family, column in columns.families(found).items()}
    roles |= {
        column: f"labels {family}_…, several per cell"
        for family, column in columns.split_labels.items()
    }
    roles |= {column: f"{kind} to start from" for kind, column in columns.starts.items()}
    roles |= {
        columns.guidance or "guidance": "guidance",
        columns.seed or "seed": "seed",
        columns.prompt: "prompt",
    }
    return {name: roles.get(name, "not used") for name in found}
