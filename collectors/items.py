"""A work item of a collection: generated, gathered in memory, written."""

import contextlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from collectors.buffer import HookBuffer
from collectors.capture import Captured, capture
from collectors.estimate import check_space
from collectors.job import Job
from collectors.labels import append_labels
from collectors.memory import HostMemory
from collectors.plan import WorkItem, samples_table
from featurestore.format.durable import Claim
from featurestore.prompts import Prompt, prompt_batches
from sae.adding import add_sae
from sae.codes import one_thread
from sae.diffusion.calls import DenoiserCall
from sae.diffusion.faults import picture_fault
from sae.diffusion.pipelines import generate, with_guidance


@dataclass(frozen=True)
class Gathered:
    """A work item's values in memory."""

    item: WorkItem
    buffers: dict[str, HookBuffer]
    images: list[Any] | None

    def faults(self) -> dict[str, str]:
        """Return sample id → why its picture is no result."""
        pairs = zip(self.item.samples, self.images, strict=True) if self.images is not None else ()
        said = {str(sample.id): picture_fault(image) for sample, image in pairs}
        return {sample: fault for sample, fault in said.items() if fault is not None}

    def tables(self, job: Job) -> dict[str, pa.Table]:
        """Return the rows of each table that lacks them; ``samples`` last: a sample there has everything else."""
        for buffer in self.buffers.values():
            buffer.check()
        found = {name: rows for buffer in self.buffers.values() for name, rows in buffer.tables().items()}
        found["samples"] = samples_table(job.store, self.item.samples, job.families, self.images)
        return {name: rows for name, rows in found.items() if name in self.item.tables}


def gather(job: Job, item: WorkItem, memory: HostMemory, bar: Any) -> Gathered:
    """Generate a work item's pictures; return what is kept of them and not yet in the store."""
    ids, settings = [sample.id for sample in item.samples], job.settings
    kept = {hook: job.lacking(hook, item.tables) for hook in job.kept}
    buffers = {hook: HookBuffer(hook, one, ids, memory) for hook, one in kept.items() if one is not None}
    images: list[Any] = []
    # How a sum is split over threads shows in its last digits.
    with one_thread() if settings.exact else contextlib.nullcontext():
        size, start = 1 if settings.exact else settings.batch_size, 0
        for batch in prompt_batches([sample.prompt for sample in item.samples], size):
            images += _run_batch(job, batch, start, buffers, bar)
            start += len(batch)
    return Gathered(item, buffers, images if settings.images else None)


def _run_batch(job: Job, batch: Sequence[Prompt], start: int, buffers: dict[str, HookBuffer], bar: Any) -> list[Any]:
    model, run = job.model, with_guidance(job.run, batch[0].guidance)
    n_begun = 0

    def before(call: DenoiserCall) -> None:
        nonlocal n_begun
        if call.step >= n_begun:  # Two passes of guidance are one step.
            bar.update(len(batch) if call.step < run.n_steps else 0)
            n_begun = call.step + 1

    def sink(captured: Captured) -> None:
        buffers[captured.hook].put(captured, start)

    prompts, seeds = [p.prompt for p in batch], [p.seed for p in batch]
    with capture(model.pipe, list(buffers), sink, job.settings.io, before):
        return generate(model, run, prompts, seeds, "pil" if job.settings.images else "latent")


def write(job: Job, gathered: Gathered, claim: Claim, n_new: int) -> None:
    """Commit an item; ``n_new`` samples are still to come if the space for them is to be checked first."""
    try:
        tables = gathered.tables(job)
        ids = [sample.id for sample in gathered.item.samples]
        if n_new:
            check_space(tables, len(ids), n_new, job.store.root)
        for candidate in job.saes:
            add_sae(job.store, candidate)

        faults = gathered.faults() if "samples" in tables else {}
        job.faults |= faults

        def append(name: str) -> int:
            made_by = job.made_by(name) | ({"faults": faults} if faults and name == "samples" else {})
            record = job.store.append(name, gathered.item.shard, tables[name], ids, made_by)
            return sum(entry.bytes for entry in record.files)

        with ThreadPoolExecutor(max(1, len(tables))) as pool:
            job.n_bytes += sum(pool.map(append, [name for name in tables if name != "samples"]))
        if "samples" in tables:
            append_labels(job.store, gathered.item.shard, gathered.item.samples, job.families)
        job.n_bytes += append("samples") if "samples" in tables else 0
        job.n_samples += len(ids)
    finally:
        claim.release()
