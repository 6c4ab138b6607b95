"""Generate the pictures of a prompts file and keep their activations."""

import io as stdio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import pyarrow as pa
import torch
from tqdm import tqdm

from collectors.buffer import HookBuffer, StepFinder
from collectors.capture import Captured, capture
from collectors.models import Model, RunSettings, check_branch, describe_run, generate
from collectors.plan import Sample, WorkItem, identify, plan
from collectors.prompts import Prompt
from featurestore import __version__
from featurestore.card import write_card
from featurestore.errors import RunError, UsageError
from featurestore.schemas import check_name, samples_schema
from featurestore.store import Store
from sae.hooks import DenoiserCall
from sae.modules import match_hooks


@dataclass(frozen=True)
class CollectSettings:
    """What is kept, and in what portions."""

    hooks: Sequence[str]
    """module paths or patterns such as ``unet.up_blocks.*.attentions.*``; see :func:`sae.modules.match_hooks`"""
    io: str = "output"
    """``output``, ``input`` or ``difference`` (output − input) of the module"""
    branch: str = "cond"
    """``cond``, ``uncond`` or ``both`` halves of classifier-free guidance"""
    dtype: str = "float16"
    """of the stored activations: ``float16`` or ``float32``"""
    images: bool = False
    """also keep the pictures, in ``samples``"""
    batch_size: int = 8
    """pictures generated at once; changes nothing that is stored but rounding"""
    shard_samples: int = 16
    """pictures a shard"""


@dataclass(frozen=True)
class CollectReport:
    """What a collection did."""

    store: Store
    n_samples: int
    """samples collected now"""
    n_skipped: int
    """samples that the store held already"""
    hooks: Sequence[str]
    """what the hooks' patterns matched"""


def collect(
    path: str | Path,
    model: Model,
    prompts: Sequence[Prompt],
    run: RunSettings,
    settings: CollectSettings,
    progress: bool = True,
) -> CollectReport:
    """Generate every prompt and append its activations to the store at ``path``, a shard at a time.

    Everything is checked before the store is made or changed. Whatever is committed stays when this is interrupted; the
    same call goes on with what is missing and ends with the same bytes.

    Raises:
        HookError, ModelError, UsageError: a setting does not fit the model.
        RunError: the store holds a run with other settings.
        TableError: other label columns, or another map size, than the store's.
        DiskError: the operating system refused a write.
    """
    settings = _checked(model, run, settings)
    described = describe_run(model, run)
    store = Store.prepare(path, described)
    _check_tables(store, prompts, settings)
    samples = identify(store.run_id, prompts)
    items = plan(store, samples, ["samples", *map(_table, settings.hooks)], settings.shard_samples)
    n_new = sum(len(item.samples) for item in items)
    steps = int(described["n_steps"])
    try:
        with tqdm(total=n_new * steps, desc="collect", unit="step", disable=None if progress else True) as bar:
            for item in items:
                _collect_item(store, model, run, settings, item, bar)
    finally:
        if store.exists:
            write_card(store)
    return CollectReport(store, n_new, len(samples) - n_new, settings.hooks)


def _checked(model: Model, run: RunSettings, settings: CollectSettings) -> CollectSettings:
    """Return the settings with the hooks that their patterns match."""
    if not settings.hooks:
        raise UsageError("no --hook: name at least one module, such as unet.up_blocks.1.attentions.1.")
    if len(set(settings.hooks)) < len(settings.hooks):
        raise UsageError("a --hook is named twice.")
    if settings.batch_size < 1 or settings.shard_samples < 1:
        raise UsageError("--batch-size and --shard-samples must be at least 1.")
    check_branch(model, run, settings.branch)
    hooks = match_hooks(model.pipe, settings.hooks)
    for hook in hooks:
        check_name(hook, "hook")
    return replace(settings, hooks=hooks)


