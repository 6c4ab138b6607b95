"""Generate the pictures of a prompts file and keep their activations, codes, or both."""

import contextlib
import functools
import time
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import diffusers
import pyarrow as pa
import torch
from tqdm import tqdm

from collectors.buffer import HookBuffer, Kept, StepFinder
from collectors.capture import Captured, capture
from collectors.estimate import Estimate, check_space, estimate
from collectors.memory import HostMemory
from collectors.models import Model, RunSettings, check_branch, describe_run, generate
from collectors.plan import Sample, WorkItem, identify, plan
from collectors.prompts import Prompt
from collectors.samples import samples_table
from collectors.shares import Claim, Share, tidy
from collectors.subset import Positions, kept_steps
from collectors.writer import BackgroundWriter, Timing
from featurestore import __version__
from featurestore.card import write_card
from featurestore.errors import RunError, SAEError, UsageError
from featurestore.schemas import check_name, samples_schema
from featurestore.store import Store
from sae.attach import Attached, attach, attachable
from sae.codes import one_thread
from sae.encode import check_model, made_by_sae
from sae.hooks import DenoiserCall
from sae.modules import denoiser, find_module, match_hooks


@dataclass(frozen=True)
class CollectSettings:
    """What is kept, and in what portions."""

    hooks: Sequence[str] = ()
    """whose activations are kept: module paths or patterns such as ``unet.up_blocks.*.attentions.*``"""
    io: str = "output"
    """``output``, ``input`` or ``difference`` (output − input) of the module"""
    branch: str = "cond"
    """``cond``, ``uncond`` or ``both`` halves of classifier-free guidance"""
    dtype: str = "float16"
    """of the stored activations: ``float16`` or ``float32``"""
    timesteps: str = "all"
    """``all``, ``every:N`` or step indices and ranges (``0,10-19``)"""
    positions: str = "all"
    """``all``, ``mean`` over the map, or ``random:N`` of each map"""
    saes: Sequence[str] = ()
    """SAEs that encode while collecting: names in the store, or directories"""
    activations: bool = True
    """also keep the activations that the SAEs encode"""
    images: bool = False
    """also keep the pictures, in ``samples``"""
    batch_size: int = 8
    """pictures generated at once; changes nothing that is stored but rounding"""
    shard_samples: int = 16
    """pictures a shard"""
    exact: bool = False
    """one picture at a time on one CPU thread: the same bytes whatever the batch size, the threads and the processes"""


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


@dataclass
class _Job:
    """Everything that does not change from item to item."""

    store: Store
    model: Model
    run: RunSettings
    settings: CollectSettings
    kept: dict[str, Kept]
    """hook → what is kept of it"""
    attached: list[Attached]
    memory: list[HostMemory]
    """two, used in turn: one is filled while the other is written"""
    timing: Timing = field(default_factory=Timing)
    n_samples: int = 0
    n_bytes: int = 0

    def lacking(self, hook: str, tables: Collection[str]) -> Kept | None:
        """Return what is kept of a hook and not yet in its tables; None if nothing is."""
        kept = self.kept[hook]
        saes = {name: sae for name, sae in kept.saes.items() if {f"codes/{name}", f"stats/{name}"} & set(tables)}
        activations = kept.activations and f"activations/{hook}" in tables
        return kept._replace(activations=activations, saes=saes) if activations or saes else None

    def made_by(self, table: str) -> dict[str, Any]:
        """Return what a table's commit records say under ``made_by``."""
        if table == "samples":
            return {"featurestore": __version__}
        choices = _choices(self.settings)
        for attached in self.attached:
            if table in (f"codes/{attached.name}", f"stats/{attached.name}"):
                # With activations beside them, they are what `encode` would have made, record and all.
                return made_by_sae(attached.record) | ({} if self.settings.activations else choices)
        versions = {"featurestore": __version__, "torch": torch.__version__, "diffusers": diffusers.__version__}
        return {**versions, **choices}

    @property
    def tables(self) -> list[str]:
        """The tables that every sample is to be in."""
        activations = [f"activations/{hook}" for hook, kept in self.kept.items() if kept.activations]
        return ["samples", *activations, *(f"{kind}/{a.name}" for a in self.attached for kind in ("codes", "stats"))]


