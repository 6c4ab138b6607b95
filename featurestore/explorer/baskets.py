"""A basket: concepts' features with steps and strengths; as selections, and as the commands and
lines that make the same."""

import re
import shlex
import tempfile
from collections.abc import Mapping, Sequence
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
        return cls(**texts, top=top, features=chosen, multiplier=float(multiplier), window=ends)  # type: ignore[arg-type]


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


def file_names(chosen: Sequence[Selection], form: str) -> list[str]:
    """Return a name for each selection's file, none twice."""
    from queries.selections import file_name

    names: list[str] = []
    for one in chosen:
        name, number = file_name(one), 1
        while f"{name}.{form}" in names:
            number += 1
            name = f"{file_name(one)}-{number}"
        names.append(f"{name}.{form}")
    return names


def file_texts(chosen: Sequence[Selection], names: Sequence[str]) -> list[tuple[str, str]]:
    """Return the name and the text of each selection's file; raises UsageError."""
    from featurestore.selection_files import FORMATS

    encoded = []
    for one, name in zip(chosen, names, strict=True):
        suffix = name[name.rindex(".") :]
        if suffix not in (".json", ".csv", ".md"):
            raise UsageError(f"format {suffix}: a page saves .json, .csv or .md.")
        encode, _ = FORMATS[suffix]
        encoded.append((name, encode(one.header(), one.rows).decode()))
    return encoded


def commands(
    store: Store, entries: Sequence[Entry], names: Sequence[str], asked: Mapping[str, Any]
) -> str:
    """Return the shell commands that draw what the page draws from the basket; ``names`` are the
    selections' files."""
    lines = []
    for entry, name in zip(entries, names, strict=True):
        if entry.top is None:
            lines.append(f"# {name}: features chosen by hand; save it from the explorer's basket")
            continue
        branch = "" if entry.branch == "cond" else f" --branch {entry.branch}"
        concept = shlex.quote(f"{entry.family}={entry.concept}")
        lines.append(
            f"featurestore export {shlex.quote(str(store.root))} --sae {shlex.quote(entry.sae)} "
            f"--concept {concept} "
            f"--top {entry.top}{branch} -o {shlex.quote(name)}"
        )
    generate = ["featurestore generate", *_asked(asked)]
    generate += [f"--ablate {shlex.quote(name)}" for name in names]
    if names:
        generate += [f"--multiplier {entry.multiplier:g}" for entry in entries]
        if any(entry.window for entry in entries):
            generate += [f"--window {_window(entry)}" for entry in entries]
    return "\n".join([*lines, " \\\n    ".join([*generate, "--out pictures"])])


def _asked(asked: Mapping[str, Any]) -> list[str]:
    options = [
        f"--model {shlex.quote(str(asked['model']))}",
        f"--prompt {shlex.quote(str(asked['prompt']))}",
    ]
    options += [
        f"--seeds {asked['seed']}",
        f"--steps {asked['steps']}",
        f"--guidance {asked['guidance']:g}",
    ]
    return options


def _window(entry: Entry) -> str:
    first, last = entry.window or (1e5, 0.0)
    return f"{first:g}:{last:g}"


def python_lines(
    store: Store, entries: Sequence[Entry], names: Sequence[str], asked: Mapping[str, Any]
) -> str:
    """Return the Python lines that draw the same picture."""
    lines = [
        "from featurestore import Selection, Store",
        "from queries import select",
        "from sae import Intervention, RunSettings, Window, ablate, load_model",
        "from sae.diffusion.pipelines import generate",
        "",
        f"store = Store.open({str(store.root)!r})",
        f"model = load_model({asked['model']!r})",
        "wanted = [",
    ]
    for entry, name in zip(entries, names, strict=True):
        what = (
            f"select(store, {entry.sae!r}, {entry.family!r}, {entry.concept!r}, "
            f"top={entry.top}, branch={entry.branch!r})"
        )
        chosen = what if entry.top is not None else f"Selection.load({name!r})"
        window = (
            ""
            if entry.window is None
            else f", window=Window({entry.window[0]!r}, {entry.window[1]!r})"
        )
        lines.append(f"    Intervention({chosen}, strength={entry.multiplier!r}{window}),")
    run = f"RunSettings({asked['steps']}, {asked['guidance']!r})"
    lines += ["]", "with ablate(model.pipe, wanted):"]
    lines += [f"    [picture] = generate(model, {run}, [{asked['prompt']!r}], [{asked['seed']}])"]
    return "\n".join(lines)


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
