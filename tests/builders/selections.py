"""Small SAEs, selections for a small model, and what a hooked module returns."""

import pyarrow as pa
import torch

from featurestore import Selection
from featurestore.selection_files import ROWS
from sae.diffusion.loading.weights import model_hash
from sae.diffusion.modules import denoiser, find_module
from sae.diffusion.pipelines import RunSettings, generate
from sae.model import SAE, SAEConfig

HOOK = "unet.up_blocks.1.attentions.1"
D_IN, N_LATENTS, K = 16, 64, 4
RUN = RunSettings(n_steps=3, guidance=3.0)


def make_sae(seed=0):
    generator = torch.Generator().manual_seed(seed)
    sae = SAE(SAEConfig(d_in=D_IN, n_latents=N_LATENTS, k=K), generator)
    with torch.no_grad():
        sae.W_enc += 0.1 * torch.randn(sae.W_enc.shape, generator=generator)
        sae.b_enc += 0.1 * torch.randn(sae.b_enc.shape, generator=generator)
        sae.b_dec += 0.1 * torch.randn(sae.b_dec.shape, generator=generator)
    return sae


def make_selection(model, rows, timesteps, **changes):
    """``rows``: (step, feature, mean_concept, mean_all)."""
    columns = [
        (step, timesteps[step], feature, 0.5, concept, 0.0, everything)
        for step, feature, concept, everything in rows
    ]
    table = pa.Table.from_pylist(
        [dict(zip(ROWS.names, c, strict=True)) for c in columns], schema=ROWS
    )
    fields = {
        "family": "style", "concept": "neon", "branch": "cond", "rule": {"top": 2}, "model": "tiny", "hook": HOOK, "io": "output",
        "sae": "s",
        "model_hash": model_hash(denoiser(model.pipe)), "sae_hash": "1", "d_in": D_IN, "n_latents": N_LATENTS, "k": K, "run": {},
        "store": "/nowhere", "timesteps": tuple(timesteps), "rows": table,
    }  # fmt: skip
    return Selection(**(fields | changes))


def timesteps_of(model, n_steps=3):
    model.pipe.scheduler.set_timesteps(n_steps)
    return [float(t) for t in model.pipe.scheduler.timesteps]


def captured_output(model, hook, run, seed=0):
    """What the hooked module returns at each call, and the pictures."""
    seen = []
    handle = find_module(model.pipe, hook).register_forward_hook(
        lambda m, a, out: seen.append(out[0].clone())
    )
    try:
        images = generate(model, run, ["a b"], [seed], output_type="latent")
    finally:
        handle.remove()
    return seen, images