def collect(
    path: str | Path,
    model: Model,
    prompts: Sequence[Prompt],
    run: RunSettings,
    settings: CollectSettings,
    progress: bool = True,
    share: Share | None = None,
    ignore_space: bool = False,
) -> CollectReport:
    """Generate every prompt and append what is kept of it to the store at ``path``, a shard at a time.

    Everything is checked before the store is made or changed. A shard is written while the next is generated. Whatever
    is committed stays when this is interrupted; the same call goes on with what is missing and ends with the same
    bytes. Several processes, each with its ``share``, may fill one store: each does whole work items, its own first.

    Raises:
        HookError, ModelError, SAEError, UsageError: a setting does not fit the model.
        RunError: the store holds a run with other settings.
        TableError: other label columns, or another map size, than the store's.
        DiskError: the operating system refused a write, or the disk will not hold the run.
    """
    job, samples = _prepare(path, model, prompts, run, settings)
    items = plan(job.store, samples, job.tables, settings.shard_samples)
    n_new = sum(len(item.samples) for item in items)
    began = time.perf_counter()
    try:
        with tqdm(total=n_new * run.n_steps, desc="collect", unit="step", disable=None if progress else True) as bar:
            _collect_items(job, (share or Share()).order(items), n_new, bar, ignore_space)
    finally:
        if job.store.exists:
            write_card(job.store)
        else:
            tidy(job.store.root)
    job.timing.total = time.perf_counter() - began
    return CollectReport(job.store, job.n_samples, len(samples) - n_new, job.tables, job.timing, job.n_bytes)


def dry_run(
    path: str | Path, model: Model, prompts: Sequence[Prompt], run: RunSettings, settings: CollectSettings
) -> Estimate:
    """Check everything that ``collect`` checks, generate one batch, and say what the run would take; nothing is written.

    Raises:
        As ``collect``.
    """
    job, samples = _prepare(path, model, prompts, run, settings)
    items = plan(job.store, samples, job.tables, settings.shard_samples)
    if not items:
        return Estimate({}, 0, 0, 0.0, job.store.root)
    one = WorkItem(items[0].shard, items[0].samples[: settings.batch_size], items[0].tables)
    with tqdm(disable=True) as bar:
        began = time.perf_counter()
        gathered = _gather(job, one, job.memory[0], bar)
        seconds = time.perf_counter() - began
    return estimate(gathered.tables(job), len(one.samples), items, seconds, job.store.root)


def _prepare(
    path: str | Path, model: Model, prompts: Sequence[Prompt], run: RunSettings, settings: CollectSettings
) -> tuple[_Job, list[Sample]]:
    _check(model, run, settings)
    settings = replace(settings, hooks=match_hooks(model.pipe, settings.hooks) if settings.hooks else [])
    described = describe_run(model, run)
    store = Store.prepare(path, described)
    device = next(denoiser(model.pipe).parameters()).device
    attached = [attachable(store, source, device) for source in settings.saes]
    for one in attached:
        _check_sae(one, settings, described["model_hash"], store)
    kept = _kept(settings, attached)
    for hook in kept:
        check_name(hook, "hook")
        find_module(model.pipe, hook)
    _check_tables(store, prompts, settings, kept)
    job = _Job(store, model, run, settings, kept, attached, [HostMemory(device), HostMemory(device)])
    return job, identify(store.run_id, prompts)


def _check(model: Model, run: RunSettings, settings: CollectSettings) -> None:
    if not settings.hooks and not settings.saes:
        raise UsageError("no --hook: name at least one module, such as unet.up_blocks.1.attentions.1, or an --sae.")
    if not settings.activations and (settings.hooks or not settings.saes):
        raise UsageError("--no-activations keeps codes only: name SAEs with --sae, and no --hook.")
    if len(set(settings.hooks)) < len(settings.hooks):
        raise UsageError("a --hook is named twice.")
    if settings.batch_size < 1 or settings.shard_samples < 1:
        raise UsageError("--batch-size and --shard-samples must be at least 1.")
    if settings.exact and next(denoiser(model.pipe).parameters()).device.type != "cpu":
        raise UsageError("--exact is for the CPU: the arithmetic of a GPU is not the same on another one.")
    check_branch(model, run, settings.branch)
    kept_steps(settings.timesteps, run.n_steps)


def _check_sae(attached: Attached, settings: CollectSettings, model_hash: str, store: Store) -> None:
    config = attached.sae.config
    check_model(attached.sae, attached.name, model_hash, str(store.root))
    if not config.hook:
        raise SAEError(f"SAE {attached.name!r} does not say which hook it belongs to: its config.json has no 'hook'.")
    if config.io != settings.io:
        raise SAEError(f"SAE {attached.name!r} was trained on the {config.io} of its hook: use --io {config.io}.")


def _kept(settings: CollectSettings, attached: Sequence[Attached]) -> dict[str, Kept]:
    """Return what is kept of each hook: those named, then those of the SAEs."""
    if len({one.name for one in attached}) < len(attached):
        raise UsageError("an --sae is named twice.")
    kept = {}
    for hook in dict.fromkeys([*settings.hooks, *(one.sae.config.hook for one in attached)]):
        saes = {one.name: (one.sae, made_by_sae(one.record)) for one in attached if one.sae.config.hook == hook}
        positions = Positions.parse(settings.positions)
        how = settings.io, settings.branch, settings.dtype, settings.timesteps, positions
        kept[hook] = Kept(*how, settings.activations, saes)
    return kept


