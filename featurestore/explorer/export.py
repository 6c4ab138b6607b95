"""The explorer as a folder for any static host: the same page, with answers computed now and read
as Parquet files."""

import io
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from featurestore.errors import UsageError
from featurestore.explorer.directions import nearest_directions
from featurestore.explorer.overview import overview
from featurestore.explorer.pictures import Pictures, samples_table
from featurestore.explorer.server import PAGE
from featurestore.format import durable
from featurestore.format.footers import read_table
from featurestore.store import Store

FEATURES = 8
SAMPLES = 200
_CHUNK_ROWS = 20_000
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
Parameters = dict[str, str | int | float | None]


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
    agree: Callable[[Written], bool] = lambda written: True,
    tell: Callable[[str], None] = lambda text: None,
) -> Written | None:
    """Write the page of a store with its answers to the new directory ``out``; None if ``agree``
    refused its size.

    Holds, of every encoded SAE, the answers about each concept and its best ``features``, and the
    codes of ``samples`` samples; pictures as they are. Everything is prepared beside ``out`` first:
    it is whole or absent.

    Raises:
        UsageError: ``out`` exists.
        DiskError: the operating system refused.
    """
    if out.exists():
        raise UsageError(f"{out} exists: name a new directory for --export.")
    partial = out.with_name(f".{out.name}.exporting")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        _write(store, partial, features, samples, tell)
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
    store: Store, out: Path, features: int, samples: int, tell: Callable[[str], None]
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
        _parquet(out / "data/samples.parquet", table)
        if found["has_pictures"]:
            _pictures(store, out / "data/pictures", table["sample_id"].to_pylist())
    index: dict[str, Any] = {}
    for sae in found["saes"]:
        if sae["encoded"] == "all":
            answers = _Answers(store, sae, found["families"], features, chosen)
            for name, asked in answers.every(tell):
                _keep(out, index, name, f"{sae['name']}-{name}", asked)
            tell(f"codes of {sae['name']}")
            _codes(store, out / f"data/codes/{sae['name']}", sae["name"], answers.branch, chosen)
    about = {"features": features, "samples": [str(i) for i in chosen]}
    for name in ("feature_map", "position_features"):  # answered from the codes of one sample
        index[name] = {"sql": find_question(name).sql, "types": {}, "answers": {}}
    _json(
        out / "data/overview.json",
        {**overview(store), "state": "export", "model": None, "live": False, "export": about},
    )
    _json(out / "data/index.json", index)


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


class _Answers:
    """The questions that the page asks about one SAE, with the parameters that it asks them
    with."""

    def __init__(
        self,
        store: Store,
        sae: Mapping[str, Any],
        families: Sequence[Mapping[str, Any]],
        features: int,
        samples: Sequence[int],
    ) -> None:
        branches = list(sae["steps"])
        self.store, self.sae, self.n, self.samples = store, sae["name"], features, samples
        self.branch = "cond" if "cond" in branches else branches[0]
        self.base: Parameters = {"sae": self.sae, "branch": self.branch}
        self.steps = sorted(int(step) for step, _ in sae["steps"][self.branch])
        self.families = [family for family in families if len(family["concepts"]) > 1]
        self.best: set[int] = set()

    def every(
        self, tell: Callable[[str], None]
    ) -> Iterator[tuple[str, list[tuple[Parameters, pa.Table]]]]:
        """Yield each question with its parameters and answers."""
        yield self._all("sae_steps", [self.base])
        yield self._all("dense_features", [{**self.base, "threshold": 0}])
        for family in self.families:
            tell(f"concepts of {family['name']} with {self.sae}")
            yield from self._family(family)
        tell(f"{len(self.best)} features of {self.sae}")
        features: list[Parameters] = [
            {**self.base, "feature": feature} for feature in sorted(self.best)
        ]
        for name, more in (("timestep_profile", {}), ("feature_concepts", {}), ("top_samples", {"top": 12}),
                           ("sample_bands", {"bands": 4, "top": 8}), ("coactivation", {"top": 15})):  # fmt: skip
            yield self._all(name, [{**one, **more} for one in features])
        yield self._all(
            "cell_samples",
            [{**one, "step": step, "top": 8} for one in features for step in self.steps],
        )
        yield (
            "directions",
            [
                (
                    {"sae": self.sae, "feature": f, "top": 15},
                    nearest_directions(self.store, self.sae, f, 15),
                )
                for f in sorted(self.best)
            ],
        )
        yield self._all(
            "sample_features",
            [{**self.base, "sample": sample, "top": 100} for sample in self.samples],
        )

    def _family(
        self, family: Mapping[str, Any]
    ) -> Iterator[tuple[str, list[tuple[Parameters, pa.Table]]]]:
        from queries import ask

        mine: Parameters = {**self.base, "family": family["name"]}
        found = ask(self.store, "best_scores", {**mine, "top": self.n})
        self.best |= set(found["feature"].to_pylist())
        shown = found.filter(pc.less_equal(found["place"], 6))
        yield "best_scores", [({**mine, "top": 6}, shown)]
        yield self._all("overlap_matrix", [{**mine, "top": 2}])
        for name, top in (("concept_scores", 24), ("bootstrap", 8)):
            asked = [
                {**mine, "concept": concept["name"], "top": top} for concept in family["concepts"]
            ]
            yield name, [(one, ask(self.store, name, one)) for one in asked]

    def _all(
        self, name: str, asked: Sequence[Parameters]
    ) -> tuple[str, list[tuple[Parameters, pa.Table]]]:
        from queries.answers import ask_each

        return name, list(zip(asked, ask_each(self.store, name, asked), strict=True))


