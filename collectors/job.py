"""What does not change while a collection runs, checked against the model and the store before it
begins."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import diffusers
import pyarrow as pa
import torch

from collectors.keep import CollectSettings, Kept, named_steps
from collectors.planning.labels import check_labels, label_columns
from collectors.planning.plan import Sample, identify
from collectors.rows.writer import Staging, Timing
from featurestore import __version__
from featurestore.errors import RunError, SAEError, UsageError
from featurestore.format.schemas import check_name, family_names, samples_schema
from featurestore.prompts import Prompt
from featurestore.store import Store
from sae.adding import Candidate, find_candidate
from sae.diffusion.attention import word_layers
from sae.diffusion.modules import denoiser, find_module, is_encoder_hook, match_hooks
from sae.diffusion.pipelines import (
    Model,
    RunSettings,
    check_branch,
    describe_run,
    with_starts,
)
from sae.diffusion.reading.architectures import architecture
from sae.encoding import check_model, check_whole, made_by_sae


@dataclass(kw_only=True)
class Job:
    """Everything that does not change from item to item."""

    store: Store
    model: Model
    run: RunSettings
    settings: CollectSettings
    kept: dict[str, Kept]
    """hook → what is kept of it"""
    saes: list[Candidate]
    staging: Staging
    timing: Timing
    samples_schema: pa.Schema
    """of the table ``samples``"""
    faults: dict[str, str] = field(default_factory=dict)
    """sample id → why its picture is no result"""
    shard_samples: int = 0
    """pictures per shard, known before the first is generated; 0: all are one"""
    n_samples: int = 0
    n_bytes: int = 0

    def lacking(self, hook: str, tables: Collection[str]) -> Kept | None:
        """Return what is kept of a hook and not yet in its tables; None if nothing is."""
        kept = self.kept[hook]
        saes = {
            name: sae
            for name, sae in kept.saes.items()
            if {f"codes/{name}", f"stats/{name}"} & set(tables)
        }
        activations = kept.activations and f"activations/{hook}" in tables
        return replace(kept, activations=activations, saes=saes) if activations or saes else None

    def made_by(self, table: str) -> dict[str, Any]:
        """Return what a table's commit records say under ``made_by``."""
        if table == "samples":
            return {"featurestore": __version__, "shard_samples": self.shard_samples}
        choices = self.settings.choices()
        for candidate in self.saes:
            if table in (f"codes/{candidate.name}", f"stats/{candidate.name}"):
                # With activations beside them, they are what `encode` would have made, record and
                # all.
                return made_by_sae(candidate.record) | (
                    {} if self.settings.activations else choices
                )
        versions = {
            "featurestore": __version__,
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
        }
        if table.startswith("attention/"):
            return {
                **versions, "timesteps": self.settings.timesteps, "words": list(self.settings.words)
            }  # fmt: skip
        return {**versions, **choices}

    @property
    def families(self) -> list[str]:
        """The columns of labels in ``samples``."""
        return family_names(self.samples_schema.names)

    @property
    def tables(self) -> list[str]:
        """The tables that every sample is to be in."""
        activations = [
            f"activations/{hook}" for hook, kept in self.kept.items() if kept.activations
        ]
        words = [f"attention/{hook}" for hook in self.kept if self.settings.words]
        return [
            "samples",
            *activations,
            *words,
            *(f"{kind}/{sae.name}" for sae in self.saes for kind in ("codes", "stats")),
        ]


def prepare(
    path: str | Path,
    model: Model,
    prompts: Sequence[Prompt],
    run: RunSettings,
    *,
    settings: CollectSettings,
) -> tuple[Job, list[Sample]]:
    """Check everything against the model and the store at ``path``; return the job, and the samples
    that are wanted.

    Raises:
        As :func:`collectors.collection.collect`; nothing is made or changed.
    """
    if not prompts:
        raise UsageError("there are no prompts to collect.")
    run = with_starts(model.pipe, run, prompts)
    _check(model, run, settings)
    _check_guidance(model, prompts, run, settings.branch)
    settings = replace(
        settings, hooks=match_hooks(model.pipe, settings.hooks) if settings.hooks else []
    )
    described = describe_run(model, run)
    store = Store.prepare(path, described)
    device = next(denoiser(model.pipe).parameters()).device
    saes = [find_candidate(store, source, device) for source in settings.saes]
    for candidate in saes:
        _check_sae(candidate, settings, described["model_hash"], store)
    kept = _kept(settings, saes)
    for hook in kept:
        check_name(hook, "hook")
        find_module(model.pipe, hook)
        if settings.words:
            word_layers(model.pipe, hook)
    starts = architecture(model.pipe).starts
    schema = samples_schema(label_columns(store, prompts), settings.images, starts)
    _check_tables(store, schema, settings, kept)
    samples = identify(store.run_id, described, prompts)
    check_labels(store, samples)
    timing = Timing()
    job = Job(
        store=store,
        model=model,
        run=run,
        settings=settings,
        kept=kept,
        saes=saes,
        staging=Staging(device, timing),
        timing=timing,
        samples_schema=schema,
    )
    return job, samples


