"""Which columns of a file of prompts are the prompt, the seed, the guidance scale, and labels."""

import datetime
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from decimal import Decimal

from featurestore.errors import PromptsError, nearest
from featurestore.format.schemas import FAMILY, RESERVED
from featurestore.prompts.rows import Row

IGNORED = ("", "Unnamed: 0", "__index_level_0__")
"""columns that pandas writes for the index of a frame"""
_WHOLE = re.compile(r"(\d{1,19})(\.0*)?", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class PromptColumns:
    """Which columns mean what. Only ``prompt`` must be there, and every column that is named
    here."""

    prompt: str = "prompt"
    seed: str | None = None
    """None: the column ``seed`` if there is one"""
    guidance: str | None = None
    """None: the column ``guidance`` if there is one"""
    starts: Mapping[str, str] = field(default_factory=dict)
    """``image``, ``mask`` or ``control`` → column of paths, relative to the file: pictures that
    samples start from"""
    labels: Mapping[str, str] | None = None
    """concept family → column; None: every other column is a family of its own name, unless
    ``split_labels`` names some"""
    split_labels: Mapping[str, str] = field(default_factory=dict)
    """concept family → column whose cells hold several labels: each label becomes a family
    ``<family>_<label>`` of ``yes`` and ``no``"""
    separator: str = ","
    """of the labels in such a cell"""

    @property
    def needed(self) -> set[str] | None:
        """The columns to read; None: all of them, as every one may be a label."""
        if self.labels is None and not self.split_labels:
            return None
        named = {self.prompt, self.seed or "seed", self.guidance or "guidance"}
        named |= set(self.starts.values())
        return named | set((self.labels or {}).values()) | set(self.split_labels.values())

    def families(self, found: Collection[str]) -> dict[str, str]:
        """Return family → column of the labels that take one value, of a file with the columns
        ``found``."""
        if self.labels is not None or self.split_labels:
            return dict(self.labels or {})
        taken = {self.prompt, self.seed or "seed", self.guidance or "guidance", *IGNORED}
        taken |= set(self.starts.values())
        return {name: name for name in found if name not in taken}

    def check(self, source: str, found: Collection[str]) -> None:
        """Refuse columns that are named here and not in the file, and names that no family may
        have.

        Raises:
            PromptsError: naming the column, and those that are near.
        """
        options = {"--seed-column": self.seed, "--guidance-column": self.guidance}
        options |= {f"--{kind}-column": name for kind, name in self.starts.items()}
        options |= {f"--label {f}={c}": c for f, c in (self.labels or {}).items()}
        options |= {f"--split-label {f}={c}": c for f, c in self.split_labels.items()}
        for option, name in options.items():
            if name is not None and name not in found:
                raise PromptsError(
                    f"{source} has no column {name!r} ({option}).{nearest(name, found)}"
                )
        for family in {*(self.labels or {}), *self.split_labels}:
            check_family(source, family)
        if self.split_labels and not self.separator:
            raise PromptsError(
                f"{source}: --separator is empty: name what stands between the labels of a cell."
            )
        both = sorted(set(self.labels or {}) & set(self.split_labels))
        if both:
            raise PromptsError(
                f"{source}: label {both[0]!r} is given to --label and to --split-label: choose one."
            )


def check_family(where: str, family: str) -> str:
    """Return the name of a concept family.

    Raises:
        PromptsError: it cannot be one.
    """
    if not FAMILY.fullmatch(family) or family in RESERVED:
        why = (
            "it is a column of the store"
            if family in RESERVED
            else "use lower-case letters, digits and '_'"
        )
        raise PromptsError(
            f"{where}: {family!r} cannot be a label: {why}. --label says which columns are labels, "
            f"such as --label style=Style; --no-labels: none."
            f"{' --image-column image: pictures that samples start from.' * (family == 'image')}"
        )
    return family


def prompt_of(row: Row, column: str) -> str:
    """Return a row's prompt; raises PromptsError if it has none."""
    found = row.values.get(column)
    if not isinstance(found, str):
        has = repr({key: row.values[key] for key in list(row.values)[:8]})
        shown = has if len(has) <= 120 else f"{has[:119]}…"
        hint = "" if column in row.values else " --prompt-column names another column."
        raise PromptsError(
            f"{row.where}: expected an object with a text {column!r}, found {shown}.{hint}"
        )
    return _kept(row.where, column, found)


def seed_of(row: Row, column: str) -> int | None:
    """Return a row's own seed, or None; raises PromptsError."""
    found = row.values.get(column)
    if found is None or (isinstance(found, float) and math.isnan(found)):
        return None
    text = _WHOLE.fullmatch(str(found).strip()) if not isinstance(found, bool) else None
    seed = int(text[1]) if text else -1
    if not 0 <= seed < 2**63:
        raise PromptsError(
            f"{row.where}: {column!r} is {found!r}, expected a whole number from 0 to 2^63 - 1."
        )
    return seed


def guidance_of(row: Row, column: str) -> float | None:
    """Return a row's own guidance scale, or None; raises PromptsError."""
    found = row.values.get(column)
    if found is None or (isinstance(found, float) and math.isnan(found)):
        return None
    try:
        scale = math.nan if isinstance(found, bool) else float(found)
    except (TypeError, ValueError):
        scale = math.nan
    if not math.isfinite(scale):
        raise PromptsError(f"{row.where}: {column!r} is {found!r}, expected a number such as 7.5.")
    return scale


def label_of(row: Row, family: str, column: str) -> str | None:
    """Return a row's label as text, or None: numbers as they are written, ``true`` and
    ``false``."""
    found = row.values.get(column)
    match found:
        case None:
            return None
        case bool():
            return "true" if found else "false"
        case str():
            return _kept(row.where, column, found)
        case float() if math.isnan(found):
            return None
        case int() | float() | Decimal() | datetime.date() | datetime.time():
            return str(found)
    raise PromptsError(
        f"{row.where}: label {family!r} is {str(found)[:60]}, expected one text, number, true, "
        f"false or null; --split-label {family} takes several."
    )


def split_of(row: Row, family: str, column: str, separator: str) -> list[str] | None:
    """Return the labels of a cell that holds several, or None; raises PromptsError."""
    found = row.values.get(column)
    if found is None:
        return None
    if isinstance(found, (list, tuple)):
        texts = [
            label_of(row._replace(values={column: item}), family, column) or "" for item in found
        ]
    else:
        texts = (label_of(row, family, column) or "").split(separator)
    return [text.strip() for text in texts if text.strip()]


def split_family(row: Row, family: str, label: str) -> str:
    """Return the family of one label of a cell that holds several: ``categories_self_harm``."""
    slug = re.sub(r"[^a-z0-9]+", "_", label.lower()).strip("_")
    return check_family(row.where, f"{family}_{slug}" if slug else label)


def _kept(where: str, column: str, text: str) -> str:
    """Return a text that UTF-8 can hold; raises PromptsError."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise PromptsError(
            f"{where}: {column!r} holds half a character ({half}, a lone surrogate), which no "
            f"file can keep: write the character whole."
        ) from error
    return text
