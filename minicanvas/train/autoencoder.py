"""Train the autoencoder: 64 × 64 pictures to 16 × 16 latents of 4 channels and back."""

import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from minicanvas.classifier import as_tensor
from minicanvas.train.state import learning_rate, load_state, save_state

KL_WEIGHT = 2e-6
SAVE_SECONDS = 120


def new_autoencoder() -> AutoencoderKL:
    """Return an untrained autoencoder; two halvings, no attention."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(24, 48, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )


def _edges(images: Tensor) -> Tensor:
    return torch.cat(
        [
            (images[..., 1:] - images[..., :-1]).flatten(1),
            (images[..., 1:, :] - images[..., :-1, :]).flatten(1),
        ],
        dim=1,
    )


def reconstruction_loss(decoded: Tensor, images: Tensor) -> Tensor:
    """Return absolute + squared error, plus the absolute error of neighbouring differences, which
    keeps lines sharp."""
    return (
        F.l1_loss(decoded, images)
        + F.mse_loss(decoded, images)
        + F.l1_loss(_edges(decoded), _edges(images))
    )


def batches(images: np.ndarray, batch: int, seed: int, step: int) -> Iterator[Tensor]:
    """Yield random batches for ever, each a function of (seed, step)."""
    while True:
        rows = np.sort(np.random.default_rng((seed, step)).integers(0, len(images), batch))
        yield as_tensor(images[rows])
        step += 1


def loss_of(model: AutoencoderKL, target: Tensor) -> tuple[Tensor, float]:
    """Return the loss of a batch [n, 3, h, w] and its peak signal-to-noise ratio in dB."""
    with torch.autocast(target.device.type, dtype=torch.bfloat16):
        posterior = model.encode(target).latent_dist
        decoded = model.decode(posterior.sample()).sample
    decoded = decoded.float()
    loss = reconstruction_loss(decoded, target) + KL_WEIGHT * posterior.kl().float().mean()
    return loss, 10 * math.log10(4 / F.mse_loss(decoded.detach(), target).item())


def train_autoencoder(
    images: np.ndarray,
    out: Path,
    *,
    n_steps: int,
    batch: int = 8,
    lr: float = 2e-3,
    seed: int = 11,
    device: str = "cpu",
) -> AutoencoderKL:
    """Train until `n_steps`, resuming from `out`, which is replaced every two minutes."""
    torch.manual_seed(seed)
    model = new_autoencoder().to(device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=1e-4)
    state, start, saved = load_state(out), 0, time.monotonic()
    if state is not None:
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        start = int(state["step"])
    source = batches(images, batch, seed, start)
    for step in tqdm(
        range(start, n_steps), initial=start, total=n_steps, desc="autoencoder", mininterval=10
    ):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, n_steps, lr, rise=100, floor=0.02)
        loss, psnr = loss_of(model, next(source).to(device))
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if step % 100 == 0:
            tqdm.write(f"autoencoder step {step} loss {loss.item():.4f} psnr {psnr:.2f}")
        if time.monotonic() - saved > SAVE_SECONDS or step + 1 == n_steps:
            saved = time.monotonic()
            save_state(
                out,
                {
                    "model": model.state_dict(),
                    "optimiser": optimiser.state_dict(),
                    "step": step + 1,
                },
            )
    return model.eval()


@torch.no_grad()
def encode_all(model: AutoencoderKL, images: np.ndarray, batch: int = 128) -> Tensor:
    """Return the means and deviations of the latents of all pictures, float16 [n, 8, 16, 16],
    unscaled."""
    chunks = []
    for start in tqdm(range(0, len(images), batch), desc="latents", mininterval=10):
        target = as_tensor(images[start : start + batch]).to(model.device)
        with torch.autocast(model.device.type, dtype=torch.bfloat16):
            posterior = model.encode(target).latent_dist
        chunks.append(torch.cat([posterior.mean, posterior.std], dim=1).half().cpu())
    return torch.cat(chunks)


@torch.no_grad()
def normalise_latents(model: AutoencoderKL, images: np.ndarray, n_images: int = 1024) -> None:
    """Fold a shift and a scale a channel into the 1 × 1 convolutions, so that latents have mean 0
    and deviation 1.

    The autoencoder as a whole computes what it did before; its scaling factor stays 1.
    """
    quant, post = model.quant_conv, model.post_quant_conv
    step = max(1, len(images) // n_images)
    latents = encode_all(model, images[::step]).float()[:, :4].to(model.device)
    shift = latents.mean(dim=(0, 2, 3))
    scale = latents.std(dim=(0, 2, 3))
    post.bias += post.weight[:, :, 0, 0] @ shift
    post.weight *= scale[None, :, None, None]
    quant.weight[:4] /= scale[:, None, None, None]
    quant.bias[:4] = (quant.bias[:4] - shift) / scale
    quant.bias[4:] -= 2 * scale.log()