def _check(model: Model, run: RunSettings, settings: CollectSettings) -> None:
    if not settings.hooks and not settings.saes:
        raise UsageError(
            "no --hook: name at least one module, such as unet.up_blocks.1.attentions.1, or an "
            "--sae."
        )
    if not settings.activations and (settings.hooks or not settings.saes):
        raise UsageError("--no-activations keeps codes only: name SAEs with --sae, and no --hook.")
    if len(set(settings.hooks)) < len(settings.hooks):
        raise UsageError("a --hook is named twice.")
    if settings.batch_size < 1 or (settings.shard_samples or 1) < 1:
        raise UsageError("--batch-size and --shard-samples must be at least 1.")
    if settings.exact and next(denoiser(model.pipe).parameters()).device.type != "cpu":
        raise UsageError(
            "--exact is for the CPU: the arithmetic of a GPU is not the same on another one."
        )
    if settings.padding == "drop" and settings.positions == "all":
        raise UsageError(
            "--padding drop with --positions all: texts have different lengths, and a table has "
            "one number of positions: use --positions random:N or mean, or keep the padding."
        )
    check_branch(model, run, settings.branch)
    named_steps(settings.timesteps)


def _check_guidance(model: Model, prompts: Sequence[Prompt], run: RunSettings, branch: str) -> None:
    """Refuse a branch that prompts with a guidance scale of their own do not have."""
    for scale, line in {
        p.guidance: p.line for p in reversed(prompts) if p.guidance is not None
    }.items():
        try:
            check_branch(model, replace(run, guidance=scale), branch)
        except UsageError as error:
            raise UsageError(
                f"prompt of line {line}, whose own guidance scale is {scale:g}: {error}"
            ) from error


def _check_sae(
    candidate: Candidate, settings: CollectSettings, model_hash: str, store: Store
) -> None:
    config = candidate.sae.config
    check_whole(candidate.record)
    check_model(candidate.sae, candidate.name, model_hash, str(store.root))
    if not config.hook:
        raise SAEError(
            f"SAE {candidate.name!r} does not say which hook it belongs to: its config.json has "
            f"no 'hook'."
        )
    if config.io != settings.io:
        raise SAEError(
            f"SAE {candidate.name!r} was trained on the {config.io} of its hook: use --io "
            f"{config.io}."
        )


def _kept(settings: CollectSettings, saes: Sequence[Candidate]) -> dict[str, Kept]:
    """Return what is kept of each hook: those named, then those of the SAEs."""
    if len({candidate.name for candidate in saes}) < len(saes):
        raise UsageError("an --sae is named twice.")
    hooks = dict.fromkeys([*settings.hooks, *(candidate.sae.config.hook for candidate in saes)])
    kept = {}
    for hook in hooks:
        # A prompt is encoded once: there is no choice of steps.
        own = replace(settings, timesteps="all") if is_encoder_hook(hook) else settings
        encoding = {one.name: one for one in saes if one.sae.config.hook == hook}
        kept[hook] = Kept(own, settings.activations, encoding)
    return kept


def _check_tables(
    store: Store, samples: pa.Schema, settings: CollectSettings, kept: dict[str, Kept]
) -> None:
    """Refuse what the store's tables cannot take before anything is generated."""
    store.check_schema("samples", samples)
    words = list(settings.words)
    for hook in kept if words else ():
        for record in store.records(f"attention/{hook}")[:1]:
            found = record.made_by.get("words", words)
            if found != words:
                raise RunError(
                    f"attention/{hook} of {store.root} has the words {', '.join(found)}, now they "
                    f"are {', '.join(words)}: use the same, or another --store. Nothing "
                    f"was changed."
                )
    for hook, one in kept.items():
        for table in (f"activations/{hook}", *(f"codes/{name}" for name in one.saes)):
            for record in store.records(table)[:1]:
                for key, wanted in settings.choices().items():
                    found = record.made_by.get(key, wanted)
                    if found != wanted:
                        raise RunError(
                            f"{table} of {store.root} was collected with --{key} {found}, now it "
                            f"is {wanted}: use the same, or another --store. Nothing was changed."
                        )
