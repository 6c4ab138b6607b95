"""What the contenders of ``ablate.py`` share: a denoiser, an SAE, what the hook sees, features that
fire there."""

from typing import NamedTuple

import torch
from sd15 import sd15_shape
from torch import Tensor

from collectors.rows.capture import Captured, capture
from sae.diffusion.pipelines import Model, RunSettings, generate
from sae.model import SAE, SAEConfig

HOOK, FACTOR = "unet.up_blocks.1.attentions.1", -1.0


RUN = RunSettings(2, 7.5)


class Feature(NamedTuple):
    """A feature at one step."""

    latent: int
    threshold: float


Features = list[list[Feature]]
"""of each step"""


class Setup(NamedTuple):
    """What all contenders share."""

    model: Model
    sae: SAE
    x: list[Tensor]
    """the hooked tensor of each step, float32 ``[2, batch · positions, d_in]``, unconditional half
    first"""
    timesteps: list[float]
    batch: int
    """pictures at once"""


def sizes(setup: Setup) -> dict[str, int]:
    """Return the sizes of the SAE."""
    config = setup.sae.config
    return {"d_in": config.d_in, "n_latents": config.n_latents, "k": config.k}


def make_setup(device: str, dtype: torch.dtype, batch: int, *, small: bool = False) -> Setup:
    """Return a pipeline, an SAE, and what the hook sees at each step without any edit; ``small``:
    for a rehearsal."""
    torch.manual_seed(0)
    model = sd15_shape(device, dtype, small=small)
    d_in, n_latents, k = (32, 64, 8) if small else (1280, 20480, 32)
    sae = SAE(SAEConfig(d_in=d_in, n_latents=n_latents, k=k)).to(device).requires_grad_(False)
    setup = Setup(model, sae, [], [], batch)

    def keep(found: Captured) -> None:
        setup.x.append(halves(found.values))
        setup.timesteps.append(found.call.timestep)

    with capture(model.pipe, [HOOK], keep):
        run(setup)
    return setup


def halves(values: Tensor) -> Tensor:
    """Return a copy of ``[2 · batch, positions, d_in]`` as it is in :attr:`Setup.x`."""
    return values.float().reshape(2, -1, values.shape[-1]).clone()


def run(setup: Setup) -> None:
    """Make pictures' latents."""
    generate(
        setup.model, RUN, ["cat"] * setup.batch, list(range(setup.batch)), output_type="latent"
    )


def features(setup: Setup, n: int, present: bool) -> Features:
    """Return the n features of each step that fire at the most positions of the conditional
    half."""
    found = []
    for x in setup.x:
        z = setup.sae.encode_dense(x[1])
        latents = (z > 0).sum(0).topk(n).indices.sort().values.tolist()
        found.append(
            [Feature(i, _middle(z[:, i]) if present else 2 * float(z[:, i].max())) for i in latents]
        )
    return found


def _middle(f: Tensor) -> float:
    """Return a level between two activations: at one, the last digit of a sum would decide."""
    positive = f[f > 0].sort().values
    return float(positive[(len(positive) - 1) // 2 : (len(positive) - 1) // 2 + 2].mean())


def edited_positions(setup: Setup, chosen: Features) -> float:
    """Return the share of the conditional half's positions that features edit, over the steps."""
    edited = []
    for x, step in zip(setup.x, chosen, strict=True):
        z = setup.sae.encode_dense(x[1])
        edited.append(
            torch.stack([z[:, f.latent] > f.threshold for f in step]).any(0).float().mean()
        )
    return float(torch.stack(edited).mean())
