"""Methods that train weights: trained once, kept, and put into the model for a while."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import safetensors.torch
from torch import Tensor

from benchmarks.unlearning.adv_unlearn import AdvUnlearnSettings
from benchmarks.unlearning.diffusion import with_weights
from benchmarks.unlearning.esd import ESDSettings
from benchmarks.unlearning.methods.defence import Bench, Defence
from benchmarks.unlearning.methods.keys import short_hash
from benchmarks.unlearning.salun import SalUnSettings
from featurestore.format import durable


def trained(
    bench: Bench,
    family: str,
    concepts: Sequence[str],
    what: dict[str, str],
    *,
    settings: ESDSettings | AdvUnlearnSettings | SalUnSettings,
    train: Callable[[], dict[int, dict[str, Tensor]]],
    stored: int,
    component: str = "unet",
) -> list[Defence]:
    """Return weights as defences, one for each length of a training: trained once, then kept."""
    how = {**what, **{k: v for k, v in asdict(settings).items() if k != "iterations"}}
    method, concept = what["method"], "+".join(concepts)
    key = short_hash([how, family, concept, dict(bench.basis)])
    name = f"{method}-{family}-{concept}-{key}"

    def path(n: int) -> Path:
        return bench.root / "weights" / f"{name}-{n}.safetensors"

    def defence(length: int) -> Defence:
        def prepare() -> None:
            if path(length).is_file():
                return
            began = time.perf_counter()
            by_length = train()
            seconds = time.perf_counter() - began
            for n, weights in by_length.items():
                data = safetensors.torch.save(
                    {name: w.half().contiguous() for name, w in weights.items()}
                )
                durable.write_bytes(path(n), data)
            of = {"family": family, "concept": concept, "basis": short_hash(dict(bench.basis))}
            # Lengths are no part of the key: another training may be as this one, but shorter.
            row = f"{key}-{max(settings.iterations)}"
            bench.ledger.add(row, kind="training", method=method, seconds=seconds, **of)

        @contextlib.contextmanager
        def attached() -> Iterator[None]:
            weights = {n: w.float() for n, w in safetensors.torch.load_file(path(length)).items()}
            with with_weights(getattr(bench.model.pipe, component), weights):
                yield

        setting = {**how, "iterations": length}
        last = path(max(settings.iterations))
        return Defence(
            {family: [*concepts]},
            setting,
            attached,
            bench.run,
            stored,
            prepare=prepare,
            training=last,
        )

    return [defence(length) for length in settings.iterations]


def training_seconds(bench: Bench, method: str) -> list[float]:
    """Return how long each known training of a method for one concept took, to the longest length
    that is tried."""
    about, known = (method, short_hash(dict(bench.basis))), bench.canvas.concepts
    rows = bench.ledger.of_kind("training")
    return [
        r["seconds"]
        for r in rows
        if (r["method"], r["basis"]) == about and r["concept"] in known[r["family"]]
    ]
