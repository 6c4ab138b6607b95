"""A basket: concepts' features with steps and strengths, and the selections that they are."""

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from featurestore.errors import SelectionError, UsageError
from featurestore.format import durable
from featurestore.selection import Selection
from featurestore.selection_files import ROWS
from featurestore.store import Store
from featurestore.vocabulary import BRANCHES

STRENGTH = -5.0


@dataclass(frozen=True)
class Entry:
    """One concept's features in a basket."""

    sae: str
    family: str
    concept: str
    branch: str
    top: int | None
    """the n best of each step; None: the features below, at every step"""
    features: tuple[int, ...]
    multiplier: float = STRENGTH
    window: tuple[float, float] | None = None
    """timesteps, the noisier first; None: all"""

    @classmethod
    def parse(cls, given: Any) -> "Entry":
        """Return the entry that a page's JSON describes.

        Raises:
            UsageError: it describes none.
        """
        if not isinstance(given, Mapping):
            raise UsageError(f"a basket's entry is an object, found {type(given).__name__}.")
        texts = {name: given.get(name) for name in ("sae", "family", "concept", "branch")}
        for name, value in texts.items():
            if not isinstance(value, str) or not value:
                raise UsageError(f"a basket's entry needs {name} as text, found {value!r}.")
        if texts["branch"] not in BRANCHES:
            raise UsageError(f"branch {texts['branch']!r}: it is one of {', '.join(BRANCHES)}.")
        top, features = given.get("top"), given.get("features") or []
        if (top is None) == (not features) or not all(_is_count(f, 0) for f in features):
            raise UsageError(
                "a basket's entry has either top, a number, or features, a list of numbers."
            )
        if top is not None and not _is_count(top, 1):
            raise UsageError(f"top {top!r}: expected a whole number, at least 1.")
        multiplier = given.get("multiplier", STRENGTH)
        if not _is_number(multiplier):
            raise UsageError(f"multiplier {multiplier!r}: expected a number.")
        window = given.get("window")
        if window is not None and not (
            isinstance(window, list) and len(window) == 2 and all(map(_is_number, window))
        ):
            raise UsageError(f"window {window!r}: expected two timesteps, the noisier first.")
        chosen = tuple(sorted(set(features)))
        ends = None if window is None else (float(window[0]), float(window[1]))
        numbers = {"top": top, "features": chosen, "multiplier": float(multiplier), "window": ends}
        return cls(**texts, **numbers)  # type: ignore[arg-type]


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**31


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e6


def parse_basket(given: Any) -> list[Entry]:
    """Return the entries of a page's JSON; raises UsageError."""
    if not isinstance(given, list) or len(given) > 100:
        raise UsageError("a basket is a list of at most 100 entries.")
    return [Entry.parse(one) for one in given]


def selection(store: Store, entry: Entry, memory_limit: str | None = None) -> Selection:
    """Return an entry's selection, as ``featurestore export`` makes it; of features chosen by hand,
    their rows at every step.

    Raises:
        QueryError: the SAE, family, concept or a feature is not there.
    """
    import pyarrow as pa

    from queries import ask
    from queries.selections import select

    if entry.top is not None:
        return select(
            store, entry.sae, entry.family, entry.concept, top=entry.top, branch=entry.branch
        )
    whole = select(store, entry.sae, entry.family, entry.concept, top=1, branch=entry.branch)
    for feature in entry.features:
        if feature >= whole.n_latents:
            raise UsageError(
                f"SAE {entry.sae!r} has the features 0 to {whole.n_latents - 1}, not {feature}."
            )
    asked = {
        "sae": entry.sae,
        "family": entry.family,
        "concept": entry.concept,
        "branch": entry.branch,
    }
    chosen = {"features": ",".join(map(str, entry.features))}
    rows = ask(store, "feature_scores", {**asked, **chosen}, memory_limit=memory_limit)
    rows = pa.Table.from_arrays([rows[name].combine_chunks() for name in ROWS.names], schema=ROWS)
    return replace(whole, rule={"features": len(entry.features)}, rows=rows)


def load_entry(store: Store, name: str, data: bytes) -> tuple[dict[str, Any], str]:
    """Return the basket entry of a selection file, and what to say about it: a note where it is not
    this store's.

    Raises:
        SelectionError: it is no selection file, or of an SAE that this store does not have.
    """
    suffix = re.sub(r"[^A-Za-z0-9.]", "", "".join(Path(name).suffixes[-2:]))
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, f"selection{suffix}")
        durable.write_bytes(path, data)
        try:
            loaded = Selection.load(path)
        except SelectionError as error:
            raise SelectionError(str(error).replace(str(path), name)) from error
    known = [record.shard for record in store.records("saes")]
    if loaded.sae not in known:
        raise SelectionError(
            f"{name} is about SAE {loaded.sae!r}; this store has {', '.join(known) or 'none'}."
        )
    top = loaded.rule.get("top")
    entry: dict[str, Any] = {
        "sae": loaded.sae,
        "family": loaded.family,
        "concept": loaded.concept,
        "branch": loaded.branch,
    }
    for choice in ({"top": int(top)} if top else {}, {"features": loaded.features()}):
        if choice:
            made = selection(store, Entry.parse({**entry, **choice}))
            if made.rows.equals(loaded.rows):
                return {**entry, **choice}, ""
    note = (
        f"{name} was made from other samples or by another rule: its features are taken, with "
        f"this store's scores."
    )
    return {**entry, "features": loaded.features()}, note
