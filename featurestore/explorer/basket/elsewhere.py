"""A basket elsewhere: selection files, and the commands and lines that draw what the page draws."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from featurestore.errors import UsageError
from featurestore.explorer.basket.entries import Entry
from featurestore.selection import Selection
from featurestore.store import Store


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
