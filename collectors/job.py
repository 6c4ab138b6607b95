"""What does not change while a collection runs, checked against the model and the store before it
begins."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import diffusers
import torch

from collectors.keep import CollectSettings, Kept, kept_steps
from collectors.labels import check_labels, label_columns
from collectors.plan import Sample, identify
from collectors.writer import Staging, Timing
from featurestore import __version__
from featurestore.errors import RunError, SAEError, UsageError
from featurestore.format.schemas import check_name, samples_schema
from featurestore.prompts import Prompt
from featurestore.store import Store
from sae.adding import Candidate, find_candidate
from sae.diffusion.modules import denoiser, find_module, match_hooks
from sae.diffusion.pipelines import Model, RunSettings, check_branch, describe_run
from sae.encoding import check_model, made_by_sae


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
    families: list[str]
    """columns of labels in ``samples``"""
    faults: dict[str, str] = field(default_factory=dict)
    """sample id → why its picture is no result"""
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
            return {"featurestore": __version__}
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
        return {**versions, **choices}

    @property
    def tables(self) -> list[str]:
        """The tables that every sample is to be in."""
        activations = [
            f"activations/{hook}" for hook, kept in self.kept.items() if kept.activations
        ]
        return [
            "samples",
            *activations,
            *(f"{kind}/{sae.name}" for sae in self.saes for kind in ("codes", "stats")),
        ]


def prepare(
    path: str | Path,
    model: Model,
    prompts: Sequence[Prompt],
    run: RunSettings,
    settings: CollectSettings,
) -> tuple[Job, list[Sample]]:
    """Check everything against the model and the store at ``path``; return the job, and the samples
    that are wanted.

    Raises:
        As :func:`collectors.collection.collect`; nothing is made or changed.
    """
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
    _check_tables(store, prompts, settings, kept)
    samples = identify(store.run_id, float(run.guidance), prompts)
    check_labels(store, samples)
    timing = Timing()
    families = label_columns(store, prompts)
    job = Job(
        store=store,
        model=model,
        run=run,
        settings=settings,
        kept=kept,
        saes=saes,
        staging=Staging(device, timing),
        timing=timing,
        families=families,
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
    if settings.batch_size < 1 or settings.shard_samples < 1:
        raise UsageError("--batch-size and --shard-samples must be at least 1.")
    if settings.exact and next(denoiser(model.pipe).parameters()).device.type != "cpu":
        raise UsageError(
            "--exact is for the CPU: the arithmetic of a GPU is not the same on another one."
        )
    check_branch(model, run, settings.branch)
    kept_steps(settings.timesteps, run.n_steps)


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
    return {
        hook: Kept(
            settings,
            settings.activations,
            {one.name: one for one in saes if one.sae.config.hook == hook},
        )
        for hook in hooks
    }


def _check_tables(
    store: Store, prompts: Sequence[Prompt], settings: CollectSettings, kept: dict[str, Kept]
) -> None:
    """Refuse what the store's tables cannot take before anything is generated."""
    store.check_schema("samples", samples_schema(label_columns(store, prompts), settings.images))
    for hook, one in kept.items():
        for table in (f"activations/{hook}", *(f"codes/{name}" for name in one.saes)):
            for record in store.records(table)[:1]:
                for key, wanted in settings.choices().items():
                    found = record.made_by.get(key, wanted)
                    if found != wanted:
                        raise RunError(
                            f"{table} of {store.root} was collected with --{key} {found}, now it "
                            f"is {wanted}: "
                            f"use the same, or another --store. Nothing was changed."
                        )
