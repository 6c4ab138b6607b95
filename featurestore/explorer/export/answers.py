"""The answers of an exported page: those that its views ask for, and where each stands."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.explorer.directions import nearest_directions
from featurestore.explorer.export.files import write_parquet
from featurestore.store import Store

_CHUNK_ROWS = 20_000
Parameters = dict[str, str | int | float | None]
Answer = tuple[Parameters, pa.Table]


class Answers:
    """The questions that the page asks about one SAE, with the parameters that it asks them
    with."""

    def __init__(
        self,
        store: Store,
        sae: Mapping[str, Any],
        *,
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

    def every(self, tell: Callable[[str], None]) -> Iterator[tuple[str, list[Answer]]]:
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
        asked: dict[str, Parameters] = {
            "timestep_profile": {},
            "feature_concepts": {},
            "top_samples": {"top": 12},
            "sample_bands": {"bands": 4, "top": 8},
            "coactivation": {"top": 15},
        }
        for name, more in asked.items():
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

    def _family(self, family: Mapping[str, Any]) -> Iterator[tuple[str, list[Answer]]]:
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

    def _all(self, name: str, asked: Sequence[Parameters]) -> tuple[str, list[Answer]]:
        from queries.answers import ask_each

        return name, list(zip(asked, ask_each(self.store, name, asked), strict=True))


def keep(out: Path, index: dict[str, Any], name: str, sae: str, *, asked: Sequence[Answer]) -> None:
    """Write answers about an SAE one after another into Parquet files, and where each is into the
    index."""
    from queries.questions import questions

    known, file = questions().get(name), f"{sae}-{name}"
    empty: dict[str, Any] = {"types": {}, "answers": {}, "given": {}, "files": {}}
    entry = index.setdefault(name, {"sql": known.sql if known else "", **empty})
    given, files = entry["given"].setdefault(sae, []), entry["files"].setdefault(sae, [])
    waiting: list[pa.Table] = []

    def flush() -> None:
        if waiting:
            files.append(f"{file}-{len(files)}")
            write_parquet(out / f"data/answers/{files[-1]}.parquet", pa.concat_tables(waiting))
            waiting.clear()

    for parameters, table in asked:
        number = len(given)
        given.append(parameters)
        entry["types"] = {field.name: str(field.type) for field in table.schema}
        entry["answers"][key(parameters)] = [f"{file}-{len(files)}", number]
        waiting.append(
            table.append_column("answer", pa.array(np.full(table.num_rows, number, np.int32)))
        )
        if sum(part.num_rows for part in waiting) >= _CHUNK_ROWS:
            flush()
    flush()


def key(parameters: Mapping[str, Any]) -> str:
    """Return parameters as the page's file provider writes them."""
    return "&".join(f"{name}={value}" for name, value in sorted(parameters.items()))
