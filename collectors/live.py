"""Activations that are generated for a training and never kept."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from collectors.collection import CollectSettings, collect
from collectors.planning.plan import identify
from featurestore.errors import UsageError
from featurestore.format.canonical import run_id, sha256_text
from featurestore.format.records import Record
from featurestore.prompts import Prompt
from featurestore.store import Store
from sae.diffusion.pipelines import Model, RunSettings, describe_run, with_starts
from sae.feed.batches import PositionBatches
from sae.feed.rows import ActivationRows, activation_rows, held_out
from sae.training.settings import TrainSettings
from sae.training.train import Progress, train_many

SHARD_SAMPLES = 16
"""pictures per shard of what is generated and not kept"""


class Stream:
    """Prompts, generated chunk by chunk into a directory that goes away; every hook of a chunk is
    captured in one pass.

    The same model, prompts and settings give the same batches, so a training that was interrupted
    generates again the first chunk, for its starting point, and the one at which it stopped.
    """

    def __init__(
        self,
        model: Model,
        prompts: Sequence[Prompt],
        run: RunSettings,
        *,
        what: CollectSettings,
        settings: TrainSettings,
        chunk_samples: int,
        scratch: Path,
    ) -> None:
        self.model, self.run, self.what, self.settings, self.chunk_samples = (
            model,
            run,
            what,
            settings,
            chunk_samples,
        )
        self._scratch = scratch
        described = describe_run(model, run)
        samples = identify(run_id(described), described, prompts)
        out = held_out([sample.id for sample in samples], settings.holdout)
        self._train = [sample.prompt for sample in samples if sample.id not in out]
        self._test = [sample.prompt for sample in samples if sample.id in out]
        cut = what, chunk_samples, settings.batch_size, settings.seed, settings.holdout
        self.data = sha256_text("".join(f"{sample.id}\n" for sample in samples) + repr(cut))
        self.n_chunks = -(-len(self._train) // chunk_samples)
        self._held: dict[int, Store] = {}
        self.test = self._collect("test", self._test or self._train[:1])
        self.held_out = bool(self._test)

    def chunk(self, number: int) -> Store:
        """Return the store of a chunk. Two are held: one hook may be a step ahead of another."""
        if number not in self._held:
            while len(self._held) > 1:
                shutil.rmtree(self._held.pop(next(iter(self._held))).root)
            self._held[number] = self._collect(f"{number:06d}", self._prompts(number))
        return self._held[number]

    def samples_of(self, number: int) -> int:
        """Return how many samples a chunk has."""
        return len(self._prompts(number))

    def _prompts(self, number: int) -> Sequence[Prompt]:
        return self._train[number * self.chunk_samples : (number + 1) * self.chunk_samples]

    def _collect(self, name: str, prompts: Sequence[Prompt]) -> Store:
        return collect(
            self._scratch / name, self.model, prompts, self.run, self.what, progress=False
        ).store


class LiveBatches:
    """One hook of a stream, as :class:`sae.feed.batches.Source` says."""

    def __init__(self, stream: Stream, hook: str) -> None:
        self.hook, self._stream = hook, stream
        self.rows = activation_rows(stream.test, hook, stream.what.branch)
        self.data = sha256_text(f"{stream.data} {hook}")
        n_test = len(np.unique(self.rows.sample_id))
        per_sample = len(self.rows) // n_test * self.rows.n_positions
        numbers = range(stream.n_chunks)
        self._n_batches = [
            stream.samples_of(i) * per_sample // stream.settings.batch_size for i in numbers
        ]
        self.n_batches = sum(self._n_batches)
        self.n_positions = sum(stream.samples_of(i) for i in numbers) * per_sample
        self.default_steps = self.n_batches
        if not self.n_batches:
            raise UsageError(
                f"a batch of {stream.settings.batch_size} positions is more than a chunk of "
                f"{stream.chunk_samples} samples has: use a smaller --batch-size, a larger "
                f"--chunk, or more prompts."
            )

    def epoch(self, number: int, start: int = 0) -> Iterator[Tensor]:
        """Yield the batches of an epoch, from batch ``start`` on; chunks come in the order of the
        prompts."""
        settings = self._stream.settings
        for chunk, n_batches in enumerate(self._n_batches):
            if start < n_batches:
                store, branch = self._stream.chunk(chunk), self._stream.what.branch
                batches = PositionBatches(
                    store, self.hook, branch, settings.batch_size, seed=settings.seed, holdout=0
                )
                yield from batches.epoch(number, start)
            start = max(0, start - n_batches)

    def evaluation(self) -> tuple[ActivationRows, npt.NDArray[np.integer], bool]:
        """Return the rows of the samples that were held out."""
        return self.rows, np.arange(len(self.rows)), self._stream.held_out


def train_live(
    path: str | Path,
    model: Model,
    prompts: Sequence[Prompt],
    run: RunSettings,
    *,
    hooks: Mapping[str, str],
    settings: TrainSettings,
    what: CollectSettings,
    chunk_samples: int = 64,
    progress: bool = True,
    device: str = "auto",
    scratch: Path | None = None,
    on_report: Callable[[Progress], object] = lambda progress: None,
) -> list[Record]:
    """Train SAEs while pictures are generated, keeping no activations.

    One pass generates for all hooks. The SAEs are committed to the store at ``path``, which is made
    if it is missing.

    ``hooks``: the name of each SAE and its hook. ``what``: how activations are collected; its own
    hooks, SAEs and images do not matter. ``chunk_samples``: pictures whose positions can meet in a
    batch; their activations are on the disk for as long. ``scratch``: where a chunk's activations
    lie; by default the system's directory for temporary files.

    Raises:
        As :func:`collectors.collection.collect` and :func:`sae.training.train.train`.
        UsageError: several processes were started, each of which would generate everything; or
            there is no prompt, or no picture in a chunk.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(
            "training on live activations runs in one process: start it without torchrun or "
            "accelerate."
        )
    if not prompts or chunk_samples < 1:
        raise UsageError(
            f"{len(prompts)} prompts in chunks of {chunk_samples}: expected at least 1 of each."
        )
    what = replace(
        what,
        hooks=list(dict.fromkeys(hooks.values())),
        saes=(),
        activations=True,
        images=False,
        shard_samples=what.shard_samples or SHARD_SAMPLES,
    )
    run = with_starts(model.pipe, run, prompts)
    with tempfile.TemporaryDirectory(prefix="featurestore-live-", dir=scratch) as directory:
        store = Store.prepare(path, describe_run(model, run))
        stream = Stream(
            model,
            prompts,
            run,
            what=what,
            settings=settings,
            chunk_samples=chunk_samples,
            scratch=Path(directory),
        )
        sources = {name: LiveBatches(stream, hook) for name, hook in hooks.items()}
        store.begin()
        return train_many(
            store, dict(sources), settings, progress=progress, device=device, on_report=on_report
        )
