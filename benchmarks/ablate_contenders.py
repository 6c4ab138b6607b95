"""The contenders of ``ablate.py``: ours, SAeUron's released hook, nnsight; and the formula of each,
written out densely."""

import contextlib
import importlib
import itertools
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import pyarrow as pa
import torch
from ablate_setup import FACTOR, HOOK, Feature, Features, Setup, sizes
from torch import Tensor

from featurestore.selection import Selection
from featurestore.selection_files import ROWS
from sae.diffusion.hooks import as_positions
from sae.diffusion.loading.weights import model_hash
from sae.diffusion.modules import find_module
from sae.intervention.ablate import ablate
from sae.intervention.rules import paper_rule
from sae.intervention.settings import Intervention


def dense(setup: Setup, chosen: list[Feature], x: Tensor) -> Tensor:
    """Return the paper's rule on ``x [positions, d_in]``, written out."""
    latents, thresholds = (
        torch.tensor(column, device=x.device) for column in zip(*chosen, strict=True)
    )
    return paper_rule(
        setup.sae,
        x,
        latents,
        strength=FACTOR,
        mean_concept=torch.ones_like(thresholds),
        mean_all=thresholds,
    )


def ours(setup: Setup, chosen: Features, n_concepts: int) -> AbstractContextManager[Any]:
    """Attach the features as so many concepts."""
    selections = [
        _selection(setup, [step[i::n_concepts] for step in chosen], f"concept {i}")
        for i in range(n_concepts)
    ]
    edits = [Intervention(one, strength=FACTOR) for one in selections]
    return ablate(setup.model.pipe, edits, saes=setup.sae)


def _selection(setup: Setup, chosen: Features, concept: str) -> Selection:
    timesteps = setup.timesteps
    rows = [
        (step, timesteps[step], f.latent, 1.0, 1.0, 0.0, f.threshold)
        for step, fs in enumerate(chosen)
        for f in fs
    ]
    table = pa.Table.from_pylist(
        [dict(zip(ROWS.names, row, strict=True)) for row in rows], schema=ROWS
    )
    return Selection(
        family="style", concept=concept, branch="cond", rule={"top": 2}, model=setup.model.name,
        model_hash=model_hash(setup.model.pipe.unet), hook=HOOK, io="output", sae="s", sae_hash="s",
        **sizes(setup), run={}, store="", timesteps=tuple(timesteps), rows=table,
    )  # fmt: skip


@contextlib.contextmanager
def saeuron(setup: Setup, chosen: Features) -> Iterator[None]:
    """Attach SAeUron's ``SAEMaskedUnlearningHook``, with its own SAE of the same weights."""
    hooks, sae_module, config = (
        importlib.import_module(name) for name in ("utils.hooks", "SAE.sae", "SAE.config")
    )
    d_in, n_latents, k = sizes(setup).values()
    theirs = sae_module.Sae(
        d_in, config.SaeConfig(num_latents=n_latents, k=k), setup.sae.W_enc.device
    )
    with torch.no_grad():
        theirs.encoder.weight.copy_(setup.sae.W_enc)
        theirs.encoder.bias.copy_(setup.sae.b_enc)
        theirs.W_dec.copy_(setup.sae.W_dec)
        theirs.b_dec.copy_(setup.sae.b_dec)
    dtype = setup.model.pipe.unet.dtype
    theirs.to(dtype)  # as its scripts load it; its statistics have the same precision
    hook = object.__new__(hooks.SAEMaskedUnlearningHook)
    hook.sae, hook.timestep_idx, hook.preserve_error = theirs, 0, True
    hook.top_feature_idxs = [torch.tensor([f.latent for f in step]) for step in chosen]
    hook.scaling_factors = [torch.full((len(step),), FACTOR, dtype=dtype) for step in chosen]
    hook.all_concept_avg_acts = [torch.tensor([f.threshold for f in step]) for step in chosen]
    handle = find_module(setup.model.pipe, HOOK).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def saeuron_dense(setup: Setup, chosen: list[Feature], x: Tensor) -> Tensor:
    """Return what the released hook makes of ``x``: the error has the other sign, so it is
    ``2x̂ − x`` and the edit."""
    return dense(setup, chosen, x) + 2 * (setup.sae(x) - x)


@contextlib.contextmanager
def nnsight(setup: Setup, chosen: Features, spent: list[float]) -> Iterator[None]:
    """Call the denoiser through nnsight, the paper's rule written out in the trace: what its user
    would write.

    ``spent`` receives what the edit takes, without the tracing around it.
    """
    unet, step = setup.model.pipe.unet, itertools.count()
    traced, plain = importlib.import_module("nnsight").NNsight(unet), unet.forward

    def forward(
        sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, **kwargs: Any
    ) -> Any:
        unet.forward, edit = plain, chosen[next(step) % len(chosen)]
        arguments = {"encoder_hidden_states": encoder_hidden_states, **kwargs}
        try:
            with traced.trace(sample, timestep, **arguments):
                (hooked,) = traced.up_blocks[1].attentions[1].output
                began = time.perf_counter()
                edited = hooked.clone()
                view, _ = as_positions(edited[setup.batch :])
                view[:] = (
                    dense(setup, edit, view.flatten(0, 1).float()).view(view.shape).to(edited.dtype)
                )
                spent.append(time.perf_counter() - began)
                traced.up_blocks[1].attentions[1].output = (edited,)
                result = traced.output.save()
        finally:
            unet.forward = forward
        return result

    unet.forward = forward
    try:
        yield
    finally:
        unet.forward = plain
