"""Generate the pictures of a prompts file and keep their activations, codes, or both."""

import contextlib
import functools
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from collectors.items import gather, measure, write
from collectors.job import Job, prepare
from collectors.keep import CollectSettings
from collectors.planning.estimate import Estimate, estimate
from collectors.planning.plan import Sample, WorkItem, plan
from collectors.planning.shares import Share, claim_item, tidy
from collectors.rows.writer import BackgroundWriter, Timing
from collectors.shard_size import find_shard_samples
from featurestore.card import write_card
from featurestore.prompts import Prompt
from featurestore.store import Store
from sae.diffusion.faults import say_faults
from sae.diffusion.pipelines import Model, RunSettings

__all__ = ["CollectReport", "CollectSettings", "collect", "dry_run"]


@dataclass(frozen=True)
class CollectReport:
    """What a collection did."""

    store: Store
    n_samples: int
    """samples collected now, by this process"""
    n_skipped: int
    """samples that the store held already"""
    tables: list[str]
    """that the samples are in"""
    timing: Timing
    n_bytes: int
    """written now, by this process"""
    whole: bool
    """whether all samples are in all tables by now; other processes may still be at some"""
    faults: dict[str, str]
    """sample id → why its picture, of those kept now, is no result"""


def collect(  # noqa: PLR0917 where, and the four things that a collection is made of
    path: str | Path,
    model: Model,
    prompts: Sequence[Prompt],
    run: RunSettings,
    settings: CollectSettings,
    *,
    progress: bool = True,
    share: Share | None = None,
    ignore_space: bool = False,
) -> CollectReport:
    """Generate every prompt and append what is kept of it to the store at ``path``, a shard at a
    time.

    Everything is checked before the store is made or changed. A shard is written while the next is
    generated. Whatever is committed stays when this is interrupted; the same call goes on with what
    is missing and ends with the same bytes. Several processes, each with its ``share``, may fill
    one store: each does whole work items, its own first.

    Raises:
        HookError, ModelError, SAEError, UsageError: a setting does not fit the model.
        RunError: the store holds a run with other settings.
        TableError: other label columns, or another map size, than the store's.
        DiskError: the operating system refused a write, or the disk will not hold the run.
    """
    job, samples = prepare(path, model, prompts, run, settings=settings)
    items = _cut(job, samples)
    n_new = sum(len(item.samples) for item in items)
    began = time.perf_counter()
    try:
        with tqdm(
            total=n_new * run.n_steps,
            desc="collect",
            unit="step",
            disable=None if progress else True,
        ) as bar:
            _collect_items(
                job, (share or Share()).order(items), n_new, bar, ignore_space=ignore_space
            )
    finally:
        if job.store.exists:
            write_card(job.store)
        else:
            tidy(job.store.root)
    job.timing.total = time.perf_counter() - began
    if job.faults:
        warnings.warn(say_faults(job.faults, job.n_samples), stacklevel=2)
    return CollectReport(
        job.store,
        job.n_samples,
        len(samples) - n_new,
        job.tables,
        job.timing,
        job.n_bytes,
        not _plan(job, samples),
        job.faults,
    )


def dry_run(
    path: str | Path,
    model: Model,
    prompts: Sequence[Prompt],
    run: RunSettings,
    *,
    settings: CollectSettings,
) -> Estimate:
    """Check everything that ``collect`` checks, generate one batch, and say what the run would
    take; nothing is written.

    Raises:
        As ``collect``.
    """
    job, samples = prepare(path, model, prompts, run, settings=settings)
    items = _cut(job, samples)
    if not items:
        return Estimate({}, 0, 0, 0.0, job.store.root)
    # Items may lack different tables: one batch of all of them tells what each row takes.
    lacking = frozenset().union(*(item.tables for item in items))
    one = WorkItem(items[0].shard, items[0].samples[: settings.batch_size], lacking)
    with contextlib.closing(BackgroundWriter(job.timing)) as writer, tqdm(disable=True) as bar:
        began = time.perf_counter()
        measured = measure(job, one, writer, bar)
        seconds = time.perf_counter() - began
        measured.check()
    return estimate(
        measured.sizes(measured.tables(job)),
        len(one.samples),
        items,
        seconds=seconds,
        root=job.store.root,
    )


def _cut(job: Job, samples: Sequence[Sample]) -> list[WorkItem]:
    job.shard_samples = find_shard_samples(job, samples)
    return _plan(job, samples)


def _plan(job: Job, samples: Sequence[Sample]) -> list[WorkItem]:
    return plan(job.store, samples, job.tables, job.shard_samples or len(samples))


def _collect_items(
    job: Job, items: Sequence[WorkItem], n_new: int, bar: Any, *, ignore_space: bool
) -> None:
    writer, n_begun = BackgroundWriter(job.timing), 0
    try:
        for item in items:
            claim = claim_item(job.store.root, item.shard)
            lacking = frozenset(t for t in item.tables if job.store.done(t, item.shard) is None)
            if claim is None or not lacking:
                bar.update(len(item.samples) * job.run.n_steps)
                if claim is not None:
                    claim.release()
                continue
            try:
                to_come = 0 if n_begun or ignore_space else n_new
                gathered = gather(job, item._replace(tables=lacking), writer, bar, n_new=to_come)
                try:
                    writer.submit(functools.partial(write, job, gathered, claim, to_come))
                except BaseException:
                    gathered.close()
                    raise
            except BaseException:
                claim.release()
                raise
            n_begun += 1
        ended = time.perf_counter()
        writer.wait()
        job.timing.tail = time.perf_counter() - ended
    finally:
        writer.close()