def _check_tables(store: Store, prompts: Sequence[Prompt], settings: CollectSettings, kept: dict[str, Kept]) -> None:
    """Refuse what the store's tables cannot take before anything is generated."""
    store.check_schema("samples", samples_schema(prompts[0].labels, settings.images))
    for hook, one in kept.items():
        for table in (f"activations/{hook}", *(f"codes/{name}" for name in one.saes)):
            for record in store.records(table)[:1]:
                for key, wanted in _choices(settings).items():
                    found = record.made_by.get(key, wanted)
                    if found != wanted:
                        raise RunError(
                            f"{table} of {store.root} was collected with --{key} {found}, now it is {wanted}: "
                            f"use the same, or another --store. Nothing was changed."
                        )


def _collect_items(job: _Job, items: Sequence[WorkItem], n_new: int, bar: Any, ignore_space: bool) -> None:
    writer, n_begun = BackgroundWriter(job.timing), 0
    try:
        for item in items:
            claim = Claim.take(job.store.root, item.shard)
            lacking = frozenset(t for t in item.tables if job.store.record(t, item.shard) is None)
            if claim is None or not lacking:
                bar.update(len(item.samples) * job.run.n_steps)
                if claim is not None:
                    claim.release()
                continue
            try:
                gathered = _gather(job, item._replace(tables=lacking), job.memory[n_begun % 2], bar)
                to_come = 0 if n_begun or ignore_space else n_new
                writer.submit(functools.partial(_write, job, gathered, claim, to_come))
            except BaseException:
                claim.release()
                raise
            n_begun += 1
        writer.wait()
    finally:
        writer.close()


@dataclass(frozen=True)
class _Gathered:
    """A work item's values in memory."""

    item: WorkItem
    buffers: dict[str, HookBuffer]
    images: list[Any] | None

    def tables(self, job: _Job) -> dict[str, pa.Table]:
        """Return the rows of each table that lacks them; ``samples`` last: a sample there has everything else."""
        for buffer in self.buffers.values():
            buffer.check()
        found = {name: rows for buffer in self.buffers.values() for name, rows in buffer.tables().items()}
        found["samples"] = samples_table(job.store, self.item.samples, self.images)
        return {name: rows for name, rows in found.items() if name in self.item.tables}


def _gather(job: _Job, item: WorkItem, memory: HostMemory, bar: Any) -> _Gathered:
    ids, settings = [sample.id for sample in item.samples], job.settings
    kept = {hook: job.lacking(hook, item.tables) for hook in job.kept}
    buffers = {hook: HookBuffer(hook, one, ids, memory) for hook, one in kept.items() if one is not None}
    images: list[Any] = []
    # How a sum is split over threads shows in its last digits.
    with one_thread() if settings.exact else contextlib.nullcontext():
        size = 1 if settings.exact else settings.batch_size
        for start in range(0, len(ids), size):
            images += _run_batch(job, item.samples[start : start + size], start, buffers, bar)
    return _Gathered(item, buffers, images if settings.images else None)


def _run_batch(job: _Job, batch: list[Sample], start: int, buffers: dict[str, HookBuffer], bar: Any) -> list[Any]:
    model, run = job.model, job.run
    steps = StepFinder(model.pipe.scheduler)

    def before(call: DenoiserCall) -> None:
        if steps.advance(call):
            bar.update(len(batch) if steps.step < run.n_steps else 0)

    def sink(captured: Captured) -> None:
        buffers[captured.hook].put(captured, start, steps.step, len(steps))

    prompts, seeds = [s.prompt.prompt for s in batch], [s.prompt.seed for s in batch]
    with capture(model.pipe, list(buffers), sink, job.settings.io, before):
        return generate(model, run, prompts, seeds, "pil" if job.settings.images else "latent")


def _write(job: _Job, gathered: _Gathered, claim: Claim, n_new: int) -> None:
    """Commit an item; ``n_new`` samples are still to come if the space for them is to be checked first."""
    try:
        tables = gathered.tables(job)
        ids = [sample.id for sample in gathered.item.samples]
        if n_new:
            check_space(tables, len(ids), n_new, job.store.root)
        for attached in job.attached:
            attach(job.store, attached)

        def append(name: str) -> int:
            record = job.store.append(name, gathered.item.shard, tables[name], ids, job.made_by(name))
            return sum(entry.bytes for entry in record.files)

        with ThreadPoolExecutor(max(1, len(tables))) as pool:
            job.n_bytes += sum(pool.map(append, [name for name in tables if name != "samples"]))
        job.n_bytes += append("samples") if "samples" in tables else 0
        job.n_samples += len(ids)
    finally:
        claim.release()


def _choices(settings: CollectSettings) -> dict[str, str]:
    """Return the settings that decide what an activation row is."""
    names = ("io", "branch", "dtype", "timesteps", "positions")
    return {name: getattr(settings, name) for name in names}