def _keep(
    out: Path,
    index: dict[str, Any],
    name: str,
    file: str,
    asked: Sequence[tuple[Parameters, pa.Table]],
) -> None:
    """Write answers one after another into Parquet files, and where each is into the index."""
    from queries.questions import questions

    known = questions().get(name)
    entry = index.setdefault(name, {"sql": known.sql if known else "", "types": {}, "answers": {}})
    waiting: list[pa.Table] = []
    number = len({place[0] for place in entry["answers"].values()})

    def flush() -> None:
        nonlocal number
        if waiting:
            _parquet(out / f"data/answers/{file}-{number}.parquet", pa.concat_tables(waiting))
            number += 1
            waiting.clear()

    for i, (parameters, table) in enumerate(asked):
        entry["types"] = {field.name: str(field.type) for field in table.schema}
        entry["answers"][key(parameters)] = [f"{file}-{number}", i]
        waiting.append(
            table.append_column("answer", pa.array(np.full(table.num_rows, i, np.int32)))
        )
        if sum(part.num_rows for part in waiting) >= _CHUNK_ROWS:
            flush()
    flush()


def key(parameters: Mapping[str, Any]) -> str:
    """Return parameters as the page's file provider writes them."""
    return "&".join(f"{name}={value}" for name, value in sorted(parameters.items()))


def _codes(store: Store, out: Path, sae: str, branch: str, samples: Sequence[int]) -> None:
    """Write one file a sample: ``step, timestep, position, feature, value``, in the order of
    ``codes``."""
    wanted = set(samples)
    for record in store.records(f"codes/{sae}"):
        if wanted.isdisjoint(record.sample_ids):
            continue
        store.check([record])
        rows = read_table(store.root / record.files[0].path)
        rows = rows.filter(pc.equal(rows["branch"], branch))
        for sample in wanted & set(record.sample_ids):
            _parquet(
                out / f"{sample}.parquet",
                _flat(rows.filter(pc.equal(rows["sample_id"], sample)).sort_by("step")),
            )


def _flat(rows: pa.Table) -> pa.Table:
    columns: dict[str, list[np.ndarray]] = {
        name: [] for name in ("step", "timestep", "position", "feature", "value")
    }
    for step, timestep, features, values in zip(
        *(rows[n] for n in ("step", "timestep", "features", "values")), strict=True
    ):
        per_position = pc.list_value_length(features.values).to_numpy(zero_copy_only=False)
        n = int(per_position.sum())
        columns["step"].append(np.full(n, step.as_py(), np.int32))
        columns["timestep"].append(np.full(n, timestep.as_py(), np.float32))
        columns["position"].append(
            np.repeat(np.arange(len(per_position), dtype=np.int32), per_position)
        )
        columns["feature"].append(features.values.flatten().to_numpy(zero_copy_only=False))
        columns["value"].append(
            values.values.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
        )
    return pa.table(
        {name: np.concatenate(parts) if parts else np.zeros(0) for name, parts in columns.items()}
    )


def _parquet(path: Path, table: pa.Table) -> None:
    if "sample_id" in table.column_names:  # JavaScript has no such numbers
        place = table.column_names.index("sample_id")
        table = table.set_column(place, "sample_id", table["sample_id"].cast(pa.string()))
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", compression_level=12)
    durable.write_bytes(path, sink.getvalue())


def _json(path: Path, value: Any) -> None:
    durable.write_bytes(
        path, json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    )
