"""A work item of a collection: generated, gathered, committed."""

import contextlib
import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from collectors.job import Job
from collectors.planning.estimate import check_space, table_bytes
from collectors.planning.labels import append_labels
from collectors.planning.plan import WorkItem, samples_table
from collectors.rows.buffer import HookBuffer
from collectors.rows.capture import Captured, capture
from collectors.rows.streaming import Begin, StreamingBuffer
from collectors.rows.texts import TextBuffer
from collectors.rows.words import SeenWords, WordRows, capture_words
from collectors.rows.writer import BackgroundWriter
from featurestore.format.durable import Claim
from featurestore.format.parquet.in_place import TensorFile
from featurestore.format.parquet.layout import tensor_layout
from featurestore.prompts import prompt_batches
from sae.adding import add_sae
from sae.codes import one_thread
from sae.diffusion.faults import picture_fault
from sae.diffusion.modules import is_encoder_hook
from sae.diffusion.pipelines import generate, with_guidance
from sae.diffusion.reading.calls import DenoiserCall


@dataclass(frozen=True)
class Gathered:
    """A work item whose pictures were generated: activations in their files, the rest in memory."""

    item: WorkItem
    buffers: dict[str, HookBuffer]
    images: list[Any] | None
    words: list[WordRows]

    def faults(self) -> dict[str, str]:
        """Return sample id → why its picture is no result."""
        pairs = zip(self.item.samples, self.images, strict=True) if self.images is not None else ()
        said = {str(sample.id): picture_fault(image) for sample, image in pairs}
        return {sample: fault for sample, fault in said.items() if fault is not None}

    def check(self) -> None:
        """Wait until every row of activations is written, and refuse what cannot be stored."""
        for buffer in self.buffers.values():
            buffer.check()

    def tables(self, job: Job) -> dict[str, pa.Table]:
        """Return the rows of each table that lacks them, but activations; ``samples`` last."""
        found = {
            name: rows for buffer in self.buffers.values() for name, rows in buffer.tables().items()
        }
        found |= {words.table: words.rows() for words in self.words}
        found["samples"] = samples_table(
            job.samples_schema,
            job.store.run or {},
            self.item.samples,
            starts=job.run.starts,
            images=self.images,
        )
        return {name: rows for name, rows in found.items() if name in self.item.tables}

    def sizes(self, tables: Mapping[str, pa.Table]) -> dict[str, tuple[int, int]]:
        """Return rows and bytes of every table, ``tables`` being what :meth:`tables` returned."""
        sizes = {
            name: size for buffer in self.buffers.values() for name, size in buffer.sizes().items()
        }
        return sizes | {name: (rows.num_rows, table_bytes(rows)) for name, rows in tables.items()}

    def close(self) -> None:
        """Remove the files that were not committed."""
        for buffer in self.buffers.values():
            buffer.close()


def gather(
    job: Job, item: WorkItem, writer: BackgroundWriter, bar: Any, *, n_new: int = 0
) -> Gathered:
    """Generate a work item's pictures, its activations going to their files meanwhile.

    ``n_new``: samples still to come, if the space for their activations is to be checked first.
    """
    return _gather(job, item, writer, bar, begin=_beginning(job, item, n_new))


def measure(job: Job, item: WorkItem, writer: BackgroundWriter, bar: Any) -> Gathered:
    """Generate a work item's pictures and write nothing."""
    return _gather(job, item, writer, bar, begin=None)


def _beginning(job: Job, item: WorkItem, n_new: int) -> Begin:
    """Return what begins the files of an item's activations."""
    sizes: dict[str, int] = {}
    lock = threading.Lock()  # Hooks begin their files in several threads.

    def begin(table: str, others: pa.Table, schema: pa.Schema) -> TensorFile:
        if n_new:
            with lock:
                sizes[table] = tensor_layout(others, schema).size
                check_space(sizes, len(item.samples), n_new, job.store.root)
        return job.store.begin_shard(table, item.shard, others, schema)

    return begin