def _check_tables(store: Store, prompts: Sequence[Prompt], settings: CollectSettings) -> None:
    """Refuse what the store's tables cannot take before anything is generated."""
    store.check_schema("samples", samples_schema(prompts[0].labels, settings.images))
    for hook in settings.hooks:
        for record in store.records(_table(hook))[:1]:
            for key, wanted in _kept(settings).items():
                found = record.made_by.get(key)
                if found != wanted:
                    raise RunError(
                        f"{_table(hook)} of {store.root} was collected with --{key} {found}, now it is {wanted}: "
                        f"use the same, or another --store. Nothing was changed."
                    )


def _collect_item(
    store: Store, model: Model, run: RunSettings, settings: CollectSettings, item: WorkItem, bar: Any
) -> None:
    n = len(item.samples)
    wanted = {_table(hook): hook for hook in settings.hooks if _table(hook) in item.tables}
    buffers = {hook: HookBuffer(hook, settings.io, settings.branch, settings.dtype, n) for hook in wanted.values()}
    images: list[Any] = []
    for start in range(0, n, settings.batch_size):
        batch = item.samples[start : start + settings.batch_size]
        images += _run_batch(model, run, settings, batch, start, buffers, bar)
    ids = [sample.id for sample in item.samples]
    # Samples come last: a sample in `samples` has its activations.
    for table, hook in wanted.items():
        store.append(table, item.shard, buffers[hook].to_table(ids), ids, _made_by(settings))
    if "samples" in item.tables:
        rows = _samples_table(store, item.samples, images if settings.images else None)
        store.append("samples", item.shard, rows, ids, {"featurestore": __version__})


def _table(hook: str) -> str:
    return f"activations/{hook}"


def _run_batch(
    model: Model,
    run: RunSettings,
    settings: CollectSettings,
    batch: list[Sample],
    start: int,
    buffers: dict[str, HookBuffer],
    bar: Any,
) -> list[Any]:
    steps = StepFinder(model.pipe.scheduler)

    def before(call: DenoiserCall) -> None:
        if steps.advance(call):
            bar.update(len(batch) if steps.step < run.n_steps else 0)

    def sink(captured: Captured) -> None:
        buffers[captured.hook].put(captured, start, steps.step, len(steps))

    prompts, seeds = [s.prompt.prompt for s in batch], [s.prompt.seed for s in batch]
    with capture(model.pipe, list(buffers), sink, settings.io, before):
        return generate(model, run, prompts, seeds, "pil" if settings.images else "latent")


def _made_by(settings: CollectSettings) -> dict[str, Any]:
    versions = {"featurestore": __version__, "torch": torch.__version__, "diffusers": diffusers.__version__}
    return {**versions, **_kept(settings)}


def _kept(settings: CollectSettings) -> dict[str, str]:
    return {"io": settings.io, "branch": settings.branch, "dtype": settings.dtype}


def _samples_table(store: Store, samples: list[Sample], images: list[Any] | None) -> pa.Table:
    run = store.run or {}
    families = list(samples[0].prompt.labels)
    schema = samples_schema(families, images is not None)
    columns: dict[str, list[Any]] = {
        "sample_id": [s.id for s in samples],
        "prompt": [s.prompt.prompt for s in samples],
        "seed": [s.prompt.seed for s in samples],
        **{family: [s.prompt.labels[family] for s in samples] for family in families},
    }
    shared = {key: run[key] for key in ("guidance", "n_steps", "model", "model_hash", "height", "width")}
    shared["scheduler"] = run["scheduler"]["class"]
    columns |= {key: [value] * len(samples) for key, value in shared.items()}
    if images is not None:
        columns["image"] = [
            {"bytes": _png(image), "path": f"{s.id}.png"} for image, s in zip(images, samples, strict=True)
        ]
    return pa.Table.from_pydict(columns, schema=schema)


def _png(image: Any) -> bytes:
    sink = stdio.BytesIO()
    image.save(sink, format="PNG")
    return sink.getvalue()
