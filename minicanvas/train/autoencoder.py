"""Train the autoencoder: 64 × 64 pictures to 16 × 16 latents of a few channels and back."""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from minicanvas.classifier import as_tensor
from minicanvas.train.plans import SMALL_PLAN, Plan
from minicanvas.train.state import learning_rate, resumed_steps, set_rate

KL_WEIGHT = 2e-6


def new_autoencoder(plan: Plan = SMALL_PLAN) -> AutoencoderKL:
    """Return an untrained autoencoder; two halvings, no attention."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=plan.autoencoder_channels,
        layers_per_block=1,
        latent_channels=plan.latent_channels,
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


def batch(images: np.ndarray, n: int, seed: tuple[int, int]) -> Tensor:
    """Return `n` pictures drawn by a seed."""
    rows = np.sort(np.random.default_rng(seed).integers(0, len(images), n))
    return as_tensor(images[rows])


def loss_of(
    model: AutoencoderKL, target: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return the loss of a batch [n, 3, h, w] and its peak signal-to-noise ratio in dB."""
    with torch.autocast(target.device.type, dtype=torch.bfloat16):
        posterior = model.encode(target).latent_dist
        decoded = model.decode(posterior.sample(generator)).sample
    decoded = decoded.float()
    loss = reconstruction_loss(decoded, target) + KL_WEIGHT * posterior.kl().float().mean()
    return loss, 10 * torch.log10(4 / F.mse_loss(decoded.detach(), target))


def train_autoencoder(
    images: np.ndarray,
    out: Path,
    plan: Plan,
    *,
    lr: float = 2e-3,
    seed: int = 11,
    device: str = "cpu",
) -> AutoencoderKL:
    """Train for as many steps as the plan has, resuming from `out`."""
    torch.manual_seed(seed)
    n_steps = plan.autoencoder_steps
    model = new_autoencoder(plan).to(device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=1e-4)
    parts = {"model": model, "optimiser": optimiser}
    for step in resumed_steps(out, n_steps, parts, title="autoencoder"):
        set_rate(optimiser, learning_rate(step, n_steps, lr, rise=100, floor=0.02))
        generator = torch.Generator(device).manual_seed(seed * 1_000_000 + step)
        target = batch(images, plan.autoencoder_batch, (seed, step)).to(device)
        loss, psnr = loss_of(model, target, generator)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if step % 100 == 0:
            tqdm.write(f"autoencoder step {step} loss {loss.item():.4f} psnr {psnr.item():.2f}")
    return model.eval()


@torch.no_grad()
def encode_all(model: AutoencoderKL, images: np.ndarray, n_at_once: int = 128) -> Tensor:
    """Return the means and deviations of the latents of all pictures, float16 [n, 2 × channels,
    16, 16], unscaled."""
    chunks = []
    for start in tqdm(range(0, len(images), n_at_once), desc="latents", mininterval=10):
        target = as_tensor(images[start : start + n_at_once]).to(model.device)
        with torch.autocast(model.device.type, dtype=torch.bfloat16):
            posterior = model.encode(target).latent_dist
        chunks.append(torch.cat([posterior.mean, posterior.std], dim=1).half().cpu())
    return torch.cat(chunks)


@torch.no_grad()
def decode_all(model: AutoencoderKL, images: np.ndarray, n_at_once: int = 128) -> np.ndarray:
    """Return pictures uint8 [n, 64, 64, 3] after a way through the autoencoder."""
    chunks = []
    for start in range(0, len(images), n_at_once):
        target = as_tensor(images[start : start + n_at_once]).to(model.device)
        decoded = model.decode(model.encode(target).latent_dist.mean).sample
        chunks.append(((decoded.clamp(-1, 1) + 1) * 127.5).round().byte().cpu())
    return torch.cat(chunks).permute(0, 2, 3, 1).numpy()


@torch.no_grad()
def normalise_latents(model: AutoencoderKL, images: np.ndarray, n_images: int = 1024) -> None:
    """Fold a shift and a scale per channel into the 1 × 1 convolutions, so that latents drawn from
    their distributions have mean 0 and deviation 1.

    The autoencoder as a whole computes what it did before; its scaling factor stays 1. A channel
    that it leaves unused is nearly all noise: scaled by its means alone, this noise would be far
    larger than what the other channels hold.
    """
    quant, post = model.quant_conv, model.post_quant_conv
    step, n = max(1, len(images) // n_images), model.config.latent_channels
    mean, deviation = encode_all(model, images[::step]).float().to(model.device).chunk(2, dim=1)
    shift = mean.mean(dim=(0, 2, 3))
    scale = (mean.var(dim=(0, 2, 3)) + deviation.square().mean(dim=(0, 2, 3))).sqrt()
    post.bias += post.weight[:, :, 0, 0] @ shift
    post.weight *= scale[None, :, None, None]
    quant.weight[:n] /= scale[:, None, None, None]
    quant.bias[:n] = (quant.bias[:n] - shift) / scale
    quant.bias[n:] -= 2 * scale.log()
