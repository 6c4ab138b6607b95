"""The folder: the page, samples and pictures, answers, codes and what its basket needs."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from featurestore.errors import UsageError
from featurestore.explorer.directions import python_lines
from featurestore.explorer.export.answers import Answers, keep
from featurestore.explorer.export.baskets import write_ladders, write_selections
from featurestore.explorer.export.codes import write_codes
from featurestore.explorer.export.files import write_json, write_parquet
from featurestore.explorer.overview import overview
from featurestore.explorer.pictures import Pictures, samples_table
from featurestore.explorer.server import PAGE
from featurestore.format import durable
from featurestore.store import Store

FEATURES = 8
SAMPLES = 200
_SPACE = """---
title: {title}
sdk: static
pinned: false
---

A page about a store of SAE features, written by `featurestore explore --export`.
"""
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' {style}; img-src 'self' data: blob:; "
    "connect-src 'self'; "
    "base-uri 'none'; form-action 'none'"
)


class Written(NamedTuple):
    """What an export holds."""

    files: int
    bytes: int


def export(
    store: Store,
    out: Path,
    *,
    features: int = FEATURES,
    samples: int = SAMPLES,
    ladder: bool = False,
    agree: Callable[[Written], bool] = lambda written: True,
    tell: Callable[[str], None] = lambda text: None,
) -> Written | None:
    """Write the page of a store with its answers to the new directory ``out``; None if ``agree``
    refused its size.

    Holds, of every encoded SAE, the answers about each concept and its best ``features``, and the
    codes of ``samples`` samples; pictures as they are; with ``ladder`` the pictures that were drawn
    in the basket. Everything is prepared beside ``out`` first: it is whole or absent.

    Raises:
        UsageError: ``out`` exists, or no ladder was drawn.
        DiskError: the operating system refused.
    """
    if out.exists():
        raise UsageError(f"{out} exists: name a new directory for --export.")
    partial = out.with_name(f".{out.name}.exporting")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        drawn = write_ladders(store, partial) if ladder else 0
        _write(store, partial, features=features, samples=samples, ladders=drawn, tell=tell)
        files = [path for path in partial.rglob("*") if path.is_file()]
        written = Written(len(files), sum(path.stat().st_size for path in files))
        if not agree(written):
            return None
        durable.make_directory(out.parent)
        durable.rename_directory(partial, out)
        return written
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(
    store: Store,
    out: Path,
    *,
    features: int,
    samples: int,
    ladders: int,
    tell: Callable[[str], None],
) -> None:
    from queries.questions import find_question

    found = overview(store)
    tell("page")
    _page(out, found["name"])
    chosen: list[int] = []
    if found["n_samples"]:
        tell("samples")
        table = samples_table(store)
        chosen = _spread(table, found["families"], samples)
        write_parquet(out / "data/samples.parquet", table)
        if found["has_pictures"]:
            _pictures(store, out / "data/pictures", table["sample_id"].to_pylist())
    index: dict[str, Any] = {}
    selections: dict[str, Any] = {}
    for sae in found["saes"]:
        if sae["encoded"] == "all":
            answers = Answers(
                store, sae, families=found["families"], features=features, samples=chosen
            )
            selections |= _sae(out, answers, index, tell)
    about = {
        "features": features,
        "samples": [str(i) for i in chosen],
        "ladders": ladders,
        "selections": selections,
    }
    for name in ("feature_map", "position_features"):  # answered from the codes of one sample
        index[name] = {"sql": find_question(name).sql, "types": {}, "answers": {}}
    write_json(
        out / "data/overview.json",
        {**overview(store), "state": "export", "model": None, "live": False, "export": about},
    )
    write_json(out / "data/index.json", index)


def _sae(
    out: Path, answers: Answers, index: dict[str, Any], tell: Callable[[str], None]
) -> dict[str, Any]:
    """Write what the pages show of an SAE; return where its selection files are."""
    store, sae, branch = answers.store, answers.sae, answers.branch
    for name, asked in answers.every(tell):
        keep(out, index, name, sae, asked=asked)
    index["directions"].setdefault("python", {})[sae] = python_lines(
        store, sae, "{feature}", "{top}"
    )
    tell(f"codes and selections of {sae}")
    write_codes(store, out / f"data/codes/{sae}", sae, branch, samples=answers.samples)
    return write_selections(store, out, sae, branch, families=answers.families)


def _page(out: Path, title: str) -> None:
    from featurestore.explorer.security import PLOT_STYLE

    for path in sorted(PAGE.rglob("*")):
        if path.is_file() and path.name != "index.html":
            durable.write_bytes(out / "page" / path.relative_to(PAGE), path.read_bytes())
    policy = _POLICY.format(style=PLOT_STYLE)
    tags = (
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n<meta '
        f'name="featurestore-export" content="data">\n'
    )
    text = (PAGE / "index.html").read_text(encoding="utf-8").replace("<title>", f"{tags}<title>")
    durable.write_bytes(out / "index.html", text.encode())
    durable.write_bytes(out / "README.md", _SPACE.format(title=json.dumps(title)).encode())
    durable.write_bytes(out / ".nojekyll", b"")


def _pictures(store: Store, out: Path, ids: Sequence[int]) -> None:
    pictures = Pictures(store)
    for sample in ids:
        for size in (192, 0):
            durable.write_bytes(out / str(size) / f"{sample}.png", pictures.get(sample, size))


def _spread(table: pa.Table, families: Sequence[Mapping[str, Any]], n: int) -> list[int]:
    """Return up to ``n`` samples, as many of each concept as can be: the first of each concept in
    turn."""
    ids = table["sample_id"].to_pylist()
    if len(ids) <= n or not families:
        return ids[:n]
    queues: dict[str, list[int]] = {}
    for sample, concept in zip(ids, table[families[0]["name"]].to_pylist(), strict=True):
        queues.setdefault(str(concept), []).append(sample)
    rounds = max(map(len, queues.values()))
    turns = [queue[i] for i in range(rounds) for queue in queues.values() if i < len(queue)]
    return turns[:n]