def _gather(
    job: Job, item: WorkItem, writer: BackgroundWriter, bar: Any, *, begin: Begin | None
) -> Gathered:
    ids, settings = [sample.id for sample in item.samples], job.settings
    kept = {hook: job.lacking(hook, item.tables) for hook in job.kept}
    buffers: dict[str, HookBuffer] = {}
    for hook, one in kept.items():
        if one is None:
            continue
        if one.settings.padding == "drop" and is_encoder_hook(hook):
            buffers[hook] = TextBuffer(hook, one, ids)
        else:
            buffers[hook] = StreamingBuffer(
                hook, one, ids, staging=job.staging, writer=writer, begin=begin
            )
    words = [
        WordRows(hook, settings.words, ids, settings.timesteps)
        for hook in job.kept
        if f"attention/{hook}" in item.tables
    ]
    try:
        # How a sum is split over threads shows in its last digits.
        with one_thread() if settings.exact else contextlib.nullcontext():
            images = _generate(job, item, buffers, words, bar=bar)
    except BaseException:
        for buffer in buffers.values():
            buffer.close()
        raise
    return Gathered(item, buffers, images if settings.images else None, words)


class _EncodedError(Exception):
    """Ends a generation of which only the text is wanted."""


def _generate(
    job: Job,
    item: WorkItem,
    buffers: Mapping[str, HookBuffer],
    words: Sequence[WordRows],
    *,
    bar: Any,
) -> list[Any]:
    """Generate an item's pictures batch by batch; what its hooks see goes into the buffers."""
    start, size, n_begun = 0, 0, 0
    images: list[Any] = []
    rows_of = {one.hook: one for one in words}
    # What the text encoders see is known before the first step.
    texts_only = not job.settings.images and not words and all(map(is_encoder_hook, buffers))

    def before(call: DenoiserCall) -> None:
        nonlocal n_begun
        if texts_only:
            raise _EncodedError
        if call.step >= n_begun:  # Two passes of guidance are one step.
            bar.update(size if call.step < job.run.n_steps else 0)
            n_begun = call.step + 1

    def sink(captured: Captured) -> None:
        buffers[captured.hook].put(captured, start)

    def look(seen: SeenWords) -> None:
        rows_of[seen.hook].put(seen, start)

    output = "pil" if job.settings.images else "latent"
    most = 1 if job.settings.exact else job.settings.batch_size
    pipe, io = job.model.pipe, job.settings.io
    with (
        capture(pipe, list(buffers), sink, io=io, before=before),
        capture_words(pipe, list(rows_of), job.settings.words, look),
    ):
        for batch in prompt_batches([sample.prompt for sample in item.samples], most):
            n_begun, size = 0, len(batch)
            run, starts = with_guidance(job.run, batch[0].guidance), [p.starts for p in batch]
            prompts, seeds = [p.prompt for p in batch], [p.seed for p in batch]
            with contextlib.suppress(_EncodedError):
                images += generate(
                    job.model, run, prompts, seeds, output_type=output, starts=starts
                )
            bar.update(size * max(0, job.run.n_steps - n_begun))  # Steps that are not drawn.
            start += size
    return images


def _cores() -> int:
    """Return the cores of this machine. One is the denoiser's thread's: hashing would take them
    all."""
    return os.cpu_count() or 1


def write(job: Job, gathered: Gathered, claim: Claim, n_new: int) -> None:
    """Commit an item; ``n_new`` samples are still to come if the space for them is to be checked
    first."""
    try:
        gathered.check()
        tables, item = gathered.tables(job), gathered.item
        ids = [sample.id for sample in item.samples]
        if n_new:
            sizes = {table: size for table, (_, size) in gathered.sizes(tables).items()}
            check_space(sizes, len(ids), n_new, job.store.root)
        for candidate in job.saes:
            add_sae(job.store, candidate)
        files = {
            buffer.table: file
            for buffer in gathered.buffers.values()
            if (file := buffer.file()) is not None
        }

        faults = gathered.faults() if "samples" in tables else {}
        job.faults |= faults

        def append(name: str) -> int:
            made_by = job.made_by(name) | (
                {"faults": faults} if faults and name == "samples" else {}
            )
            if name in files:
                record = job.store.append_shard(name, item.shard, files[name], ids, made_by=made_by)
            else:
                record = job.store.append(name, item.shard, tables[name], ids, made_by=made_by)
            return record.n_bytes

        # `samples` last: a sample that is there has everything else.
        names = [*files, *(name for name in tables if name != "samples")]
        with ThreadPoolExecutor(max(1, min(len(names), _cores() - 1))) as pool:
            job.n_bytes += sum(pool.map(append, names))
        if "samples" in tables:
            append_labels(job.store, item.shard, item.samples, job.families)
            job.n_bytes += append("samples")
        job.n_samples += len(ids)
    finally:
        gathered.close()
        claim.release()
